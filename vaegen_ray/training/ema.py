"""The moving average of the generator's weights."""

import copy

import torch
from torch import Tensor

from vaegen_ray.models.generator import Generator


class Ema:
    """A second generator whose weights follow the first."""

    def __init__(self, generator: Generator) -> None:
        self.generator = copy.deepcopy(generator).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def follow(self, generator: Generator, decay: float) -> None:
        """Average = decay * average + (1 - decay) * weights; buffers are copied."""
        averages: list[Tensor] = list(self.generator.parameters())
        weights: list[Tensor] = list(generator.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.generator.buffers(), generator.buffers(), strict=True):
            average.copy_(buffer)
