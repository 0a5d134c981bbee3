"""Train the feature network `fashion_mnist_cnn` on all of Fashion-MNIST, and write its weights beside this file.

    python -m vaegen_ray.evaluation.shipped.train_fashion_mnist_cnn [FOLDER]

FOLDER holds the four idx files as Debian's ``dataset-fashion-mnist`` installs them, or as torchvision's
FashionMNIST downloads them. Takes about eight minutes on two CPU cores; the shipped weights find the
class of 92.9 % of the test images.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vaegen_ray.evaluation.fashion_mnist_cnn import WEIGHTS_FILE, FashionMnistCnn

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SEED = 0
EPOCHS = 6
IMAGES_PER_STEP = 250
PEAK_LEARNING_RATE = 8e-3
LARGEST_SHIFT_PIXELS = 2


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The images and classes of ``split``, `train` or `t10k`.

    Images in [-1, 1] of shape (N, 1, 32, 32), the 28 pixels of the dataset amid a border of black; classes 0
    to 9 of shape (N,).
    """
    pixels = _read_idx(folder / f"{split}-images-idx3-ubyte", header_bytes=16).reshape(-1, 28, 28)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[:, None]
    labels = _read_idx(folder / f"{split}-labels-idx1-ubyte", header_bytes=8)
    return torch.from_numpy(padded).float() / 127.5 - 1, torch.from_numpy(labels).long()


def accuracy(network: FashionMnistCnn, images: Tensor, labels: Tensor) -> float:
    """Fraction of ``images`` whose class is found, in [0, 1]."""
    network.eval()
    with torch.no_grad():
        guesses = torch.cat([network.logits(part).argmax(1) for part in torch.split(images, 500)])
    return float((guesses == labels).double().mean())


def train(images: Tensor, labels: Tensor) -> FashionMnistCnn:
    """Minimise the cross-entropy with AdamW and one cycle of the learning rate, on mirrored and shifted images."""
    torch.manual_seed(SEED)
    network = FashionMnistCnn()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    total_steps = EPOCHS * (len(images) // IMAGES_PER_STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=total_steps)
    for epoch in range(EPOCHS):
        network.train()
        for chosen in torch.split(torch.randperm(len(images)), IMAGES_PER_STEP):
            loss = functional.cross_entropy(network.logits(_augmented(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: last loss {float(loss.detach()):.3f}", flush=True)  # noqa: T201 (a script)
    return network.eval()


def _augmented(images_BCHW: Tensor) -> Tensor:
    if torch.rand(()) < 0.5:
        images_BCHW = images_BCHW.flip(3)
    down, right = torch.randint(-LARGEST_SHIFT_PIXELS, LARGEST_SHIFT_PIXELS + 1, (2,)).tolist()
    return images_BCHW.roll((down, right), dims=(2, 3))


def _read_idx(file: Path, header_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    packed = file.with_name(f"{file.name}.gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else file.read_bytes()
    return np.frombuffer(content, np.uint8, offset=header_bytes).copy()


def main(folder: Path) -> None:
    """Train, measure on the test images, save."""
    network = train(*read_split(folder, "train"))
    test_accuracy = f"{accuracy(network, *read_split(folder, 't10k')):.4f}"
    weights = {name: tensor for name, tensor in network.state_dict().items() if "num_batches_tracked" not in name}
    save_file(weights, WEIGHTS_FILE, {"test_accuracy": test_accuracy, "dataset": "Fashion-MNIST", "seed": str(SEED)})
    print(f"{WEIGHTS_FILE}: {WEIGHTS_FILE.stat().st_size} bytes, test accuracy {test_accuracy}")  # noqa: T201 (a script)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
