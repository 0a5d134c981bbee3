"""The networks InceptionV3: that of the published FID figures (TensorFlow, 2015), and torchvision's.

The two differ in weights, in three poolings, and in how images are resized and scaled. Figures of one are
never comparable with figures of the other.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    Inception_V3_Weights,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from vaegen_ray.data.weight_files import read_weights
from vaegen_ray.errors import DataError
from vaegen_ray.storage import Location

INPUT_PIXELS = 299
NUM_FEATURES = 2048


class FidInceptionA(InceptionA):  # type: ignore[misc]  # torchvision has no types
    """Its average leaves the padding out, as TensorFlow's does."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(_average_without_padding(x))]


class FidInceptionC(InceptionC):  # type: ignore[misc]  # torchvision has no types
    """Its average leaves the padding out, as TensorFlow's does."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(_average_without_padding(x))]


class FidInceptionE(InceptionE):  # type: ignore[misc]  # torchvision has no types
    """Its average leaves the padding out, as TensorFlow's does."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(_average_without_padding(x))]


class FidInceptionEMax(InceptionE):  # type: ignore[misc]  # torchvision has no types
    """The last stage takes the largest value instead of the average: an oddity of the file that FID began with."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        pooled = functional.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        return [*super()._forward(x)[:-1], self.branch_pool(pooled)]


class InceptionV3(nn.Module):
    """The layers of InceptionV3 up to its last average, without the classifier."""

    num_features = NUM_FEATURES

    def __init__(self, network: Inception3) -> None:
        super().__init__()
        for name, stage in network.named_children():
            if name not in ("AuxLogits", "avgpool", "dropout", "fc"):
                self.add_module(name, stage)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features, of shape (B, 2048), of grey or colour images in [-1, 1]."""
        return self.features_after("Mixed_7c", images_BCHW)

    def features_after(self, last_stage: str, images_BCHW: Tensor) -> Tensor:
        """The channels of a stage, averaged over the image."""
        hidden = self.prepared(images_BCHW.expand(-1, 3, -1, -1))
        for name, stage in self.named_children():
            hidden = stage(hidden)
            if name == last_stage:
                break
        return hidden.mean(dim=(2, 3))

    def prepared(self, images_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] resized to 299 pixels, and scaled to [-1, 1] as in training."""
        return _resized(images_BCHW) / 127.5 - 1


class FidInceptionV3(InceptionV3):
    """The network of Heusel et al. 2017: TensorFlow's of 2015-12-05."""

    def __init__(self) -> None:
        blocks = [BasicConv2d, FidInceptionA, InceptionB, FidInceptionC, InceptionD, FidInceptionE, InceptionAux]
        network = Inception3(num_classes=1, aux_logits=False, inception_blocks=blocks, init_weights=False)
        network.Mixed_7c = FidInceptionEMax(2048)
        super().__init__(network)

    def prepared(self, images_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] resized to 299 pixels, then (x - 128) / 128 as in TensorFlow."""
        return (_resized(images_BCHW) - 128) / 128


def load_fid_inception(weights: Location) -> FidInceptionV3:
    """The network of FID with the weights in ``weights``: npz or safetensors, named as in pytorch-fid.

    Raises DataError where the file is of another kind or of another network.
    """
    network = FidInceptionV3()
    found = read_weights(weights)
    # The published file leaves the normalisations' weights out: TensorFlow's has none, so they are one.
    expected = {name: tensor for name, tensor in network.state_dict().items() if "num_batches_tracked" not in name}
    defaults = {name: tensor for name, tensor in expected.items() if name.endswith("bn.weight")}
    filled = {**defaults, **{name: tensor for name, tensor in found.items() if name in expected}}
    missing = expected.keys() - filled.keys()
    wrong = {name for name, tensor in filled.items() if tensor.shape != expected[name].shape}
    if missing or wrong:
        raise DataError(
            f"{weights}: must hold InceptionV3 as pytorch-fid names it, {len(missing)} tensors are missing and "
            f"{len(wrong)} have another shape (such as {min(missing | wrong)}); give the file of TensorFlow 2015-12-05"
        )
    network.load_state_dict(filled)
    return network.eval()


def load_torchvision_inception() -> InceptionV3:
    """InceptionV3 of torchvision; downloads the weights (104 MB) unless torch's cache holds them."""
    try:
        state = Inception_V3_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            "evaluation.features.network: 'inception_v3_torchvision' downloads "
            f"{Inception_V3_Weights.IMAGENET1K_V1.url}, which failed ({error}); put that file into "
            f"{torch.hub.get_dir()}/checkpoints, or use 'inception_v3_fid' with evaluation.features.weights"
        ) from error
    network = Inception3(init_weights=False)
    network.load_state_dict(cast(Mapping[str, Tensor], state))
    return InceptionV3(network).eval()


def _resized(images_BCHW: Tensor) -> Tensor:
    """Values 0 to 255 at 299 pixels; the resize (bilinear, antialiased) is torchmetrics' default."""
    size = (INPUT_PIXELS, INPUT_PIXELS)
    return functional.interpolate(images_BCHW * 127.5 + 127.5, size, mode="bilinear", antialias=True)


def _average_without_padding(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)
