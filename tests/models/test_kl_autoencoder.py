"""The KL autoencoder against the real `AutoencoderKL` of diffusers, both ways."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.errors import DataError, JobError
from vaegen_ray.evaluation.diffusers_format import load_diffusers_weights, save_as_diffusers
from vaegen_ray.evaluation.latent_statistics import LatentStatistics
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location

TINY: dict[str, Any] = {"image_size": 32, "widths": (8, 16), "depth": 1, "norm_groups": 4}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "f2": TINY,
    "f4": {**TINY, "widths": (8, 16, 16), "latent_channels": 3, "depth": 2},
    "f8": {**TINY, "widths": (8, 16, 16, 24), "depth": 2},
    "f16": {**TINY, "widths": (8, 8, 16, 16, 24), "latent_channels": 16},
    "grey": {**TINY, "channels": 1},
    "without_attention": {**TINY, "mid_attention": False},
    "without_latent_convolutions": {**TINY, "latent_convolutions": False, "latent_channels": 16},
    "kl_f8": {"image_size": 16},
    "kl_f8_64": {"image_size": 64},
}
"""`kl_f8` has all the widths of Stable Diffusion's."""


def model_of(**settings: Any) -> KlAutoencoderModel:
    """The section of a job."""
    return KlAutoencoderModel.model_validate({"kind": "kl_autoencoder", **settings})


def published(model: KlAutoencoderModel, folder: Path) -> AutoencoderKL:
    """A model made and saved by diffusers, its weights away from their start."""
    torch.manual_seed(1)
    theirs = AutoencoderKL(
        in_channels=model.channels,
        out_channels=model.channels,
        down_block_types=["DownEncoderBlock2D"] * len(model.widths),
        up_block_types=["UpDecoderBlock2D"] * len(model.widths),
        block_out_channels=list(model.widths),
        layers_per_block=model.depth,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_groups,
        use_quant_conv=model.latent_convolutions,
        use_post_quant_conv=model.latent_convolutions,
        mid_block_add_attention=model.mid_attention,
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return theirs.eval()


@torch.no_grad()
def assert_same_outputs(ours: Generator, theirs: AutoencoderKL, model: KlAutoencoderModel) -> None:
    """Assert that both encode and decode alike, in float32 and in float64, where no order of sums matters."""
    torch.manual_seed(2)
    images = torch.rand(2, model.channels, model.image_size, model.image_size, dtype=torch.float64) * 2 - 1
    latents = torch.randn(2, *model.latent_shape, dtype=torch.float64)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        close = partial(torch.testing.assert_close, rtol=0, atol=tolerance)
        ours, theirs = ours.to(dtype).eval(), theirs.to(dtype).eval()
        mean, log_variance = ours.posterior(images.to(dtype))
        posterior = theirs.encode(images.to(dtype)).latent_dist
        close(mean, posterior.mean)
        close(log_variance, posterior.logvar)
        assert tuple(mean.shape[1:]) == model.latent_shape
        close(ours.decoder(latents.to(dtype)), theirs.decode(latents.to(dtype)).sample)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_outputs_agree_with_diffusers_both_ways(name: str, tmp_path: Path) -> None:
    model = model_of(**CONFIGURATIONS[name])
    theirs = published(model, tmp_path / "theirs")
    torch.manual_seed(3)
    ours = Generator(model)
    load_diffusers_weights(ours, Location.of(tmp_path / "theirs"), model)
    assert_same_outputs(ours, theirs, model)

    torch.manual_seed(4)
    other = Generator(model)
    statistics = LatentStatistics((0.5,) * model.latent_channels, (2.0,) * model.latent_channels, 0.5, 0.25, 7)
    save_as_diffusers(other, model, statistics, Location.of(tmp_path / "ours"))
    again = AutoencoderKL.from_pretrained(tmp_path / "ours")
    assert_same_outputs(other, again.eval(), model)
    assert (again.config.scaling_factor, again.config.shift_factor) == (0.25, 0.5)
    assert list(again.config.latents_std) == [2.0] * model.latent_channels


def test_old_names_of_attention_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = model_of(**TINY)
    theirs = published(model, tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    ours = Generator(model)
    load_diffusers_weights(ours, Location.of(tmp_path), model)
    assert_same_outputs(ours, theirs, model)


def test_model_of_other_layers_is_refused_with_the_settings_to_change(tmp_path: Path) -> None:
    published(model_of(**TINY), tmp_path)
    model = model_of(**{**TINY, "widths": (16, 32), "latent_channels": 8})
    with pytest.raises(JobError, match=r"model.latent_channels must be 4, got 8; model.widths must be \[8, 16\], got"):
        load_diffusers_weights(Generator(model), Location.of(tmp_path), model)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = model_of(**TINY)
    theirs = published(model, tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"diffusion_pytorch_model.bin is pickled and is not read"):
        load_diffusers_weights(Generator(model), Location.of(tmp_path), model)


def test_other_class_and_missing_folder_are_refused(tmp_path: Path) -> None:
    model = model_of(**TINY)
    with pytest.raises(DataError, match=r"must hold config.json"):
        load_diffusers_weights(Generator(model), Location.of(tmp_path), model)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(DataError, match=r"must be the config of an AutoencoderKL"):
        load_diffusers_weights(Generator(model), Location.of(tmp_path), model)


@torch.no_grad()
def test_log_variance_is_clamped_so_that_the_kl_stays_finite() -> None:
    ours = Generator(model_of(**TINY))
    ours.encoder.to_posterior.bias.fill_(1e9)
    _, log_variance = ours.posterior(torch.zeros(1, 3, 32, 32))
    assert float(log_variance.max()) == 20.0


def test_frozen_encoder_has_no_graph_and_no_parameters_to_train() -> None:
    ours = Generator(model_of(**TINY, start_from="somewhere", freeze_encoder=True))
    mean, _ = ours.posterior(torch.zeros(1, 3, 32, 32))
    assert not mean.requires_grad
    assert set(ours.groups()) == {"decoder"}
