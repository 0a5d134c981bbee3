"""LPIPS against the published package, with the same weights: a random trunk and the package's own heads."""

import os
from pathlib import Path

import lpips
import pytest
import torch
from safetensors.torch import save_file, save_model

from vaegen_ray.config.objective import LpipsNetwork
from vaegen_ray.errors import DataError
from vaegen_ray.models.lpips import Lpips
from vaegen_ray.objectives.perceptual import PACKAGE_NAMES, load_lpips

CPU = torch.device("cpu")


def package(network: str) -> torch.nn.Module:
    """The package's metric; its trunk's published weights would have to be downloaded."""
    torch.manual_seed(0)
    return lpips.LPIPS(net=PACKAGE_NAMES[network], pretrained=True, pnet_rand=True, verbose=False).eval()


def weights_of(theirs: torch.nn.Module, file: Path) -> None:
    """Save the package's metric by the command of the README and of the error."""
    save_model(theirs, str(file))


@pytest.mark.parametrize("network", PACKAGE_NAMES)
def test_distance_and_gradient_agree_with_the_package(network: str, tmp_path: Path) -> None:
    theirs = package(network)
    weights_of(theirs, tmp_path / "w.safetensors")
    ours = load_lpips(LpipsNetwork(network=network, weights=str(tmp_path / "w.safetensors")), CPU)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    others = (images + 0.3 * torch.randn_like(images)).clamp(-1, 1).requires_grad_()
    expected, found = theirs(images, others).flatten(), ours(images, others)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    (theirs_gradient,) = torch.autograd.grad(expected.sum(), others)
    (gradient,) = torch.autograd.grad(found.sum(), others)
    assert float((gradient - theirs_gradient).norm() / theirs_gradient.norm()) < 1e-4
    assert float(gradient.norm()) > 0
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_zero_features_have_a_finite_gradient() -> None:
    ours = Lpips("alexnet")
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    ours(torch.ones(1, 3, 64, 64), images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_missing_weights_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VAEGEN_LPIPS_WEIGHTS", raising=False)
    with pytest.raises(DataError, match=r"needs the weights of 'vgg16', got nothing.*VAEGEN_LPIPS_WEIGHTS.*save_model"):
        load_lpips(LpipsNetwork(), CPU)
    monkeypatch.setenv("VAEGEN_LPIPS_WEIGHTS", str(tmp_path))
    with pytest.raises(DataError, match=r"there is no file .*lpips_vgg16.safetensors"):
        load_lpips(LpipsNetwork(), CPU)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights_of(package("squeezenet"), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"tensors are missing"):
        load_lpips(LpipsNetwork(network="alexnet", weights=str(tmp_path / "w.safetensors")), CPU)


def test_weights_in_an_object_store_are_fetched_once(s3_bucket: str, tmp_path: Path) -> None:
    from vaegen_ray.data.weight_files import read_weights
    from vaegen_ray.storage import Location

    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    file = Location.of(s3_bucket) / "w.safetensors"
    file.upload(tmp_path / "w.safetensors")
    first = read_weights(file)
    cached = list((Path(os.environ["VAEGEN_CACHE"]) / "weights").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in cached if path.suffix != ".lock"}
    again = read_weights(file)
    assert torch.equal(first["a"], again["a"])
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
