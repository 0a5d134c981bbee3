"""LeCAM: the published penalty, the order of penalty and update, and a state that survives."""

import pytest
import torch
from torch.nn.functional import relu

from tests.objectives.steps import gan, make_batch, noise_images, train_state, update, vae_gan
from vaegen_ray.config.objective import Lecam as LecamSettings
from vaegen_ray.objectives.lecam import Lecam

REAL, FAKE = torch.tensor([0.4, 1.2, -0.3]), torch.tensor([-0.8, 0.1, 0.6, -0.2, 0.0, 0.9])


def lecam(decay: float = 0.9) -> Lecam:
    """The module under test."""
    return Lecam(LecamSettings(weight=0.3, decay=decay))


def test_penalty_before_the_first_update_is_zero() -> None:
    assert float(lecam().penalty(REAL, FAKE)) == 0


def test_penalty_is_the_published_one() -> None:
    module = lecam()
    module.update(torch.tensor(0.5), torch.tensor(-0.25))
    expected = relu(REAL + 0.25).pow(2).mean() + relu(0.5 - FAKE).pow(2).mean()
    torch.testing.assert_close(module.penalty(REAL, FAKE), expected)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_averages_are_exponential_and_free_of_their_zero_start(decay: float) -> None:
    module, news = lecam(decay), [1.0, -2.0, 4.0]
    for value in news:
        module.update(torch.tensor(value), torch.tensor(-value))
    weights = [decay**2, decay, 1.0]
    average = sum(w * value for w, value in zip(weights, news, strict=True)) / sum(weights)
    expected = relu(REAL + average).pow(2).mean() + relu(average - FAKE).pow(2).mean()
    torch.testing.assert_close(module.penalty(REAL, FAKE), expected, rtol=1e-4, atol=1e-5)


def test_update_that_is_not_finite_is_ignored() -> None:
    module = lecam()
    module.update(torch.tensor(0.5), torch.tensor(-0.25))
    before = module.averages.clone()
    module.update(torch.tensor(float("nan")), torch.tensor(1.0))
    assert torch.equal(module.averages, before)
    assert float(module.num_updates) == 1


def test_penalty_of_a_step_uses_the_averages_before_it() -> None:
    state = train_state(gan(loss="hinge", lecam={"weight": 0.5, "decay": 0.9}))
    module = state.objective.adversary.lecam
    module.update(torch.tensor(1.0), torch.tensor(-1.0))
    expected = []
    for step in range(3):
        batch = make_batch(noise_images(step), position=8 * step)
        update(state, "generator", batch, rate=0.0)
        real, fake = (state.objective.discriminator(images)[0] for images in (batch.images_BCHW, batch.shown[0]))
        expected.append(module.penalty(real, fake).detach())
        update(state, "discriminator", batch, rate=0.0)
        torch.testing.assert_close(batch.metrics["lecam_penalty"], expected[-1])
        surplus = batch.metrics["discriminator_total_loss"] - batch.metrics["discriminator_loss"]
        torch.testing.assert_close(surplus, 0.5 * expected[-1], atol=1e-6, rtol=1e-4)
        assert float(module.num_updates) == step + 2
    assert min(expected) > 0
    assert len(set(expected)) == 3


def test_averages_follow_the_mean_logits_of_all_portions() -> None:
    averages = []
    for num_portions in (1, 4):
        state = train_state(vae_gan({"lecam": {"weight": 0.5}}))
        batch = make_batch(noise_images(), num_portions=num_portions)
        update(state, "generator", batch, rate=0.0)
        update(state, "discriminator", batch, rate=0.0)
        averages.append(state.objective.adversary.lecam.averages.clone())
    torch.testing.assert_close(averages[0], averages[1])
    expected = 0.01 * torch.stack([batch.metrics["real_logit"], batch.metrics["fake_logit"]])
    torch.testing.assert_close(averages[0], expected)
