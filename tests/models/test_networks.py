"""Encoder, decoder and discriminator at every size and number of channels that a job may ask for."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vaegen_ray.config.model import ConvolutionalModel, Network
from vaegen_ray.config.objective import ConvolutionalDiscriminator as DiscriminatorSettings
from vaegen_ray.models.blocks import (
    Downsample,
    ResidualBlock,
    SpectralNorm,
    Upsample,
    follow_spectral_norms,
    group_norm,
)
from vaegen_ray.models.convolutional import LOG_VARIANCE_RANGE
from vaegen_ray.models.discriminator import Discriminator
from vaegen_ray.models.generator import Generator
from vaegen_ray.training.ema import Ema

SIZES = [16, 32, 64, 128, 256]
SMALL = Network(width=4, max_width=8)


def generator(image_size: int = 16, channels: int = 3, encoder: Network | None = SMALL) -> Generator:
    """A small generator."""
    torch.manual_seed(0)
    return Generator(
        ConvolutionalModel(
            kind="convolutional", image_size=image_size, channels=channels, latent_dim=5, encoder=encoder, decoder=SMALL
        )
    )


def discriminator(image_size: int = 16, channels: int = 3, **settings: object) -> Discriminator:
    """A small discriminator."""
    torch.manual_seed(0)
    network = DiscriminatorSettings.model_validate({"width": 4, "max_width": 8, **settings})
    return Discriminator(network, image_size=image_size, channels=channels)


def num_parameters(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("image_size", SIZES)
@torch.no_grad()
def test_networks_of_every_size_and_channels_have_their_shapes(image_size: int, channels: int) -> None:
    images = torch.randn(2, channels, image_size, image_size)
    networks = generator(image_size, channels)
    mean, log_variance = networks.encoder(images)
    assert mean.shape == log_variance.shape == (2, 5)
    assert networks.decoder(mean).shape == images.shape
    logits, features = discriminator(image_size, channels)(images)
    assert logits.shape == (2,)
    sides = [image_size // 2**i for i in range(image_size.bit_length() - 2)]
    assert sides[-1] == 4
    assert [tuple(feature.shape[2:]) for feature in features] == [(side, side) for side in sides]
    assert [feature.shape[1] for feature in features] == [min(4 * 2**i, 8) for i in range(len(sides))]


@pytest.mark.parametrize("depth", [1, 3])
@torch.no_grad()
def test_depth_adds_blocks_and_keeps_shapes(depth: int) -> None:
    network = Network(width=4, max_width=8, depth=depth)
    model = ConvolutionalModel(
        kind="convolutional", image_size=16, channels=1, latent_dim=5, encoder=network, decoder=network
    )
    networks = Generator(model)
    for part in (networks.encoder, networks.decoder):
        assert sum(isinstance(module, ResidualBlock) for module in part.modules()) == 3 * depth
    assert networks.decoder(networks.encoder(torch.randn(2, 1, 16, 16))[0]).shape == (2, 1, 16, 16)


def test_generator_of_a_gan_has_no_encoder() -> None:
    networks = generator(encoder=None)
    assert networks.encoder is None
    assert all(name.startswith("decoder") for name, _ in networks.named_parameters())


def test_widths_double_as_the_resolution_halves_up_to_the_maximum() -> None:
    assert Network(width=32, max_width=256).widths(256) == [32, 64, 128, 256, 256, 256, 256]
    assert Network(width=8, max_width=8).widths(16) == [8, 8, 8]


def test_parameters_are_those_of_the_layers() -> None:
    def conv(into: int, out: int, side: int = 3) -> int:
        return into * out * side * side + out

    def residual(width: int) -> int:
        return 2 * (2 * width + conv(width, width))

    networks, widths, latent = generator(), [4, 8, 8], 5
    blocks = sum(residual(width) for width in widths)
    norms_and_strides = 2 * 4 + conv(4, 8) + 2 * 8 + conv(8, 8)
    to_posterior = 8 * 16 * 2 * latent + 2 * latent
    assert num_parameters(networks.encoder) == conv(3, 4) + blocks + norms_and_strides + 2 * 8 + to_posterior
    upsamplings = 2 * 8 + conv(8, 8) + 2 * 8 + conv(8, 4)
    from_latents = latent * 8 * 16 + 8 * 16
    assert num_parameters(networks.decoder) == from_latents + blocks + upsamplings + 2 * 4 + conv(4, 3)
    stages = 2 * conv(4, 4) + conv(4, 8, 4) + 2 * conv(8, 8) + conv(8, 8, 4)
    assert num_parameters(discriminator()) == conv(3, 4) + stages + 8 * 16


# ---------------------------------------------------------------------------- generator


@torch.no_grad()
def test_decoder_is_its_body_and_its_last_layer() -> None:
    decoder, latents = generator().decoder, torch.randn(3, 5)
    features = decoder.body(latents)
    assert features.shape == (3, 4, 16, 16)
    assert torch.equal(decoder(latents), decoder.to_images(features))
    assert isinstance(decoder.to_images, nn.Conv2d)
    assert (decoder.to_images.kernel_size, decoder.to_images.padding) == ((3, 3), (1, 1))


@torch.no_grad()
def test_log_variance_is_clamped_so_that_the_kl_stays_finite() -> None:
    networks = generator()
    networks.encoder.to_posterior.bias[5:] = torch.tensor([-1e9, 1e9, 0.0, -31.0, 21.0])
    _, log_variance = networks.encoder(torch.randn(2, 3, 16, 16))
    assert float(log_variance.min()) == LOG_VARIANCE_RANGE[0]
    assert float(log_variance.max()) == LOG_VARIANCE_RANGE[1]
    assert log_variance.exp().isfinite().all()


@pytest.mark.parametrize("part", ["encoder", "decoder", "discriminator"])
@torch.no_grad()
def test_no_network_mixes_the_images_of_a_batch(part: str) -> None:
    inputs = torch.randn(4, 5) if part == "decoder" else torch.randn(4, 3, 16, 16)

    def run(some: Tensor) -> Tensor:
        if part == "discriminator":
            return discriminator()(some)[0]
        return generator().decoder(some) if part == "decoder" else generator().encoder(some)[0]

    torch.testing.assert_close(run(inputs), torch.cat([run(one[None]) for one in inputs]), rtol=1e-4, atol=1e-5)


def test_every_parameter_of_the_networks_is_reached_by_a_gradient() -> None:
    networks, judge = generator(), discriminator()
    mean, log_variance = networks.encoder(torch.randn(2, 3, 16, 16))
    logits, features = judge(networks.decoder(mean + log_variance))
    (logits.square().sum() + features[-1].sum()).backward()
    for module in (networks, judge):
        assert all(parameter.grad is not None for parameter in module.parameters())


# ---------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 32, 33, 48, 64, 96, 100, 256])
def test_group_norm_divides_any_number_of_channels(channels: int) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert norm(torch.randn(2, channels, 4, 4)).shape == (2, channels, 4, 4)


@torch.no_grad()
def test_resampling_blocks_halve_and_double_the_side() -> None:
    features = torch.randn(2, 4, 8, 8)
    assert Downsample(4, 6)(features).shape == (2, 6, 4, 4)
    assert Upsample(4, 6)(features).shape == (2, 6, 16, 16)
    assert ResidualBlock(4)(features).shape == features.shape


@torch.no_grad()
def test_residual_block_without_its_branch_is_the_identity() -> None:
    block = ResidualBlock(4)
    block.conv2.weight.zero_()
    block.conv2.bias.zero_()
    features = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(features), features)


# ---------------------------------------------------------------------------- spectral norm


def normalised_weights(judge: Discriminator) -> list[Tensor]:
    """The effective weight matrices."""
    layers = [module for module in judge.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [layer.weight.detach().flatten(1) for layer in layers]


def test_spectral_norm_gives_every_layer_the_norm_one() -> None:
    judge = discriminator(spectral_norm=True)
    for _ in range(200):
        follow_spectral_norms(judge)
    for matrix in normalised_weights(judge):
        assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(1.0, abs=1e-3)
    assert all(float(torch.linalg.matrix_norm(matrix, 2)) < 0.95 for matrix in normalised_weights(discriminator()))


def test_spectral_norm_follows_weights_that_learn() -> None:
    judge = discriminator(spectral_norm=True)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for _ in range(20):
        follow_spectral_norms(judge)
        optimizer.zero_grad()
        judge(torch.randn(4, 3, 16, 16))[0].square().sum().backward()
        optimizer.step()
    for matrix in normalised_weights(judge):
        assert 0.9 < float(torch.linalg.matrix_norm(matrix, 2)) < 1.1


@torch.no_grad()
def test_spectral_norm_does_not_move_by_looking() -> None:
    judge = discriminator(spectral_norm=True)
    before = copy.deepcopy(judge.state_dict())
    images = torch.randn(2, 3, 16, 16)
    first, second = judge(images)[0], judge(images)[0]
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], tensor) for name, tensor in judge.state_dict().items())
    follow_spectral_norms(judge)
    assert any(not torch.equal(before[name], tensor) for name, tensor in judge.state_dict().items())


def test_spectral_norm_in_autocast_is_computed_in_float32() -> None:
    weight = torch.randn(8, 4, 3, 3)
    norm = SpectralNorm(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = norm(weight)
    assert torch.equal(inside, norm(weight))
    assert inside.dtype == torch.float32


def test_spectral_norm_gradient_has_no_part_along_the_weight() -> None:
    weight = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    norm = SpectralNorm(weight, first_iterations=500)
    (gradient,) = torch.autograd.grad((norm(weight) * torch.randn(6, 10, dtype=torch.float64)).sum(), weight)
    assert float((gradient * weight).detach().sum()) == pytest.approx(0, abs=1e-9)


# ---------------------------------------------------------------------------- moving average


def test_ema_follows_by_its_decay_and_does_not_learn() -> None:
    networks = generator()
    ema = Ema(networks)
    before = copy.deepcopy(ema.generator.state_dict())
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.add_(1.0)
    ema.follow(networks, decay=0.75)
    for name, tensor in ema.generator.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * networks.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in ema.generator.parameters())
    assert not ema.generator.training


def test_ema_halves_the_distance_in_its_half_life() -> None:
    networks = generator(encoder=None)
    ema = Ema(networks)
    start = networks.decoder.to_images.bias.detach().clone()
    with torch.no_grad():
        networks.decoder.to_images.bias.add_(1.0)
    for _ in range(10):
        ema.follow(networks, decay=0.5**0.1)
    torch.testing.assert_close(ema.generator.decoder.to_images.bias, start + 0.5)
