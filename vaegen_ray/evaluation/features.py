"""The networks whose features FID and KID compare, by name, and the check that their weights are there."""

import os
from functools import lru_cache

import torch
from torch import nn

from vaegen_ray.config.job import Features
from vaegen_ray.errors import DataError
from vaegen_ray.evaluation.fashion_mnist_cnn import load_fashion_mnist_cnn
from vaegen_ray.storage import Location

WEIGHTS_VARIABLE = "VAEGEN_FID_WEIGHTS"


def check_features(settings: Features) -> None:
    """Raise DataError now, before anything is trained, where the network's weights are not to be had.

    Loads the network once, on the CPU, so that a damaged file is found too.
    """
    load_feature_network(settings, "cpu")


def load_feature_network(settings: Features, device: torch.device | str) -> nn.Module:
    """The network that turns images in [-1, 1], of shape (B, C, H, W), into features of shape (B, D).

    In evaluation mode on ``device``; the newest network stays in memory for the next evaluation.
    """
    return _load(settings.network, weights_of(settings), str(device))


def weights_of(settings: Features) -> Location | None:
    """The file that holds the network's weights; None where the network finds its own."""
    return _weights_file(settings) if settings.network == "inception_v3_fid" else None


@lru_cache(maxsize=1)
def _load(network: str, weights: Location | None, device: str) -> nn.Module:
    # Building a network draws initial weights from the global generator, which belongs to others.
    with torch.random.fork_rng(devices=[]):
        if network == "fashion_mnist_cnn":
            loaded: nn.Module = load_fashion_mnist_cnn()
        else:
            from vaegen_ray.evaluation import inception  # Of torchvision, which costs seconds to import.

            loaded = inception.load_fid_inception(weights) if weights else inception.load_torchvision_inception()
    return loaded.to(device).requires_grad_(requires_grad=False)


def _weights_file(settings: Features) -> Location:
    path = settings.weights or os.environ.get(WEIGHTS_VARIABLE)
    remedy = (
        "give the InceptionV3 of TensorFlow 2015-12-05 as npz or safetensors (local or s3://) there or in "
        f"${WEIGHTS_VARIABLE}; or use another evaluation.features.network; or remove evaluation.features"
    )
    if not path:
        raise DataError(f"evaluation.features.weights: is needed by 'inception_v3_fid', got nothing; {remedy}")
    file = Location.of(path)
    if not file.exists():
        raise DataError(f"evaluation.features.weights: must be a file, there is none at {file}; {remedy}")
    return file
