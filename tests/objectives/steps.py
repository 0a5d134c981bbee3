"""Small train jobs, batches of noise, and the gradients of one phase."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.objectives.gan import Gan
from vaegen_ray.objectives.objective import Batch, PhaseName
from vaegen_ray.objectives.vae import Vae
from vaegen_ray.objectives.vae_gan import VaeGan
from vaegen_ray.randomness import Draws
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.phases import Phase
from vaegen_ray.training.state import TrainState

CPU = torch.device("cpu")
IMAGES_PER_STEP = 8
Tree = dict[str, Any]
AnyObjective = Vae | Gan | VaeGan

FIXED: Tree = {"kind": "fixed", "weight": 0.3}


def vae_gan(adversarial: Tree | None = None, **settings: Any) -> Tree:
    """The settings of a VAE-GAN with fixed balance, changed as given."""
    adversarial = {"balance": FIXED, **(adversarial or {})}
    return {"kind": "vae_gan", "adversarial": adversarial, "discriminator": {"width": 4, "max_width": 8}, **settings}


def gan(**adversarial: Any) -> Tree:
    """The settings of a GAN with fixed balance, changed as given."""
    adversarial = {"balance": FIXED, **adversarial}
    return {"kind": "gan", "adversarial": adversarial, "discriminator": {"width": 4, "max_width": 8}}


def vae(**settings: Any) -> Tree:
    """The settings of a VAE, changed as given."""
    return {"kind": "vae", **settings}


def train_job(
    objective: Tree, *, channels: int = 3, image_size: int = 16, total_images: int = 10**9, **training: Any
) -> TrainJob:
    """A train job of the objective on tiny networks."""
    small = {"width": 4, "max_width": 8}
    model: Tree = {"kind": "convolutional", "image_size": image_size, "channels": channels}
    model |= {"latent_dim": 4, "decoder": small}
    if objective.get("kind") != "gan":
        model["encoder"] = small
    tree = {
        "kind": "train",
        "name": "test",
        "data": {"source": "shipped:fashion_mnist"},
        "model": model,
        "objective": objective,
        "training": {"total_images": total_images, "images_per_step": IMAGES_PER_STEP, **training},
    }
    return TrainJob.model_validate(tree)


def train_state(objective: Tree, **settings: Any) -> TrainState:
    """The untrained state of :func:`train_job`."""
    return TrainState(train_job(objective, **settings), CPU)


def noise_images(seed: int = 0, channels: int = 3, count: int = IMAGES_PER_STEP) -> Tensor:
    """Smooth noise in [-1, 1], another brightness for each image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=generator) + torch.randn(count, 1, 1, 1, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear").tanh()


def make_batch(images_BCHW: Tensor, *, position: int = 0, num_portions: int = 1, **settings: Any) -> Batch:
    """A whole step's batch of one rank."""
    count = len(images_BCHW)
    draws = Draws(0, position, count, 0, count, CPU)
    return Batch(images_BCHW, draws, position, num_portions=num_portions, **settings)


def gradients(objective: AnyObjective, phase: PhaseName, batch: Batch) -> dict[str, Tensor]:
    """The gradients of one phase by parameter, with all other parameters frozen; they must get none."""
    owned = {id(parameter) for group in objective.groups(phase).values() for parameter in group}
    for parameter in objective.parameters():
        parameter.grad = None
        parameter.requires_grad_(id(parameter) in owned)
    getattr(objective, f"{phase}_backward")(batch)
    strangers = [name for name, p in objective.named_parameters() if p.grad is not None and id(p) not in owned]
    assert not strangers
    found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    assert found
    return found


def update(state: TrainState, name: PhaseName, batch: Batch, rate: float = 1.0) -> None:
    """One step of one phase, as the training loop takes it."""
    phase_of(state, name).update(batch, learning_rate_factor=rate, guard=FiniteGuard(CPU))


def phase_of(state: TrainState, name: PhaseName) -> Phase:
    """The phase with this name."""
    (phase,) = [phase for phase in state.phases if phase.name == name]
    return phase


def snapshot(state: TrainState) -> dict[str, Tensor]:
    """A copy of all tensors of the networks."""
    return {name: tensor.detach().clone() for name, tensor in state.objective.state_dict().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same to the bit."""
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def assert_same_gradients(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, scale: float = 1.0, tolerance: float = 1e-5
) -> None:
    """Assert equality of ``scale * actual`` and ``expected``, for each network relative to its gradient's norm."""
    assert actual.keys() == expected.keys()
    for network in {network_of(name) for name in expected}:
        names = [name for name in expected if network_of(name) == network]
        ours = torch.cat([actual[name].double().flatten() * scale for name in names])
        theirs = torch.cat([expected[name].double().flatten() for name in names])
        assert theirs.norm() > 0, network
        error = float((ours - theirs).norm() / theirs.norm())
        assert error < tolerance, f"{network}: relative error {error:.2e}"


def network_of(name: str) -> str:
    """The encoder, the decoder, the discriminator or the scale to which a parameter belongs."""
    return ".".join(name.split(".")[:2])


def twin(objective: AnyObjective) -> AnyObjective:
    """A float64 copy, for reference computations."""
    return copy.deepcopy(objective).double().requires_grad_(True)
