"""The feature network that comes with the project: a small classifier of grey 32-pixel images.

It serves where the network of the published FID figures would be absurd or out of reach: grey images, no
download, a CPU. Its distances are comparable among runs on the same dataset, and with nothing else.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS_FILE = Path(__file__).parent / "shipped" / "fashion_mnist_cnn.safetensors"
IMAGE_SIZE_PIXELS = 32
NUM_FEATURES = 128
NUM_CLASSES = 10


class FashionMnistCnn(nn.Module):
    """Four stages of convolutions; the features are the last stage's channels, averaged over the image."""

    num_features = NUM_FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *_convolution(1, 16),
            *_convolution(16, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 48),
            nn.MaxPool2d(2),
            *_convolution(48, 64),
            *_convolution(64, 96),
            nn.MaxPool2d(2),
            *_convolution(96, NUM_FEATURES, kernel_size=1),
        )
        self.classify = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features, of shape (B, 128), of grey images in [-1, 1]; other sizes than 32 are resized."""
        if images_BCHW.shape[-1] != IMAGE_SIZE_PIXELS:
            size = (IMAGE_SIZE_PIXELS, IMAGE_SIZE_PIXELS)
            images_BCHW = functional.interpolate(images_BCHW, size, mode="bilinear", antialias=True)
        return torch.as_tensor(self.stages(images_BCHW).mean(dim=(2, 3)))

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Scores of the ten classes, of shape (B, 10)."""
        return torch.as_tensor(self.classify(self(images_BCHW)))


def load_fashion_mnist_cnn() -> FashionMnistCnn:
    """The trained network, in evaluation mode."""
    network = FashionMnistCnn()
    network.load_state_dict(load_file(WEIGHTS_FILE))
    return network.eval()


def _convolution(channels: int, next_channels: int, kernel_size: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, next_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(next_channels),
        nn.ReLU(),
    ]
