"""Weights of LPIPS for tests: of the published shapes, drawn at random."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from vaegen_ray.models.lpips import Lpips


def save_random_lpips(folder: Path, network: str) -> Path:
    """Write `lpips_<network>.safetensors`, named as published files are; heads are positive, as theirs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = Lpips(network).state_dict()
    named = {}
    for name, tensor in tensors.items():
        if name.startswith("trunk."):
            named[name.removeprefix("trunk.")] = tensor
        else:
            named[f"lin{name.split('.')[1]}.model.1.weight"] = tensor.abs()
    file = folder / f"lpips_{network}.safetensors"
    save_file(named, file)
    return file
