"""What a job would cost, counted on tensors that have shapes but no numbers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vaegen_ray.config.job import TrainJob
from vaegen_ray.models.generator import Generator
from vaegen_ray.objectives.build import build_objective
from vaegen_ray.objectives.objective import Batch, Objective, PhaseName
from vaegen_ray.randomness import Draws

ADAM_MOMENTS = 2
PHASES: tuple[PhaseName, PhaseName] = ("generator", "discriminator")


@dataclass(frozen=True)
class Plan:
    """Sizes and costs of a train job. FLOPs count a multiplication and an addition as two."""

    parameters: dict[str, int]
    """Of each network."""
    forward_flops_per_image: int
    """Encoder (where there is one) and decoder, once."""
    step_flops_per_image: int
    """All phases with everything switched on: a lazy gradient penalty, and LPIPS of those images that it sees."""
    activation_bytes_per_image: int
    """Kept for the backward pass of the generator, in float32; bfloat16 with `training.compile` takes about half."""
    state_bytes: int
    """Parameters, gradients, moving average and moments: on every worker."""
    checkpoint_bytes: int
    total_steps: int
    num_checkpoints: int
    """Written in the course of the run; ``keep_checkpoints`` of them stay."""


def plan(job: TrainJob) -> Plan:
    """Count what ``job`` would cost. Nothing is trained, and nothing is allocated."""
    with torch.device("meta"):
        objective = build_objective(job)
    batch = _batch(job)
    forward_flops = _flops(lambda: _forward(objective.generator, batch))
    with _saved_bytes() as saved:
        step_flops = _flops(lambda: _phase(objective, "generator", batch))
    if objective.discriminator is not None:
        step_flops += _flops(lambda: _phase(objective, "discriminator", batch))
    trained = sum(_bytes(_owned(objective, phase)) for phase in PHASES)
    held = _bytes(objective.parameters()) + _bytes(objective.buffers()) + _bytes(objective.generator.parameters())
    kept = held + ADAM_MOMENTS * trained
    num_images = len(batch.images_BCHW)
    networks: dict[str, nn.Module | None] = {
        "encoder": objective.generator.encoder,
        "decoder": objective.generator.decoder,
        "discriminator": objective.discriminator,
    }
    # Not more often than a step ends.
    every = max(job.training.checkpoint_every_images or job.training.total_images, job.training.images_per_step)
    return Plan(
        parameters={name: _count(network) for name, network in networks.items() if network is not None},
        forward_flops_per_image=forward_flops // num_images,
        step_flops_per_image=step_flops // num_images,
        activation_bytes_per_image=sum(saved.values()) // num_images,
        state_bytes=kept + trained,
        checkpoint_bytes=kept,
        total_steps=job.training.total_steps,
        num_checkpoints=-(-job.training.total_images // every),
    )


def _batch(job: TrainJob) -> Batch:
    """A step at a position where every term acts."""
    meta = torch.device("meta")
    model, num_images, position, every_steps = job.model, job.training.images_per_step, 0, 1
    if job.objective.kind != "vae":
        adversarial = job.objective.adversarial
        position = adversarial.start_images + adversarial.ramp_images
        if adversarial.gradient_penalty is not None:
            every_steps = adversarial.gradient_penalty.every_steps
    if job.objective.kind != "gan" and job.objective.perceptual is not None:
        every_steps = lcm(every_steps, job.objective.perceptual.every_steps)
    cycle = every_steps * num_images
    position = -(-position // cycle) * cycle
    images = torch.empty(num_images, model.channels, model.image_size, model.image_size, device=meta)
    draws = Draws(job.seed, position, num_images, 0, num_images, meta)
    return Batch(images, draws, position)


def _forward(generator: Generator, batch: Batch) -> None:
    with torch.no_grad():
        if generator.encoder is not None:
            generator.encoder(batch.images_BCHW)
        generator.decoder(torch.empty(len(batch.images_BCHW), *generator.latent_shape, device="meta"))


def _phase(objective: Objective, name: PhaseName, batch: Batch) -> None:
    for phase in PHASES:
        for parameter in _owned(objective, phase):
            parameter.requires_grad = phase == name
    (objective.generator_backward if name == "generator" else objective.discriminator_backward)(batch)


def _owned(objective: Objective, phase: PhaseName) -> list[nn.Parameter]:
    return [parameter for group in objective.groups(phase).values() for parameter in group]


class _FlopCounter(TorchDispatchMode):
    """Sums torch's own formulas. Its FlopCounterMode hooks modules, and then fails on gradients at a leaf."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _flops(action: Callable[[], None]) -> int:
    with _FlopCounter() as counter:  # type: ignore[no-untyped-call]  # torch has not annotated its __init__
        action()
    return counter.total


@contextmanager
def _saved_bytes() -> Iterator[dict[int, int]]:
    """Bytes of the tensors that autograd keeps, by the identity of their storage."""
    saved: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            alive.append(tensor)  # Else another tensor could take its identity.
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
