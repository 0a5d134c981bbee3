"""A phase: one optimizer's part of a step, which owns its parameters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vaegen_ray.config.job import Adam
from vaegen_ray.objectives.objective import Batch, Objective, PhaseName
from vaegen_ray.training.collectives import num_ranks, sum_over_ranks_async
from vaegen_ray.training.guard import FiniteGuard

BUCKET_VALUES = 8 * 1024 * 1024
"""Gradient values that travel in one collective."""


class Phase:
    """The parameters of one side, their gradients and their optimizer.

    Outside of :meth:`update` the parameters do not require gradients, so that no other phase can reach them.
    Gradients are averaged here, not by a wrapper around modules: objectives call sub-modules, run several
    forward passes and differentiate twice, where such wrappers silently skip the reduction.
    """

    def __init__(self, name: PhaseName, objective: Objective, settings: Adam) -> None:
        self.name = name
        self.groups = objective.groups(name)
        self.settings = settings
        self.backward: Callable[[Batch], None] = (
            objective.generator_backward if name == "generator" else objective.discriminator_backward
        )
        self.parameters = [parameter for group in self.groups.values() for parameter in group]
        for parameter in self.parameters:
            parameter.requires_grad = False
        # AdamW is Adam where weight_decay is 0; fused, because only fused optimizers can skip on the device.
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def update(self, batch: Batch, *, learning_rate_factor: float, guard: FiniteGuard) -> None:
        """One step of this side: gradients, their mean over ranks, the guard, clipping, the optimizer."""
        known = set(batch.local_terms)
        with self._owning():
            self.backward(batch)
        terms = {name: value for name, value in batch.local_terms.items() if name not in known}
        failures = self._average_gradients(guard.local_failures(terms))
        norm = self._gradient_norm()
        batch.record(f"{self.name}_gradient_norm", norm)
        guard.watch(failures, norm, batch.position, terms)
        if guard.looks_at_every_step:
            guard.check()
        self._clip(norm)
        self._drop_gradients(batch.held_back)
        self._step(self.settings.learning_rate * learning_rate_factor, guard.failed)

    @contextmanager
    def _owning(self) -> Iterator[None]:
        for parameter in self.parameters:
            parameter.grad = None
            parameter.requires_grad = True
        try:
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad = False

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _average_gradients(self, failures: Tensor) -> Tensor:
        """Average gradients over ranks in place; ``failures`` travels with them and comes back averaged."""
        if num_ranks() == 1:
            return failures
        failures = failures.reshape(1).clone()
        pending = []
        for bucket in _buckets([*self._gradients(), failures]):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            pending.append((bucket, flat, sum_over_ranks_async(flat)))
        for bucket, flat, work in pending:
            work.wait()
            parts = (flat / num_ranks()).split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
        return failures[0]

    def _gradient_norm(self) -> Tensor:
        return torch.stack(torch._foreach_norm(self._gradients())).norm()

    def _clip(self, norm: Tensor) -> None:
        if self.settings.clip_norm is not None:
            torch._foreach_mul_(self._gradients(), (self.settings.clip_norm / norm.clamp(min=1e-12)).clamp(max=1.0))

    def _drop_gradients(self, held_back: frozenset[str]) -> None:
        """Without a gradient the optimizer leaves a parameter and its moments as they are."""
        for name in held_back & self.groups.keys():
            for parameter in self.groups[name]:
                parameter.grad = None

    def _step(self, learning_rate: float, skip: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # read by fused optimizers only
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors in portions of about ``BUCKET_VALUES`` values."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel()
        if size >= BUCKET_VALUES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
