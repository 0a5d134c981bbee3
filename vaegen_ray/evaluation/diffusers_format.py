"""A KL autoencoder as the library diffusers stores its `AutoencoderKL`: `config.json` and safetensors, both ways.

Nothing is unpickled, and the library itself is not needed.
"""

import json
import re
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.errors import DataError
from vaegen_ray.evaluation.diffusers_config import CONFIG, check_layers, config_of
from vaegen_ray.evaluation.latent_statistics import LatentStatistics
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARD = re.compile(r"-\d+-of-\d+\.")

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
    generator: Generator,
    model: KlAutoencoderModel,
    statistics: LatentStatistics | None,
    destination: Location,
    published: dict[str, Any] | None = None,
) -> None:
    """Write the folder ``destination``, from which `AutoencoderKL.from_pretrained` loads; the config last.

    ``published`` is the config of the model that the run began with, where it did.
    """
    weights = {
        _theirs(name): tensor.detach().float().cpu().contiguous() for name, tensor in generator.state_dict().items()
    }
    (destination / WEIGHTS).write_bytes(bytes_of(weights, metadata={"format": "pt"}))
    config = config_of(model, statistics, published)
    (destination / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_diffusers_weights(generator: Generator, folder: Location, model: KlAutoencoderModel) -> None:
    """Give ``generator`` the weights of the `AutoencoderKL` in ``folder``.

    Raises DataError where there is none or it is damaged, and JobError where its layers are not those of ``model``.
    """
    check_layers(folder, model)
    found: dict[str, Tensor] = {}
    chosen = _chosen(folder)
    for file in _files(chosen):
        try:
            found |= tensors_of(file.read_bytes())
        except SafetensorError as error:
            raise DataError(f"{file}: must be a safetensors file, cannot be read ({error}); fetch it again") from error
    generator.load_state_dict(_matched(found, generator.state_dict(), chosen))


def check_diffusers(folder: Location, model: KlAutoencoderModel) -> None:
    """Refuse, without reading weights, what is missing, of another class, or has other layers than ``model``."""
    check_layers(folder, model)
    _files(_chosen(folder))


def _chosen(folder: Location) -> Location:
    """The file of the weights, or the index of their shards; of a variant (`.fp16.`) where there is no other."""
    names = folder.names()
    return folder / (next((name for name in (INDEX, WEIGHTS) if name in names), None) or _only_variant(folder, names))


def _files(chosen: Location) -> list[Location]:
    if not chosen.name.endswith(".json"):
        return [chosen]
    shards, names = _shards(chosen), chosen.parent.names()
    if missing := [shard for shard in shards if shard not in names]:
        raise DataError(f"{chosen.parent / missing[0]}: must be there, {chosen.name} names it as a shard; fetch it too")
    return [chosen.parent / shard for shard in shards]


def _only_variant(folder: Location, names: list[str]) -> str:
    weights = [name for name in names if name.startswith(STEM) and name.endswith(".safetensors")]
    shards = [name for name in weights if SHARD.search(name)]
    indices = [name for name in names if name.startswith(f"{WEIGHTS}.index.") and name.endswith(".json")]
    variants = [name for name in weights if name not in shards] + indices
    if len(variants) == 1:
        return variants[0]
    rule = f"model.start_from: {folder} must hold {WEIGHTS}"
    if variants:
        raise DataError(f"{rule} or one variant of it, got {', '.join(variants)}; copy it with one of them alone")
    if shards:
        raise DataError(f"{rule}, got {shards[0]}, a shard, without its index {INDEX}; fetch it too")
    pickled = [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    also = f"{pickled[0]} is pickled and is not read, " if pickled else ""
    raise DataError(
        f"{rule}, {also}got {', '.join(names[:5])}; save the model with diffusers' "
        "save_pretrained(..., safe_serialization=True)"
    )


def _shards(index: Location) -> list[str]:
    """The files that an index names."""
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{index}: must be an index of shards with a weight_map, is none ({error!r}); fetch it again"
        ) from error
    if not shards or not all(isinstance(shard, str) for shard in shards):
        raise DataError(f"{index}: weight_map: must name the file of each tensor, got {shards!r}; fetch it again")
    return sorted(shards)


def _theirs(name: str) -> str:
    return next((name.replace(ours, theirs, 1) for ours, theirs in PREFIXES if name.startswith(ours)), name)


def _matched(found: dict[str, Tensor], expected: dict[str, Tensor], file: Location) -> dict[str, Tensor]:
    """Their tensors by our names, in float32; DataError where one is missing, too many, misshapen, or no numbers."""
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
        tensor = modern[their_name]
        if not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise DataError(
                f"{file}: {their_name} must be of floating-point numbers, is {dtype}; quantised weights are not "
                "supported, fetch those that they were made from"
            )
        tensor = tensor.to(torch.float32)
        if not tensor.isfinite().all():
            raise DataError(f"{file}: {their_name} must be finite, holds NaN or infinity; fetch it again")
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
