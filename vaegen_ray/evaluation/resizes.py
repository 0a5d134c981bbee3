"""How each feature network brings images to its own size; without torch, for those who only tell of scores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resize:
    """Of one network."""

    slug: str
    """For file names."""
    sentence: str


RESIZES = {
    "fashion_mnist_cnn": Resize("bilinear-antialiased-32", "resized to 32 pixels, bilinear, antialiased"),
    "inception_v3_fid": Resize("bilinear-antialiased-299", "resized to 299 pixels, bilinear, antialiased"),
    "inception_v3_torchvision": Resize("bilinear-antialiased-299", "resized to 299 pixels, bilinear, antialiased"),
}
