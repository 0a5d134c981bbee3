"""Who learns what from whom: phases through the real optimizer, signs, routes, the start and the gate."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from tests.objectives.steps import (
    FIXED,
    IMAGES_PER_STEP,
    AnyObjective,
    Tree,
    assert_same_gradients,
    changed,
    gan,
    gradients,
    make_batch,
    network_of,
    noise_images,
    phase_of,
    snapshot,
    train_job,
    train_state,
    update,
    vae,
    vae_gan,
)
from tests.objectives.variants import ADVERSARIAL, EQUILIBRIUM, FEATURES, VAES
from vaegen_ray.config.objective import EquilibriumBalance
from vaegen_ray.objectives.build import build_objective
from vaegen_ray.training.state import TrainState

LOSSES = ["hinge", "non_saturating", "least_squares", "relativistic"]
OWNED_BY_DISCRIMINATOR = ("adversary.discriminator", "adversary.lecam")


def parameters_of(state: TrainState) -> dict[str, Tensor]:
    """A copy of all parameters, without buffers."""
    return {name: parameter.detach().clone() for name, parameter in state.objective.named_parameters()}


# ---------------------------------------------------------------------------- ownership


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_phase_changes_the_parameters_of_its_own_side_only(name: str) -> None:
    state = train_state(ADVERSARIAL[name])
    batch = make_batch(noise_images(), position=64)
    before = snapshot(state)
    update(state, "generator", batch)
    touched = changed(before, state.objective.state_dict())
    assert touched
    assert not any(tensor.startswith(OWNED_BY_DISCRIMINATOR) for tensor in touched)
    assert all(parameter.grad is None for parameter in state.objective.parameters())

    before = snapshot(state)
    update(state, "discriminator", batch)
    touched = changed(before, state.objective.state_dict())
    assert touched
    assert all(tensor.startswith(OWNED_BY_DISCRIMINATOR) for tensor in touched)
    assert all(parameter.grad is None for parameter in state.objective.parameters())


@pytest.mark.parametrize("name", VAES)
def test_vae_has_one_phase_that_moves_all_of_it(name: str) -> None:
    state = train_state(VAES[name])
    assert [phase.name for phase in state.phases] == ["generator"]
    before = parameters_of(state)
    update(state, "generator", make_batch(noise_images(), position=16))
    assert {network_of(tensor) for tensor in changed(before, parameters_of(state))} == {
        network_of(tensor) for tensor in before
    }


@pytest.mark.parametrize("settings", [vae(), gan(), vae_gan()], ids=["vae", "gan", "vae_gan"])
def test_every_parameter_has_exactly_one_owner(settings: Tree) -> None:
    learned: Tree = {"kind": "gaussian", "scale": {"kind": "learned"}}
    settings = settings if settings["kind"] == "gan" else {**settings, "reconstruction": learned}
    objective = build_objective(train_job(settings))
    groups = [*objective.groups("generator").values(), *objective.groups("discriminator").values()]
    owned = [id(parameter) for group in groups for parameter in group]
    assert sorted(owned) == sorted(id(parameter) for parameter in objective.parameters())


# ---------------------------------------------------------------------------- signs


def score_of_fakes(objective: AnyObjective, images: Tensor) -> Tensor:
    """The discriminator's mean logit of what the generator makes with the draws of the first batch."""
    batch = make_batch(images)
    with torch.no_grad():
        draws = batch.draws.normal("prior", *objective.generator.latent_shape)
        return objective.discriminator(objective.generator.decoder(draws))[0].mean()


def step_along(objective: AnyObjective, found: dict[str, Tensor], length: float) -> None:
    """Move parameters against their gradients by ``length``, as plain gradient descent does."""
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            if name in found:
                parameter -= length / norm * found[name]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["gan", "vae_gan"])
def test_generator_learns_to_raise_and_discriminator_to_lower_the_score_of_fakes(kind: str, loss: str) -> None:
    settings = gan(loss=loss) if kind == "gan" else vae_gan({"loss": loss, "shows": "generated"})
    objective = build_objective(train_job(settings))
    batch = make_batch(noise_images())
    with_term = gradients(objective, "generator", batch)
    if kind == "vae_gan":  # The adversarial part alone: what weight 0.3 adds to weight 0.
        settings["adversarial"]["balance"] = {**FIXED, "weight": 0.0}
        deaf = build_objective(train_job(settings))
        deaf.load_state_dict(objective.state_dict())
        without = gradients(deaf, "generator", make_batch(noise_images()))
        with_term = {name: with_term[name] - without[name] for name in with_term}
    by_discriminator = gradients(objective, "discriminator", batch)

    before = score_of_fakes(objective, batch.images_BCHW)
    generator_moved = copy.deepcopy(objective)
    step_along(generator_moved, with_term, 1e-2)
    assert score_of_fakes(generator_moved, batch.images_BCHW) > before

    discriminator_moved = copy.deepcopy(objective)
    step_along(discriminator_moved, by_discriminator, 1e-2)
    with torch.no_grad():
        real, fake = (
            [float(one.discriminator(images)[0].mean()) for one in (objective, discriminator_moved)]
            for images in (batch.images_BCHW, batch.shown[0])
        )
    assert fake[1] - real[1] < fake[0] - real[0]


# ---------------------------------------------------------------------------- routes


@pytest.mark.parametrize("reconstruction", [{"kind": "gaussian"}, FEATURES], ids=["pixels", "features"])
def test_deaf_encoder_gets_no_adversarial_gradient_while_the_decoder_does(reconstruction: Tree) -> None:
    found = {}
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        adversarial = {"reaches_encoder": False, "balance": {**FIXED, "weight": weight}}
        objective = build_objective(train_job(vae_gan(adversarial, reconstruction=reconstruction)))
        found[weight] = gradients(objective, "generator", make_batch(noise_images()))
    for name, gradient in found[0.3].items():
        if network_of(name) == "generator.encoder":
            torch.testing.assert_close(gradient, found[0.0][name], rtol=1e-4, atol=1e-8)
    decoder = [name for name in found[0.3] if name == "generator.decoder.to_images.weight"]
    assert all((found[0.3][name] - found[0.0][name]).norm() > 1e-3 * found[0.0][name].norm() for name in decoder)


def test_hearing_encoder_gets_the_adversarial_gradient() -> None:
    found = {}
    for hears in (False, True):
        torch.manual_seed(0)
        objective = build_objective(train_job(vae_gan({"reaches_encoder": hears})))
        found[hears] = gradients(objective, "generator", make_batch(noise_images()))
    name = "generator.encoder.to_posterior.weight"
    assert (found[True][name] - found[False][name]).norm() > 1e-3 * found[False][name].norm()


def test_discriminator_gets_no_gradient_of_its_own_features_likelihood() -> None:
    found = []
    for reconstruction in ({"kind": "gaussian"}, FEATURES):
        torch.manual_seed(0)
        objective = build_objective(train_job(vae_gan(reconstruction=reconstruction)))
        batch = make_batch(noise_images())
        gradients(objective, "generator", batch)
        found.append(gradients(objective, "discriminator", batch))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# ---------------------------------------------------------------------------- the start and the ramp


@pytest.mark.parametrize("balance", ["fixed", "adaptive", "gradient_share", "equilibrium"])
@pytest.mark.parametrize("ramp_images", [0, 64])
def test_before_the_start_the_vae_gan_is_a_vae(balance: str, ramp_images: int) -> None:
    settings: Tree = {"kind": balance, "share" if balance == "gradient_share" else "weight": 0.5}
    adversarial = {"balance": settings, "start_images": 80, "ramp_images": ramp_images}
    state = train_state(vae_gan({**adversarial, "feature_matching": {"weight": 1.0}}))
    plain = build_objective(train_job(vae()))
    plain.generator.load_state_dict(state.objective.generator.state_dict())
    position = 80 if ramp_images else 79
    batch = make_batch(noise_images(), position=position)
    found = gradients(state.objective, "generator", batch)
    expected = gradients(plain, "generator", make_batch(noise_images(), position=position))
    assert_same_gradients(found, expected)
    assert "adversarial_loss" not in batch.metrics
    assert not batch.held_back

    after = gradients(state.objective, "generator", make_batch(noise_images(), position=81))
    name = "generator.decoder.to_images.weight"
    assert (after[name] - expected[name]).norm() > 0


@pytest.mark.parametrize("settings", [gan(start_images=1000), vae_gan({"start_images": 1000})], ids=["gan", "vae_gan"])
def test_discriminator_learns_from_the_first_step(settings: Tree) -> None:
    state = train_state(settings)
    before = parameters_of(state)
    batch = make_batch(noise_images())
    update(state, "generator", batch)
    update(state, "discriminator", batch)
    assert "adversary.discriminator" in {network_of(name) for name in changed(before, parameters_of(state))}


def test_equilibrium_before_the_start_lets_both_learn() -> None:
    impossible = {**EQUILIBRIUM, "equilibrium": 100.0, "margin": 1.0}
    for settings in (gan(balance=impossible, start_images=64), vae_gan({"balance": impossible, "start_images": 64})):
        objective = build_objective(train_job(settings))
        before, after = make_batch(noise_images(), position=63), make_batch(noise_images(), position=64)
        for batch in (before, after):
            gradients(objective, "generator", batch)
        assert before.held_back == frozenset()
        assert after.held_back == {"discriminator"}


@pytest.mark.parametrize(("position", "factor"), [(80, 0.0), (96, 0.25), (112, 0.5), (144, 1.0), (1000, 1.0)])
def test_ramp_scales_the_weight_in_images(position: int, factor: float) -> None:
    objective = build_objective(train_job(vae_gan({"start_images": 80, "ramp_images": 64})))
    batch = make_batch(noise_images(), position=position)
    gradients(objective, "generator", batch)
    found = float(batch.metrics["adversarial_weight"]) if factor else 0.0
    assert found == pytest.approx(0.3 * factor)


# ---------------------------------------------------------------------------- the gate


@pytest.mark.parametrize("kind", ["gan", "vae_gan"])
@pytest.mark.parametrize("waiting", ["discriminator", "decoder"])
def test_side_that_waits_stays_to_the_bit_with_its_optimizer(waiting: str, kind: str) -> None:
    open_gate = {**EQUILIBRIUM, "equilibrium": 50.0, "margin": 50.0}
    settings = gan(balance=open_gate) if kind == "gan" else vae_gan({"balance": open_gate})
    state = train_state(settings)
    for step in range(2):
        if step == 1:
            shut = {"discriminator": (100.0, 1.0), "decoder": (0.01, 0.001)}[waiting]
            balance = EquilibriumBalance(kind="equilibrium", weight=0.05, equilibrium=shut[0], margin=shut[1])
            adversary = state.objective.adversary
            adversary.settings = adversary.settings.model_copy(update={"balance": balance})
        parameters, optimizers = parameters_of(state), copy.deepcopy(state.optimizers())
        batch = make_batch(noise_images(step), position=step * IMAGES_PER_STEP)
        update(state, "generator", batch)
        update(state, "discriminator", batch)
        moved = {network_of(name) for name in changed(parameters, parameters_of(state))}
        networks = {"generator.decoder", "adversary.discriminator"} | (
            {"generator.encoder"} if kind == "vae_gan" else set()
        )
        waits = {"discriminator": "adversary.discriminator", "decoder": "generator.decoder"}[waiting]
        assert moved == (networks if step == 0 else networks - {waits})
        assert batch.held_back == (frozenset() if step == 0 else {waiting})

    phase = phase_of(state, "discriminator" if waiting == "discriminator" else "generator")
    index = {id(parameter): i for i, parameter in enumerate(phase.parameters)}
    before, after = optimizers[phase.name]["state"], phase.optimizer.state_dict()["state"]
    for parameter in phase.groups[waiting]:
        i = index[id(parameter)]
        assert all(torch.equal(before[i][key], after[i][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_gate_decides_by_the_cross_entropies_of_the_batch() -> None:
    state = train_state(vae_gan({"balance": EQUILIBRIUM}))
    with torch.no_grad():  # Calls everything real: the last features are one, whatever the image.
        last = state.objective.discriminator.stages[-1][-1]
        last.weight.zero_()
        last.bias.fill_(1.0)
        state.objective.discriminator.to_logit.weight.fill_(3.0 / state.objective.discriminator.to_logit.in_features)
    batch = make_batch(noise_images())
    update(state, "generator", batch)
    fake_cost = softplus(state.objective.discriminator(batch.shown[0])[0]).mean()
    real_cost = softplus(-state.objective.discriminator(batch.images_BCHW)[0]).mean()
    assert float(fake_cost) > 1.03
    assert float(real_cost) < 0.33
    assert batch.held_back == frozenset()  # Both would wait, so both learn.
    assert float(batch.metrics["decoder_waits"]) == float(batch.metrics["discriminator_waits"]) == 0
