"""The public bugs of research/vaegan.md, section 2.9, each as a test that such a bug would fail.

Not here: resume that rounds to the start of an epoch (LlamaGen; `tests/training`), errors swallowed by
``except RuntimeError`` (latent diffusion; there is nothing that swallows).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.functional import softplus

from tests.objectives.steps import (
    CPU,
    FIXED,
    Tree,
    changed,
    gan,
    gradients,
    make_batch,
    network_of,
    noise_images,
    snapshot,
    train_job,
    train_state,
    update,
    vae,
    vae_gan,
)
from tests.objectives.variants import ADAPTIVE, EQUILIBRIUM, FEATURES
from vaegen_ray.objectives.adversarial import discriminator_loss
from vaegen_ray.objectives.build import build_objective
from vaegen_ray.objectives.objective import Batch
from vaegen_ray.randomness import Draws
from vaegen_ray.training.collectives import mean_over_ranks
from vaegen_ray.training.state import TrainState

BOTH_KINDS = pytest.mark.parametrize("settings", [gan(), vae_gan()], ids=["gan", "vae_gan"])
LEARNED: Tree = {"kind": "gaussian", "scale": {"kind": "learned"}}


@BOTH_KINDS
def test_decoder_is_not_trained_to_help_the_discriminator(settings: Tree) -> None:
    """pythae: `discriminator_loss.backward()` on fakes that are not detached adds its gradient to the decoder."""
    objective = build_objective(train_job(settings))
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    assert all(not images.requires_grad for images in batch.shown.values())
    owned = gradients(objective, "discriminator", batch)  # Asserts that no stranger has a gradient.
    assert {network_of(name) for name in owned} == {"adversary.discriminator"}


@pytest.mark.parametrize("shows", ["reconstructions", "both"])
def test_discriminator_sees_reconstructions(shows: str) -> None:
    """pythae: its VAEGAN never shows reconstructions to the discriminator, although the paper does."""
    objective = build_objective(train_job(vae_gan({"shows": shows})))
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    before = gradients(objective, "discriminator", batch)
    batch.shown[0][:8] += 0.5
    after = gradients(objective, "discriminator", batch)
    assert any(not torch.allclose(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["feature_matching", "reconstruction"])
def test_losses_on_features_carry_gradient_to_the_decoder(name: str) -> None:
    """diffusers, train_autoencoderkl.py: LPIPS is computed under `torch.no_grad()`, so it trains nothing."""
    found = []
    for weight in (1.0, 2.0):
        torch.manual_seed(0)
        if name == "feature_matching":
            settings = vae_gan({"feature_matching": {"weight": weight}, "balance": {**FIXED, "weight": 0.0}})
        else:
            settings = vae_gan({"balance": {**FIXED, "weight": 0.0}}, reconstruction=FEATURES, kl={"weight": 0.0})
        objective = build_objective(train_job(settings))
        found.append(gradients(objective, "generator", make_batch(noise_images())))
    last_layer = "generator.decoder.to_images.weight"
    if name == "feature_matching":
        assert (found[1][last_layer] - found[0][last_layer]).norm() > 0
    else:
        assert found[0][last_layer].norm() > 0


@BOTH_KINDS
def test_generator_phase_leaves_no_gradient_in_the_discriminator(settings: Tree) -> None:
    """diffusers and S3Diff: the generator's loss leaks gradients into the discriminator, which then steps on them."""
    objective = build_objective(train_job(settings))
    first, second = make_batch(noise_images()), make_batch(noise_images())
    gradients(objective, "generator", first)
    alone = gradients(objective, "discriminator", first)
    state = train_state(settings)
    state.objective.load_state_dict(objective.state_dict())
    update(state, "generator", second, rate=0.0)
    assert all(parameter.grad is None for parameter in state.objective.discriminator.parameters())
    again = gradients(state.objective, "discriminator", second)
    for name, gradient in alone.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-7)


def test_weights_stay_float32_in_bfloat16() -> None:
    """diffusers, train_autoencoderkl.py: casts the weights themselves to half, below whose ulp the updates are."""
    state = train_state(vae_gan())
    batch = make_batch(noise_images(), precision=torch.bfloat16)
    before = snapshot(state)
    update(state, "generator", batch, rate=1e-3)
    update(state, "discriminator", batch, rate=1e-3)
    after = state.objective.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    name = "generator.decoder.to_images.weight"
    assert 0 < float((after[name] - before[name]).abs().max()) < 1e-6


@BOTH_KINDS
def test_both_networks_learn_from_every_batch(settings: Tree) -> None:
    """diffusers, train_autoencoderkl.py: takes turns by step, so that each network sees half of the batches."""
    state = train_state(settings)
    for step in range(2):
        before = snapshot(state)
        batch = make_batch(noise_images(step), position=8 * step)
        update(state, "generator", batch)
        update(state, "discriminator", batch)
        moved = {network_of(name) for name in changed(before, state.objective.state_dict())}
        assert {"generator.decoder", "adversary.discriminator"} <= moved


@pytest.mark.parametrize("loss", ["hinge", "non_saturating", "least_squares", "relativistic"])
def test_discriminator_learns_from_fakes(loss: str) -> None:
    """LlamaGen, `non_saturating_d_loss`: swapped BCE arguments make the gradient on fake logits exactly zero."""
    real, fake = torch.tensor([0.3, -0.4], requires_grad=True), torch.tensor([0.5, -0.6], requires_grad=True)
    by_real, by_fake = torch.autograd.grad(discriminator_loss(loss, real, fake), (real, fake))
    assert (by_fake > 0).sum() + (by_fake < 0).sum() == 2
    assert by_real[0] != by_real[1] or loss == "hinge"


@pytest.mark.parametrize("num_portions", [2, 4])
def test_accumulation_divides_what_passes_the_networks_at_once(num_portions: int) -> None:
    """LlamaGen: the argument for gradient accumulation exists and is not used."""
    objective = build_objective(train_job(vae_gan({"shows": "both"})))
    lengths = {"encoder": set(), "discriminator": set()}
    objective.generator.encoder.register_forward_hook(lambda _, inputs, __: lengths["encoder"].add(len(inputs[0])))
    objective.discriminator.register_forward_hook(lambda _, inputs, __: lengths["discriminator"].add(len(inputs[0])))
    batch = make_batch(noise_images(), num_portions=num_portions)
    gradients(objective, "generator", batch)
    gradients(objective, "discriminator", batch)
    length = 8 // num_portions
    assert lengths == {"encoder": {length}, "discriminator": {2 * length, 3 * length}}


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"balance": {"kind": "fixed", "weight": 0.1}}, 1),
        ({"balance": {"kind": "gradient_share", "share": 0.4}}, 2),
        ({"balance": {"kind": "gradient_share", "share": 0.4}, "start_images": 100}, 1),
    ],
    ids=["fixed", "by_all_images", "before_the_start"],
)
def test_accumulation_passes_images_twice_only_where_all_decide_and_judges_them_once(
    settings: Tree, passes: int
) -> None:
    """A first pass for every step doubled the cost of the generator's phase, LPIPS and discriminator included."""
    objective = build_objective(train_job(vae_gan({"shows": "reconstructions", **settings})))
    seen = {"encoder": 0, "body": 0, "discriminator": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Tensor, ...], __: Any) -> None:
            seen[name] += len(inputs[0])

        return hook

    objective.generator.encoder.register_forward_hook(count("encoder"))
    objective.generator.decoder.body.register_forward_hook(count("body"))
    objective.discriminator.register_forward_hook(count("discriminator"))
    gradients(objective, "generator", make_batch(noise_images(), num_portions=4))
    judged = 0 if "start_images" in settings else 8
    assert seen == {"encoder": 8 * passes, "body": 8 * passes, "discriminator": judged}


@BOTH_KINDS
def test_discriminator_is_not_stepped_in_the_generators_phase(settings: Tree) -> None:
    """omni_ae: `disc_optimizer.step()` also in the generator's stage trains the discriminator to be fooled."""
    state = train_state(settings)
    before = snapshot(state)
    for position in (0, 8):
        update(state, "generator", make_batch(noise_images(), position=position))
    touched = changed(before, state.objective.state_dict())
    assert touched
    assert not any(name.startswith("adversary") for name in touched)


@pytest.mark.parametrize(
    "settings", [vae(reconstruction=LEARNED), vae_gan(reconstruction=LEARNED)], ids=["vae", "vae_gan"]
)
def test_learned_scale_is_in_the_optimizer_and_finds_its_optimum(settings: Tree) -> None:
    """Latent diffusion: `logvar` is a parameter that `configure_optimizers` forgets, frozen at 0 for ever."""
    state = train_state(settings)
    scales = [float(state.objective.likelihood.learned_log_scale.detach())]
    for step in range(3):
        update(state, "generator", make_batch(noise_images(), position=8 * step), rate=50.0)
        scales.append(float(state.objective.likelihood.learned_log_scale.detach()))
    # The error of an untrained decoder is below 1 a value, so the scale begins by falling.
    assert scales == sorted(scales, reverse=True)
    assert scales[3] < scales[0] - 0.02


def test_decoder_runs_once_a_step() -> None:
    """Latent diffusion: the whole autoencoder runs again, with new noise, for the discriminator's step."""
    objective = build_objective(train_job(vae_gan({"balance": ADAPTIVE})))
    calls = []
    objective.generator.decoder.body.register_forward_hook(lambda *_: calls.append("decoder"))
    objective.generator.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    gradients(objective, "discriminator", batch)
    assert sorted(calls) == ["decoder", "encoder"]


def test_adversarial_gradients_are_not_computed_before_the_start() -> None:
    """Latent diffusion, taming-transformers, diffusers: the adaptive weight is computed, then multiplied by zero."""
    objective = build_objective(train_job(vae_gan({"balance": ADAPTIVE, "start_images": 16})))
    calls = []
    objective.discriminator.register_forward_hook(lambda *_: calls.append("discriminator"))
    gradients(objective, "generator", make_batch(noise_images(), position=8))
    assert not calls
    gradients(objective, "generator", make_batch(noise_images(), position=16))
    assert calls


def test_lecam_averages_are_part_of_the_checkpoint() -> None:
    """SEED-Voken: LeCAM's averages are Python floats, absent from the state and lost on resume."""
    settings = vae_gan({"lecam": {"weight": 0.3}})
    state = train_state(settings)
    for step in range(3):
        batch = make_batch(noise_images(step), position=8 * step)
        update(state, "generator", batch)
        update(state, "discriminator", batch)
    resumed = train_state(settings)
    resumed.load_tensors(state.tensors())
    resumed.load_optimizers(state.optimizers())
    found = []
    for one in (state, resumed):
        batch = make_batch(noise_images(3), position=24)
        update(one, "generator", batch)
        update(one, "discriminator", batch)
        found.append(batch.metrics)
    assert float(state.objective.adversary.lecam.num_updates) == 4
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# ---------------------------------------------------------------------------- several ranks

NUM_STEPS = 3
GLOBAL_NUMBERS = ("generator_loss", "generator_gradient_norm", "discriminator_gradient_norm", "adversarial_weight")
ADAPTIVE_ON_RANKS = vae_gan(
    {
        "balance": ADAPTIVE,
        "lecam": {"weight": 0.3},
        "gradient_penalty": {"r1": 1.0, "r2": 0.5},
        "loss": "non_saturating",
    },
    reconstruction={"kind": "gaussian", "scale": {"kind": "batch_optimal"}},
    kl={"penalty": {"kind": "free_bits", "nats_per_dimension": 0.11}},
)


@dataclass
class Outcome:
    """What a rank, or one process with the whole batch, has after a few steps."""

    tensors: dict[str, Tensor]
    waiting: list[frozenset[str]]
    numbers: list[dict[str, float]]
    """Of each step: what is the same on all ranks."""


def bright_and_dark(step: int) -> Tensor:
    """Four bright images, which fall to rank 0, and four dark ones."""
    return noise_images(step) * 0.2 + torch.tensor([0.8] * 4 + [-0.8] * 4)[:, None, None, None]


def start(settings: Tree) -> TrainState:
    """A discriminator that scores by brightness."""
    state = train_state(settings)
    with torch.no_grad():
        state.objective.discriminator.to_logit.weight.mul_(10)
    return state


def take_steps(settings: Tree, rank: int, num_ranks: int) -> Outcome:
    """Train a few steps on a rank's share."""
    state, waiting, numbers = start(settings), [], []
    length = 8 // num_ranks
    for step in range(NUM_STEPS):
        first = rank * length
        draws = Draws(0, 8 * step, 8, first, first + length, CPU)
        images = bright_and_dark(step)[first : first + length]
        batch = Batch(images, draws, 8 * step, mean_over_ranks=mean_over_ranks)
        update(state, "generator", batch)
        update(state, "discriminator", batch)
        waiting.append(batch.held_back)
        numbers.append({name: float(batch.metrics[name]) for name in GLOBAL_NUMBERS})
    return Outcome(snapshot(state), waiting, numbers)


def gate_between_the_ranks() -> Tree:
    """A gate that rank 0 alone would answer otherwise than rank 1, in the first step."""
    state = start(vae_gan({"balance": EQUILIBRIUM}))
    with torch.no_grad():
        real = [float(softplus(-state.objective.discriminator(part)[0]).mean()) for part in bright_and_dark(0).split(4)]
    assert abs(real[0] - real[1]) > 0.02
    # The upper bound lies between the mean of all and the greater of the two; the lower one is out of reach.
    high = (max(real) + sum(real) / 2) / 2
    return vae_gan({"balance": {**EQUILIBRIUM, "equilibrium": 0.01, "margin": high - 0.01}})


def run_rank(rank: int, num_ranks: int, folder: str, jobs: list[Tree]) -> None:
    """Body of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    outcomes = [take_steps(settings, rank, num_ranks) for settings in jobs]
    dist.destroy_process_group()
    torch.save(outcomes, f"{folder}/{rank}.pt")


def test_ranks_stay_equal_and_decide_alike(tmp_path: Path) -> None:
    """diffusers and vqgan-training: replicas drift as sub-modules bypass DDP; pythae: the gate is rank-local.

    Also R1 in a phase of its own that DDP does not reduce (pytorch 47562), and LeCAM's averages of rank-local
    logits (1d-tokenizer).
    """
    jobs = [ADAPTIVE_ON_RANKS, gate_between_the_ranks()]
    start_processes(run_rank, args=(2, str(tmp_path), jobs), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for settings, first, second in zip(jobs, *ranks, strict=True):
        assert not changed(first.tensors, second.tensors)
        alone = take_steps(settings, 0, 1)
        assert first.waiting == second.waiting == alone.waiting
        for ours, theirs in zip(first.numbers, alone.numbers, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
    # Rank 0 or rank 1 alone would have held the decoder back.
    assert ranks[0][1].waiting[0] == frozenset()
