"""`config.json` of diffusers' `AutoencoderKL`: what a published one says of its layers, and what an export says."""

import json
import math
from collections.abc import Iterator
from typing import Any

from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import DataError, JobError
from vaegen_ray.evaluation.latent_statistics import LatentStatistics
from vaegen_ray.storage import Location

CONFIG = "config.json"
CLASS = "AutoencoderKL"

DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""Of the constructor of `AutoencoderKL` (diffusers 0.42): what holds for a key that a file leaves out."""

NORMALISATION = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""By which diffusion models scale the latents."""

COUNTS = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
ACTIVATIONS = ("silu", "swish")
"""Two names of one function."""


def read_config(folder: Location, name: str = CONFIG) -> dict[str, Any]:
    """The config in ``folder``, with the defaults of what it leaves out; DataError where there is none."""
    file = folder / name
    if not file.exists():
        raise DataError(
            f"model.start_from: {folder} must hold {CONFIG} and safetensors of an {CLASS}, has no {CONFIG}; give "
            "the folder of the autoencoder itself, in a pipeline its `vae`"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"{file}: must be the config of an {CLASS}, is no JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise DataError(f"{file}: must be the config of an {CLASS}, is a {type(config).__name__}; fetch it again")
    if config.get("_class_name") != CLASS:
        raise DataError(
            f"{file}: _class_name: must be '{CLASS}', the only class that is supported, got "
            f"{_shown(config.get('_class_name'))}; start from another model"
        )
    return DEFAULTS | config


def keep_config(folder: Location, run: RunDirectory) -> None:
    """Keep the config of the model in ``folder`` with the run that begins with it."""
    run.published.write_text(json.dumps(read_config(folder), indent=2) + "\n")


def kept_config(model: KlAutoencoderModel, run: RunDirectory) -> dict[str, Any] | None:
    """The config of what a run began with; None where that was nothing."""
    return None if model.start_from is None else read_config(run.root, run.published.name)


def check_layers(folder: Location, model: KlAutoencoderModel) -> None:
    """Refuse, from the config alone, what has layers that no model here has, or others than ``model``."""
    config, file = read_config(folder), folder / CONFIG
    problems = list(_unsupported(config))
    if problems:
        raise DataError(f"{file}: {'; '.join(problems)}; this one is not supported, start from another model")
    ours, theirs = _layers(config_of(model)), _layers(config)
    different = [
        f"model.{key} must be {_shown(theirs[key])}, got {_shown(ours[key])}"
        for key in ours
        if ours[key] != theirs[key]
    ]
    if different:
        raise JobError(
            f"model.start_from: the layers must be those of {file}: {'; '.join(different)}; set them as they are there"
        )


def config_of(
    model: KlAutoencoderModel,
    statistics: LatentStatistics | None = None,
    published: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The config of ``model``, which began with a model of the config ``published`` where that is given."""
    num_stages = len(model.widths)
    return {
        "_class_name": CLASS,
        "_diffusers_version": "0.35.0",
        "act_fn": "silu",
        "block_out_channels": list(model.widths),
        **{key: [block] * num_stages for key, block in BLOCKS.items()},
        "in_channels": model.channels,
        "out_channels": model.channels,
        "latent_channels": model.latent_channels,
        "layers_per_block": model.depth,
        "mid_block_add_attention": model.mid_attention,
        "norm_num_groups": model.norm_groups,
        "sample_size": model.image_size,
        "use_quant_conv": model.latent_convolutions,
        "use_post_quant_conv": model.latent_convolutions,
        "force_upcast": (published or DEFAULTS)["force_upcast"],
        **_normalisation(model, statistics, published),
        **_measured(statistics),
    }


def _normalisation(
    model: KlAutoencoderModel, statistics: LatentStatistics | None, published: dict[str, Any] | None
) -> dict[str, Any]:
    """One for all pipelines: those of SDXL would apply ``latents_mean`` and ``latents_std`` on top of the scale."""
    if model.freeze_encoder and published is not None:
        # The latents are the published model's, and diffusion models trained on them expect its scale.
        return {key: published[key] for key in NORMALISATION}
    if statistics is None:
        return {}
    return {
        "scaling_factor": statistics.scaling_factor,
        "shift_factor": statistics.shift_factor,
        "latents_mean": None,
        "latents_std": None,
    }


def _measured(statistics: LatentStatistics | None) -> dict[str, Any]:
    """Of each channel, under names that diffusers passes over, because they begin with an underscore."""
    if statistics is None:
        return {}
    return {"_latents_mean": list(statistics.mean), "_latents_std": list(statistics.std)}


def _unsupported(config: dict[str, Any]) -> Iterator[str]:
    """What no model here has, a sentence each."""
    for key in COUNTS:
        if not _is_count(config[key]):
            yield f"{key}: must be a whole number from 1, got {_shown(config[key])}"
    if config["in_channels"] != config["out_channels"]:
        yield f"out_channels: must equal in_channels ({config['in_channels']}), got {config['out_channels']}"
    if config["act_fn"] not in ACTIVATIONS:
        yield f"act_fn: must be {' or '.join(ACTIVATIONS)}, got {_shown(config['act_fn'])}"
    widths = config["block_out_channels"]
    if not isinstance(widths, list) or not all(_is_count(width) for width in widths) or not 2 <= len(widths) <= 6:
        yield f"block_out_channels: must be 2 to 6 whole numbers from 1, got {_shown(widths)}"
        return
    for key, block in BLOCKS.items():
        kinds = config[key]
        if not isinstance(kinds, list) or any(kind != block for kind in kinds):
            yield f"{key}: must be {block} only, got {_shown(kinds)}"
        elif len(kinds) != len(widths):
            yield f"{key}: must have one block for each of block_out_channels ({len(widths)}), got {len(kinds)}"
    for key in ("scaling_factor", "shift_factor"):
        if not _is_finite(config[key]) and not (key == "shift_factor" and config[key] is None):
            yield f"{key}: must be a finite number, got {_shown(config[key])}"
    for key in ("latents_mean", "latents_std"):
        if config[key] is not None and not (isinstance(config[key], list) and all(map(_is_finite, config[key]))):
            yield f"{key}: must be finite numbers, got {_shown(config[key])}"
    before, behind = config["use_quant_conv"], config["use_post_quant_conv"]
    if bool(before) != bool(behind):
        yield f"use_post_quant_conv: must equal use_quant_conv ({_shown(before)}), got {_shown(behind)}"


def _layers(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the layers, by the keys of a job."""
    return {
        "channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        "widths": config["block_out_channels"],
        "depth": config["layers_per_block"],
        "norm_groups": config["norm_num_groups"],
        # Whatever Python takes for false, such as null, means none to diffusers.
        "mid_attention": bool(config["mid_block_add_attention"]),
        "latent_convolutions": bool(config["use_quant_conv"]),
    }


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return json.dumps(value)
