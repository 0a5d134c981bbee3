"""DiffAugment against the published operations, and its place in a step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.objectives.steps import gradients, make_batch, noise_images, train_job, vae_gan
from vaegen_ray.objectives.augmentation import NUM_DRAWS, augment, color, cutout, draw, translate
from vaegen_ray.objectives.build import build_objective
from vaegen_ray.randomness import Draws

ALL_POLICIES = ("color", "translation", "cutout")
CHANNELS = [1, 3, 5]


def images(channels: int = 3, size: int = 16, count: int = 6) -> Tensor:
    """Noise."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def uniforms(count: int = 6, columns: int = NUM_DRAWS) -> Tensor:
    """Uniform numbers for each image."""
    return torch.rand(count, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def published_translation(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """The shift of data-efficient-gans, pixel by pixel: zeros come in."""
    size = x.shape[-1]
    result = torch.zeros_like(x)
    for i in range(len(x)):
        for row in range(size):
            for column in range(size):
                source_row, source_column = row + int(down[i]), column + int(right[i])
                if 0 <= source_row < size and 0 <= source_column < size:
                    result[i, :, row, column] = x[i, :, source_row, source_column]
    return result


@pytest.mark.parametrize("channels", CHANNELS)
def test_color_is_brightness_saturation_and_contrast_one_after_the_other(channels: int) -> None:
    x, u = images(channels), uniforms(columns=3)
    expected = []
    for image, (brightness, saturation, contrast) in zip(x, u, strict=True):
        y = image + (brightness - 0.5)
        y = (y - y.mean(0)) * (2 * saturation) + y.mean(0)
        expected.append((y - y.mean()) * (contrast + 0.5) + y.mean())
    torch.testing.assert_close(color(x, *u.unbind(1)), torch.stack(expected))


def test_color_of_the_middle_draws_is_the_identity() -> None:
    half = torch.full((6,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(color(images(), half, half, half), images())


@pytest.mark.parametrize("channels", CHANNELS)
def test_translation_is_the_published_one(channels: int) -> None:
    x, u = images(channels), uniforms(columns=2)
    down, right = ((u * 5).floor() - 2).unbind(1)  # An eighth of 16 pixels in each direction.
    assert len(set(down.tolist())) > 2
    assert torch.equal(translate(x, *u.unbind(1)), published_translation(x, down, right))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_translation_reaches_an_eighth_of_the_side_and_lets_zeros_in(size: int) -> None:
    x = torch.ones(2, 1, size, size)
    moved = translate(x, torch.tensor([0.0, 0.99999]), torch.tensor([0.5, 0.5]))
    reach = size // 8
    assert (moved[0, 0, :reach] == 0).all()
    assert (moved[0, 0, reach:] == 1).all()
    assert (moved[1, 0, -reach:] == 0).all()
    assert (moved[1, 0, :-reach] == 1).all()


def test_translation_of_the_middle_draw_is_the_identity() -> None:
    half = torch.full((6,), 0.5, dtype=torch.float64)
    assert torch.equal(translate(images(), half, half), images())


@pytest.mark.parametrize("channels", CHANNELS)
def test_cutout_is_the_published_one(channels: int) -> None:
    x, u = images(channels, count=200), uniforms(200, 2)
    offsets = (u * 17).floor().long()  # A centre from 0 to 16.
    expected = x.clone()
    for i, (row, column) in enumerate(offsets.tolist()):
        rows, columns = (slice(max(centre - 4, 0), min(centre + 4, 16)) for centre in (row, column))
        expected[i, :, rows, columns] = 0
    assert set(offsets.flatten().tolist()) == set(range(17))
    assert torch.equal(cutout(x, *u.unbind(1)), expected)


@pytest.mark.parametrize("policies", [(), ("color",), ("translation",), ("cutout",), ALL_POLICIES])
@pytest.mark.parametrize("channels", CHANNELS)
def test_augmentation_keeps_shape_and_type(channels: int, policies: tuple[str, ...]) -> None:
    x = images(channels).float()
    augmented = augment(x, policies, uniforms().float())
    assert augmented.shape == x.shape
    assert augmented.dtype == torch.float32
    assert (not policies) == torch.equal(augmented, x)


def test_augmentation_applies_the_policies_in_the_published_order() -> None:
    x, u = images(), uniforms()
    expected = cutout(translate(color(x, *u[:, :3].unbind(1)), *u[:, 3:5].unbind(1)), *u[:, 5:].unbind(1))
    assert torch.equal(augment(x, ("cutout", "color", "translation"), u), expected)


def test_augmentation_of_an_image_does_not_depend_on_its_batch() -> None:
    x, u = images(), uniforms()
    alone = torch.cat([augment(x[i : i + 1], ALL_POLICIES, u[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(augment(x, ALL_POLICIES, u), alone)


@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_augmentation_is_differentiable(policy: str) -> None:
    x = images(channels=2, size=8, count=2).requires_grad_()
    function: Callable[[Tensor], Tensor] = lambda y: augment(y, (policy,), uniforms(2))  # noqa: E731
    assert torch.autograd.gradcheck(function, (x,))


@pytest.mark.parametrize("policy", ALL_POLICIES)
def test_augmentation_is_differentiable_twice_for_gradient_penalties(policy: str) -> None:
    x = images().requires_grad_()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    output = (weight * augment(x, (policy,), uniforms()).square()).sum()
    (gradient,) = torch.autograd.grad(output, x, create_graph=True)
    (by_weight,) = torch.autograd.grad(gradient.square().sum(), weight)
    torch.testing.assert_close(by_weight, 2 * gradient.square().sum().detach())


def test_draws_of_the_two_phases_differ() -> None:
    draws = Draws(0, 0, 8, 0, 8, torch.device("cpu"))
    assert draw(draws, "generator").shape == (8, NUM_DRAWS)
    assert not torch.equal(draw(draws, "generator"), draw(draws, "discriminator"))


@pytest.mark.parametrize("phase", ["generator", "discriminator"])
def test_discriminator_sees_an_image_and_its_reconstruction_under_the_same_draw(phase: str) -> None:
    settings = vae_gan({"augment": list(ALL_POLICIES), "shows": "both", "loss": "relativistic"})
    objective = build_objective(train_job(settings))
    seen: list[Tensor] = []
    objective.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    if phase == "discriminator":
        seen.clear()
        gradients(objective, "discriminator", batch)
    real, reconstructed, generated = torch.cat(seen).split(8)
    draws = draw(batch.draws, phase)
    torch.testing.assert_close(real, augment(batch.images_BCHW, ALL_POLICIES, draws))
    torch.testing.assert_close(reconstructed, augment(batch.shown[0][:8], ALL_POLICIES, draws))
    torch.testing.assert_close(generated, augment(batch.shown[0][8:], ALL_POLICIES, draws))


def test_translation_border_is_the_padding_of_the_published_code() -> None:
    x = images(channels=1, count=1)
    padded = functional.pad(x, (2, 2, 2, 2))
    for draw_index in range(5):
        u = torch.tensor([(draw_index + 0.5) / 5], dtype=torch.float64)
        shifted = translate(x, u, torch.full_like(u, 0.5))
        assert torch.equal(shifted, padded[:, :, draw_index : draw_index + 16, 2:18])
