"""The perceptual term, and the networks of LPIPS with their published weights."""

import os
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vaegen_ray.config.objective import LpipsName, LpipsNetwork, Perceptual
from vaegen_ray.data.weight_files import read_weights
from vaegen_ray.errors import DataError
from vaegen_ray.models.lpips import Lpips
from vaegen_ray.objectives.objective import Batch, Portion
from vaegen_ray.storage import Location

WEIGHTS_VARIABLE = "VAEGEN_LPIPS_WEIGHTS"
SUFFIXES = (".safetensors", ".npz")
PACKAGE_NAMES = {"vgg16": "vgg", "alexnet": "alex", "squeezenet": "squeeze"}


class Seen(NamedTuple):
    """The images of a portion that the perceptual term looks at, and how much each counts."""

    first_to_last: tuple[int, ...]
    scale: float
    """Makes the mean over the portion's images of what is seen an unbiased share of the mean over a step's."""


class PerceptualTerm:
    """LPIPS of reconstructions. No module: the weights of its network are no part of a checkpoint."""

    def __init__(self, settings: Perceptual) -> None:
        self.settings = settings

    def is_due(self, batch: Batch) -> bool:
        """Whether this step has the term."""
        return batch.position // batch.draws.images_per_step % self.settings.every_steps == 0

    @property
    def weight(self) -> float:
        """In L, at a step that has the term: as much stronger as it is rarer."""
        return self.settings.weight * self.settings.every_steps

    def mean(self, reconstructions_BCHW: Tensor, portion: Portion, batch: Batch) -> Tensor:
        """The mean distance over a portion, scaled so that all portions and ranks average to that of the seen images.

        What is seen depends on an image's place in the global step alone, so one rank or many see the same.
        The features of the images are computed once, without a graph.
        """
        seen = self._seen(portion)
        if not seen.first_to_last:
            return reconstructions_BCHW[:0].sum()
        images, reconstructions = portion.images_BCHW, reconstructions_BCHW
        if len(seen.first_to_last) < len(images):
            rows = _on_device(seen.first_to_last, images.device)
            images, reconstructions = images[rows], reconstructions[rows]
        network = load_lpips(self.settings, images.device)
        with batch.networks():
            with torch.no_grad():
                features = network.trunk(images)
            others = network.trunk(reconstructions)
        return network.distance(features, others).sum() * seen.scale / len(portion.images_BCHW)

    def _seen(self, portion: Portion) -> Seen:
        fraction, draws = self.settings.images_fraction, portion.draws
        chosen = tuple(
            index
            for index in range(len(portion.images_BCHW))
            if int((draws.first + index + 1) * fraction) > int((draws.first + index) * fraction)
        )
        return Seen(chosen, draws.images_per_step / int(draws.images_per_step * fraction))


@lru_cache(maxsize=64)
def _on_device(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Copied once: to index with a list makes the host wait for a GPU at every step."""
    return torch.tensor(rows, device=device)


def check_lpips(settings: LpipsNetwork) -> None:
    """Raise DataError now, before anything is trained, where the network's weights are not to be had."""
    load_lpips(settings, torch.device("cpu"))


def load_lpips(settings: LpipsNetwork, device: torch.device) -> Lpips:
    """The frozen network with its weights, in evaluation mode on ``device``; loaded once in a process.

    Without numbers on the device `meta`, where costs are counted.
    """
    return _load(settings.network, settings.weights, os.environ.get(WEIGHTS_VARIABLE), device)


@lru_cache(maxsize=4)
def _load(name: LpipsName, weights: str | None, folder: str | None, device: torch.device) -> Lpips:
    # Every step asks for the network: no look at a disk or a store comes before the cache.
    with torch.device("meta"):
        network = Lpips(name)
    if device.type != "meta":
        file = _weights_file(name, weights, folder)
        network.load_state_dict(_matched(network, read_weights(file), file), assign=True)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this pair
    else:
        network = network.to(device)
    return network.eval().requires_grad_(requires_grad=False)


def _weights_file(network: LpipsName, weights: str | None, folder: str | None) -> Location:
    """Where the weights are; DataError, with the remedy, where they are not."""
    name = f"lpips_{network}"
    remedy = (
        f"give the file in the section's key `weights`, or a folder with {name}.safetensors in ${WEIGHTS_VARIABLE} "
        '(local or s3://). With the package lpips installed, `python -c "import lpips, safetensors.torch as s; '
        f"s.save_model(lpips.LPIPS(net='{PACKAGE_NAMES[network]}'), '{name}.safetensors')\"` makes it"
    )
    if weights is not None:
        candidates = [Location.of(weights)]
    elif folder:
        candidates = [Location.of(folder) / f"{name}{suffix}" for suffix in SUFFIXES]
    else:
        raise DataError(f"LPIPS needs the weights of '{network}', got nothing; {remedy}")
    for file in candidates:
        if file.exists():
            return file
    raise DataError(f"LPIPS needs the weights of '{network}', there is no file {candidates[0]}; {remedy}")


def _matched(network: Lpips, found: dict[str, Tensor], file: Location) -> dict[str, Tensor]:
    """The tensors by our names: files name the trunk `features.N` or `net.sliceM.N`, the heads `linK` or `lins.K`."""
    renamed = {}
    for name, tensor in found.items():
        parts = name.split(".")
        if parts[0] == "features":
            renamed[f"trunk.{name}"] = tensor
        elif parts[0] == "net" and len(parts) > 3:
            renamed[".".join(["trunk.features", *parts[2:]])] = tensor
        elif parts[0] == "lins":
            renamed[f"heads.{parts[1]}.weight"] = tensor
        elif parts[0].startswith("lin") and parts[0][3:].isdigit():
            renamed[f"heads.{parts[0][3:]}.weight"] = tensor
    expected = network.state_dict()
    missing = expected.keys() - renamed.keys()
    wrong = {name for name in expected.keys() & renamed.keys() if renamed[name].shape != expected[name].shape}
    if missing or wrong:
        raise DataError(
            f"{file}: must hold the trunk and the heads of LPIPS with another network or version than it does: "
            f"{len(missing)} tensors are missing and {len(wrong)} have another shape (such as "
            f"{min(missing | wrong)}); give the file of the network that the job names"
        )
    return {name: renamed[name].float() for name in expected}
