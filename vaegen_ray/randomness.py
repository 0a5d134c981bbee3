"""Random numbers as a function of (seed, position, purpose): never of time, rank or number of ranks.

Every rank draws the numbers of the whole global step and keeps the rows of its own images, so that one
worker or many, and one portion or several, see the same numbers.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def derived_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that depends on every argument."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Draws:
    """The random numbers of the images ``[first, last)`` of the step that begins at ``position``."""

    seed: int
    position: int
    """Of the first image of the global step."""
    images_per_step: int
    first: int
    last: int
    device: torch.device

    def rows(self, first: int, last: int) -> "Draws":
        """The draws of a portion, counted from this one's first image."""
        return replace(self, first=self.first + first, last=self.first + last)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal numbers, float32, of shape (images, *shape)."""
        draws = torch.randn(self.images_per_step, *shape, generator=self._generator(purpose), device=self.device)
        return draws[self.first : self.last]

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32, of shape (images, *shape)."""
        draws = torch.rand(self.images_per_step, *shape, generator=self._generator(purpose), device=self.device)
        return draws[self.first : self.last]

    def _generator(self, purpose: str) -> torch.Generator | None:
        if self.device.type == "meta":
            return None  # Shapes without numbers: `vaegen plan`.
        return torch.Generator(self.device).manual_seed(derived_seed(self.seed, self.position, purpose))
