"""A KL autoencoder as the library diffusers stores its `AutoencoderKL`: `config.json` and safetensors, both ways.

Nothing is unpickled, and the library itself is not needed.
"""

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.errors import DataError, JobError
from vaegen_ray.evaluation.latent_statistics import LatentStatistics
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
OTHER_WEIGHTS = ("diffusion_pytorch_model.fp16.safetensors",)

PREFIXES = (
    ("encoder.to_posterior.", "quant_conv."),
    ("decoder.body.from_latents.", "post_quant_conv."),
    ("decoder.to_images.", "decoder.conv_out."),
    ("decoder.body.", "decoder."),
)
"""Where names of tensors differ: ours, theirs; the first that fits."""

OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names in files that diffusers wrote before 2023."""


def save_as_diffusers(
    generator: Generator, model: KlAutoencoderModel, statistics: LatentStatistics | None, destination: Location
) -> None:
    """Write the folder ``destination``, from which `AutoencoderKL.from_pretrained` loads; the config last."""
    weights = {
        _theirs(name): tensor.detach().float().cpu().contiguous() for name, tensor in generator.state_dict().items()
    }
    (destination / WEIGHTS).write_bytes(bytes_of(weights, metadata={"format": "pt"}))
    (destination / CONFIG).write_text(json.dumps(_config(model, statistics), indent=2) + "\n")


def load_diffusers_weights(generator: Generator, folder: Location, model: KlAutoencoderModel) -> None:
    """Give ``generator`` the weights of the `AutoencoderKL` in ``folder``.

    Raises DataError where there is none or it is damaged, and JobError where its layers are not those of ``model``.
    """
    check_diffusers(folder, model)
    file = _weights_file(folder)
    try:
        found = tensors_of(file.read_bytes())
    except SafetensorError as error:
        raise DataError(f"{file}: must be a safetensors file, cannot be read ({error}); fetch it again") from error
    generator.load_state_dict(_matched(found, generator.state_dict(), file))


def check_diffusers(folder: Location, model: KlAutoencoderModel) -> None:
    """Refuse, from the config alone, what is missing, of another class, or has other layers than ``model``."""
    file = folder / CONFIG
    if not file.exists():
        raise DataError(
            f"model.start_from: {folder} must hold {CONFIG} and {WEIGHTS} of an AutoencoderKL, has no {CONFIG}; give "
            "the folder of the autoencoder itself, in a pipeline its `vae`"
        )
    try:
        config = json.loads(file.read_text())
        theirs = _layers(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: must be the config of an AutoencoderKL, is not ({error!r}); fetch it again"
        ) from error
    ours = _layers(_config(model, None))
    different = [
        f"model.{key} must be {_shown(theirs[key])}, got {_shown(ours[key])}"
        for key in ours
        if ours[key] != theirs[key]
    ]
    if different:
        raise JobError(
            f"model.start_from: the layers must be those of {file}: {'; '.join(different)}; set them as they are there"
        )
    _weights_file(folder)


def _weights_file(folder: Location) -> Location:
    names = folder.names()
    for name in (WEIGHTS, *OTHER_WEIGHTS):
        if name in names:
            return folder / name
    pickled = [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    also = f"{pickled[0]} is pickled and is not read, " if pickled else ""
    raise DataError(
        f"model.start_from: {folder} must hold {WEIGHTS}, {also}got {', '.join(names[:5])}; save the model with "
        "diffusers' save_pretrained(..., safe_serialization=True)"
    )


def _config(model: KlAutoencoderModel, statistics: LatentStatistics | None) -> dict[str, Any]:
    num_stages = len(model.widths)
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.35.0",
        "act_fn": "silu",
        "block_out_channels": list(model.widths),
        "down_block_types": ["DownEncoderBlock2D"] * num_stages,
        "up_block_types": ["UpDecoderBlock2D"] * num_stages,
        "in_channels": model.channels,
        "out_channels": model.channels,
        "latent_channels": model.latent_channels,
        "layers_per_block": model.depth,
        "mid_block_add_attention": model.mid_attention,
        "norm_num_groups": model.norm_groups,
        "sample_size": model.image_size,
        "use_quant_conv": model.latent_convolutions,
        "use_post_quant_conv": model.latent_convolutions,
        "force_upcast": False,
    }
    if statistics is not None:
        config |= {
            "scaling_factor": statistics.scaling_factor,
            "shift_factor": statistics.shift_factor,
            "latents_mean": list(statistics.mean),
            "latents_std": list(statistics.std),
        }
    return config


def _layers(config: dict[str, Any]) -> dict[str, Any]:
    """What decides the layers, by the keys of a job; defaults of old configs filled in as diffusers does."""
    if config.get("_class_name") != "AutoencoderKL":
        raise ValueError(f"_class_name is {config.get('_class_name')!r}")
    before, behind = config.get("use_quant_conv", True), config.get("use_post_quant_conv", True)
    kinds = {*config["down_block_types"], *config["up_block_types"]}
    if before != behind or not kinds <= {"DownEncoderBlock2D", "UpDecoderBlock2D"} or config["act_fn"] != "silu":
        raise ValueError("its blocks, its activation or its one latent convolution are not supported")
    if config["in_channels"] != config["out_channels"]:
        raise ValueError("in_channels and out_channels differ")
    return {
        "channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        "widths": list(config["block_out_channels"]),
        "depth": config["layers_per_block"],
        "norm_groups": config["norm_num_groups"],
        "mid_attention": config.get("mid_block_add_attention", True),
        "latent_convolutions": before,
    }


def _theirs(name: str) -> str:
    return next((name.replace(ours, theirs, 1) for ours, theirs in PREFIXES if name.startswith(ours)), name)


def _matched(found: dict[str, Tensor], expected: dict[str, Tensor], file: Location) -> dict[str, Tensor]:
    """Their tensors by our names, in float32; DataError where one is missing, too many, or of another shape."""
    modern = {_modern(name): tensor for name, tensor in found.items()}
    theirs = {_theirs(name): name for name in expected}
    missing, unknown = theirs.keys() - modern.keys(), modern.keys() - theirs.keys()
    if missing or unknown:
        raise DataError(
            f"{file}: must hold the tensors of its {CONFIG}: {len(missing)} are missing and {len(unknown)} unknown "
            f"(such as {min(missing | unknown)}); fetch both again"
        )
    result = {}
    for their_name, our_name in theirs.items():
        tensor = modern[their_name].to(torch.float32)
        if tensor.dim() == 4 and expected[our_name].dim() == 2:  # Attention as 1x1 convolutions, in older files.
            tensor = tensor.flatten(1)
        shape = tuple(expected[our_name].shape)
        if tensor.shape != shape:
            raise DataError(
                f"{file}: {their_name} must have the shape {shape}, has {tuple(tensor.shape)}; fetch it again"
            )
        result[our_name] = tensor
    return result


def _modern(name: str) -> str:
    if ".attentions." in name:
        for old, new in OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name


def _shown(value: Any) -> str:
    return json.dumps(value)
