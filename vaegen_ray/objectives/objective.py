"""What an objective is, and what it is given in a step."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vaegen_ray.models.generator import Generator
from vaegen_ray.models.judges import AnyDiscriminator
from vaegen_ray.randomness import Draws

PhaseName = Literal["generator", "discriminator"]


@dataclass(frozen=True)
class Portion:
    """The part of a rank's images that goes through the networks at once."""

    images_BCHW: Tensor
    draws: Draws
    index: int


@dataclass
class Batch:
    """A rank's share of one step, and what its phases leave for each other."""

    images_BCHW: Tensor
    """float32 in [-1, 1]."""
    draws: Draws
    position: int
    """Images used before this step."""
    num_portions: int = 1
    """Gradient accumulation: the images pass in so many portions."""
    mean_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor
    precision: torch.dtype = torch.float32
    """Of the networks' arithmetic; losses are float32 always."""
    shown: dict[int, Tensor] = field(default_factory=dict)
    """The generator's images of each portion, detached: made in its phase, judged in the discriminator's."""
    held_back: frozenset[str] = frozenset()
    """Groups of parameters that wait in this step; the same on all ranks."""
    local_terms: dict[str, Tensor] = field(default_factory=dict)
    """Scalars of this rank's images alone, so that a number that is not finite can be traced to its rank."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars: means over this rank's images, or numbers that are already the same on all ranks."""

    def portions(self) -> Iterator[Portion]:
        """The images in ``num_portions`` equal parts, in order."""
        length = len(self.images_BCHW) // self.num_portions
        for index in range(self.num_portions):
            first, last = index * length, (index + 1) * length
            yield Portion(self.images_BCHW[first:last], self.draws.rows(first, last), index)

    def networks(self) -> AbstractContextManager[None]:
        """The context in which networks run: autocast where the precision is below float32."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.images_BCHW.device.type, dtype=self.precision)

    def record(self, name: str, value: Tensor) -> None:
        """Set the metric ``name``."""
        self.metrics[name] = value.detach()

    def record_share(self, name: str, value: Tensor) -> None:
        """Add a portion's mean to the metric ``name``, which is the mean over all portions."""
        share = value.detach() / self.num_portions
        self.metrics[name] = self.metrics[name] + share if name in self.metrics else share
        self.note(name, share)

    def note(self, name: str, value: Tensor) -> None:
        """Add ``value``, a scalar of this rank, to the local term ``name``; the sum keeps what is not finite."""
        before = self.local_terms.get(name)
        self.local_terms[name] = value.detach() if before is None else before + value.detach()

    def global_means(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average tensors over ranks, in one collective."""
        flat = self.mean_over_ranks(torch.cat([value.detach().float().flatten() for value in means.values()]))
        parts = flat.split([value.numel() for value in means.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(means.items(), parts, strict=True)}


Forward = TypeVar("Forward")
Decision = TypeVar("Decision")


def backward_in_portions(
    batch: Batch,
    forward: Callable[[Portion], Forward],
    statistics: Callable[[Forward], dict[str, Tensor]],
    decide: Callable[[dict[str, Tensor]], Decision],
    backward: Callable[[Forward, Decision], None],
    *,
    is_decided_by_all: bool,
) -> Decision:
    """Run ``backward`` on every portion, with what ``decide`` makes of the ``statistics`` of the global batch.

    Returns what was decided.

    Balances, floors and optimal scales are decided by all images together (``is_decided_by_all``). With one portion
    that costs nothing; with several, a first pass without a graph gathers the statistics, so that accumulation gives
    the numbers of the undivided batch. What is the same for any images needs no first pass.
    """
    if batch.num_portions == 1:
        (portion,) = batch.portions()
        passed = forward(portion)
        decision = decide(batch.global_means(statistics(passed)))
        backward(passed, decision)
        return decision
    parts = []
    for portion in batch.portions():
        with torch.set_grad_enabled(not is_decided_by_all):
            passed = forward(portion)
        parts.append({name: value.detach() for name, value in statistics(passed).items()})
        if not is_decided_by_all:
            backward(passed, decide(parts[-1]))
        del passed
    local = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
    decision = decide(batch.global_means(local))
    if is_decided_by_all:
        for portion in batch.portions():
            backward(forward(portion), decision)
    return decision


class Objective(Protocol):
    """The networks of a run and the gradients of their losses.

    An objective never steps an optimizer. A backward method adds to the gradients of the parameters of its own
    phase; the caller has frozen all others.
    """

    @property
    def generator(self) -> Generator:
        """Encoder and decoder."""
        ...

    @property
    def discriminator(self) -> AnyDiscriminator | None:
        """None where the objective has no adversary."""
        ...

    def groups(self, phase: PhaseName) -> dict[str, list[nn.Parameter]]:
        """The parameters that a phase owns, by the name under which they may be held back."""
        ...

    def generator_backward(self, batch: Batch) -> None:
        """Gradients of what the generator minimises; leaves its images in ``batch.shown``."""
        ...

    def discriminator_backward(self, batch: Batch) -> None:
        """Gradients of what the discriminator minimises, on the images in ``batch.shown``."""
        ...
