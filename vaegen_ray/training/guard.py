"""Stops a run at the first number that is not finite, before any optimizer has stepped on it."""

import math

import torch
from torch import Tensor

from vaegen_ray.errors import DivergedError
from vaegen_ray.training.collectives import gather_objects


class FiniteGuard:
    """Remembers, on the device, the first step with a number that is not finite.

    From that step on fused optimizers skip their updates (`found_inf`), so that the parameters stay those of
    the last good step however late the host looks. Looking waits for the device: done at every step on a
    CPU, where it costs nothing, and with every report on an accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self.looks_at_every_step = device.type == "cpu"
        self.failed = torch.zeros((), device=device)
        """1 from the first failure on; the same on all ranks."""
        self._position = torch.zeros((), dtype=torch.long, device=device)
        self._terms: dict[str, Tensor] = {}

    def local_failures(self, terms: dict[str, Tensor]) -> Tensor:
        """1 where any of this rank's scalars is not finite, else 0."""
        if not terms:
            return torch.zeros_like(self.failed)
        values = torch.stack([value.float() for value in terms.values()])
        return 1 - values.isfinite().all().float()

    def watch(self, failures: Tensor, gradient_norm: Tensor, position: int, terms: dict[str, Tensor]) -> None:
        """Take note of a step; ``failures`` and ``gradient_norm`` are of all ranks together."""
        bad = torch.maximum((failures > 0).float(), 1 - gradient_norm.isfinite().float())
        first = bad * (1 - self.failed)
        self._position = torch.where(first > 0, torch.full_like(self._position, position), self._position)
        for name, value in terms.items():
            before = self._terms.get(name)
            self._terms[name] = torch.where(first > 0, value, torch.zeros_like(value) if before is None else before)
        self.failed = torch.maximum(self.failed, bad)

    def check(self) -> None:
        """Raise DivergedError, naming ranks and terms, if a number was not finite. Reads from the device."""
        if not float(self.failed):
            return
        terms = {name: float(value) for name, value in self._terms.items()}
        everybody = gather_objects({name: value for name, value in terms.items() if not math.isfinite(value)})
        ranks = [rank for rank, bad in enumerate(everybody) if bad]
        named = ", ".join(sorted({f"{name}={value}" for bad in everybody for name, value in bad.items()}))
        where = f"on rank(s) {ranks}: {named}" if ranks else "in the gradient, while every loss was finite"
        raise DivergedError(
            f"a number is not finite at image {int(self._position)} {where}; it was not stepped on. "
            "Lower optimizer.*.learning_rate, set optimizer.*.clip_norm, or use training.precision float32"
        )
