"""The KL autoencoder against the real `AutoencoderKL` of diffusers, both ways."""

import inspect
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.errors import DataError, JobError
from vaegen_ray.evaluation.diffusers_config import BLOCKS, DEFAULTS
from vaegen_ray.evaluation.diffusers_format import check_diffusers, load_diffusers_weights, save_as_diffusers
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


def published(model: KlAutoencoderModel, folder: Path, **settings: Any) -> AutoencoderKL:
    """A model made with ``settings`` and saved by diffusers, its weights away from their start."""
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
        **settings,
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
        # Those of the encoder lie in memory otherwise: kernels took another order, and outputs were 3e-5 apart.
        for codes in (latents.to(dtype), posterior.mean):
            close(ours.decoder(codes), theirs.decode(codes).sample)


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
    # Pipelines of SDXL would apply these on top of the scale.
    assert again.config.latents_mean is again.config.latents_std is None
    assert again.config.force_upcast
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["_latents_mean"] == [0.5] * model.latent_channels
    assert config["_latents_std"] == [2.0] * model.latent_channels


NORMALISATION = {
    "scaling_factor": 0.5,
    "shift_factor": None,
    "latents_mean": [1.0, 2.0, 3.0, 4.0],
    "latents_std": [4.0, 3.0, 2.0, 1.0],
}


def exported(model: KlAutoencoderModel, published: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config of the export of a run that began with a model of the config ``published``."""
    statistics = LatentStatistics((0.5,) * 4, (2.0,) * 4, 0.5, 0.25, 7)
    save_as_diffusers(Generator(model), model, statistics, Location.of(folder), DEFAULTS | published)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def test_export_of_a_frozen_encoder_has_the_scale_of_the_published_latents(tmp_path: Path) -> None:
    model = model_of(**TINY, start_from="somewhere", freeze_encoder=True)
    config = exported(model, {**NORMALISATION, "force_upcast": False}, tmp_path / "a")
    assert {key: config[key] for key in NORMALISATION} == NORMALISATION
    assert not config["force_upcast"]
    assert exported(model, {}, tmp_path / "b")["scaling_factor"] == 0.18215


def test_export_of_a_trained_encoder_has_the_measured_scale(tmp_path: Path) -> None:
    config = exported(model_of(**TINY, start_from="somewhere"), {**NORMALISATION, "force_upcast": False}, tmp_path)
    assert [config[key] for key in NORMALISATION] == [0.25, 0.5, None, None]
    assert not config["force_upcast"]


def test_defaults_of_configs_are_those_of_diffusers() -> None:
    parameters = inspect.signature(AutoencoderKL.__init__).parameters
    theirs = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in DEFAULTS.items()} == theirs


def edit_config(folder: Path, **changes: Any) -> None:
    """Change values of the config in ``folder``; leave out those that become ``...``."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_config_that_leaves_out_defaults_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    model = model_of(image_size=32, widths=(32, 64), depth=1)
    published(model, tmp_path)
    edit_config(tmp_path, **{key: ... for key in DEFAULTS if key not in ("block_out_channels", *BLOCKS)})
    ours = Generator(model)
    load_diffusers_weights(ours, Location.of(tmp_path), model)
    assert_same_outputs(ours, AutoencoderKL.from_pretrained(tmp_path), model)


def test_other_spellings_in_a_config_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    model = model_of(**{**TINY, "mid_attention": False})
    published(model, tmp_path, act_fn="swish")
    edit_config(tmp_path, mid_block_add_attention=None)
    ours = Generator(model)
    load_diffusers_weights(ours, Location.of(tmp_path), model)
    assert_same_outputs(ours, AutoencoderKL.from_pretrained(tmp_path), model)
    with pytest.raises(JobError, match=r"model.mid_attention must be false, got true"):
        check_diffusers(Location.of(tmp_path), model_of(**TINY))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"act_fn": "relu"}, 'act_fn: must be silu or swish, got "relu"'),
        ({"out_channels": 1}, "out_channels: must equal in_channels (3), got 1"),
        ({"_class_name": "AutoencoderTiny"}, "_class_name: must be 'AutoencoderKL', the only class that is supported"),
        ({"_class_name": ...}, "_class_name: must be 'AutoencoderKL', the only class that is supported, got null"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            'down_block_types: must be DownEncoderBlock2D only, got ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]',
        ),
        ({"up_block_types": ["UpBlock2D"] * 2}, "up_block_types: must be UpDecoderBlock2D only, got"),
        (
            {"block_out_channels": [8, 16, 16]},
            "down_block_types: must have one block for each of block_out_channels (3), got 2",
        ),
        ({"down_block_types": ...}, "down_block_types: must have one block for each of block_out_channels (2), got 1"),
        ({"block_out_channels": [64]}, "block_out_channels: must be 2 to 6 whole numbers from 1, got [64]"),
        ({"norm_num_groups": None}, "norm_num_groups: must be a whole number from 1, got null"),
        ({"scaling_factor": float("nan")}, "scaling_factor: must be a finite number, got NaN"),
        ({"scaling_factor": None}, "scaling_factor: must be a finite number, got null"),
        ({"shift_factor": "x"}, 'shift_factor: must be a finite number, got "x"'),
        ({"latents_std": [1.0, None]}, "latents_std: must be finite numbers, got [1.0, null]"),
        ({"use_quant_conv": False}, "use_post_quant_conv: must equal use_quant_conv (false), got true"),
    ],
)
def test_config_that_is_not_supported_is_refused_by_key_and_value(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    published(model_of(**TINY), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(DataError, match=re.escape(sentence)) as refusal:
        check_diffusers(Location.of(tmp_path), model_of(**TINY))
    assert "start from another model" in str(refusal.value)
    assert "fetch" not in str(refusal.value)


def sharded(model: KlAutoencoderModel, folder: Path, variant: str | None = None) -> list[Path]:
    """The files of the shards of a model that diffusers saved in several."""
    published(model, folder).save_pretrained(folder, max_shard_size="4KB", variant=variant)
    (folder / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("*-of-*.safetensors"))
    assert len(shards) > 1
    return shards


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read(variant: str | None, tmp_path: Path) -> None:
    model = model_of(**TINY)
    sharded(model, tmp_path, variant)
    ours = Generator(model)
    load_diffusers_weights(ours, Location.of(tmp_path), model)
    assert_same_outputs(ours, AutoencoderKL.from_pretrained(tmp_path, variant=variant), model)


def test_shards_that_are_not_whole_are_refused_by_the_file(tmp_path: Path) -> None:
    folder, model = Location.of(tmp_path), model_of(**TINY)
    shard, *_ = sharded(model, tmp_path)
    content = shard.read_bytes()
    shard.write_bytes(content[:50])
    with pytest.raises(DataError, match=rf"{shard.name}: must be a safetensors file"):
        load_diffusers_weights(Generator(model), folder, model)
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name}: must be there, .*index.json names it as a shard"):
        check_diffusers(folder, model)
    shard.write_bytes(content)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    for damaged in ("{", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {}}'):
        index.write_text(damaged)
        with pytest.raises(DataError, match=r"diffusion_pytorch_model.safetensors.index.json: "):
            check_diffusers(folder, model)
    index.unlink()
    with pytest.raises(DataError, match=rf"got {shard.name}, a shard, without its index"):
        check_diffusers(folder, model)


def test_variant_is_read_where_it_is_the_only_one(tmp_path: Path) -> None:
    model, file = model_of(**TINY), tmp_path / "diffusion_pytorch_model.safetensors"
    published(model, tmp_path)
    file.rename(tmp_path / "diffusion_pytorch_model.bf16.safetensors")
    ours = Generator(model)
    load_diffusers_weights(ours, Location.of(tmp_path), model)
    assert_same_outputs(ours, AutoencoderKL.from_pretrained(tmp_path, variant="bf16"), model)
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"got .*model.bf16.safetensors, .*model.fp16.safetensors; copy it with one"):
        check_diffusers(Location.of(tmp_path), model)


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensor: tensor.to(torch.int8), "must be of floating-point numbers, is int8; quantised weights are not"),
        (lambda tensor: tensor.where(tensor != tensor.max(), torch.nan), "must be finite, holds NaN or infinity"),
        (lambda tensor: tensor / 0, "must be finite, holds NaN or infinity"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_the_tensor(
    change: Callable[[torch.Tensor], torch.Tensor], sentence: str, tmp_path: Path
) -> None:
    model, name = model_of(**TINY), "encoder.conv_in.weight"
    published(model, tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: change(tensors[name])}, file)
    with pytest.raises(DataError, match=f"{file.name}: {name} {sentence}"):
        load_diffusers_weights(Generator(model), Location.of(tmp_path), model)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = model_of(**TINY)
    theirs = published(model, tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"diffusion_pytorch_model.bin is pickled and is not read"):
        load_diffusers_weights(Generator(model), Location.of(tmp_path), model)


def test_missing_folder_and_what_is_no_config_are_refused(tmp_path: Path) -> None:
    model = model_of(**TINY)
    with pytest.raises(DataError, match=r"must hold config.json"):
        load_diffusers_weights(Generator(model), Location.of(tmp_path), model)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(DataError, match=r"config.json: must be the config of an AutoencoderKL, is"):
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
