from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.models.inception import Inception3

from tests.evaluation.samples import shared_data
from vaegen_ray.config.job import Features
from vaegen_ray.errors import DataError
from vaegen_ray.evaluation.fashion_mnist_cnn import WEIGHTS_FILE, load_fashion_mnist_cnn
from vaegen_ray.evaluation.features import WEIGHTS_VARIABLE, check_features, load_feature_network
from vaegen_ray.evaluation.frechet import Gaussian, frechet_distance
from vaegen_ray.evaluation.inception import FidInceptionV3, load_fid_inception
from vaegen_ray.evaluation.shipped.train_fashion_mnist_cnn import FOLDER, accuracy, read_split
from vaegen_ray.storage import Location

SHIPPED = Features(network="fashion_mnist_cnn")
FID = Features(network="inception_v3_fid")
INCEPTION_FILE = "fid_inception_v3_2015-12-05_nofc.npz"


def test_shipped_weights_are_small_and_say_how_good_they_are() -> None:
    assert WEIGHTS_FILE.stat().st_size < 500_000
    with safe_open(WEIGHTS_FILE, "pt") as weights:
        assert float(weights.metadata()["test_accuracy"]) >= 0.91


def test_shipped_network_on_test_images_is_as_accurate_as_recorded() -> None:
    if not FOLDER.exists():
        pytest.skip(f"needs Fashion-MNIST in {FOLDER}: install Debian's dataset-fashion-mnist")
    images, labels = read_split(FOLDER, "t10k")
    assert accuracy(load_fashion_mnist_cnn(), images[:1000], labels[:1000]) >= 0.91


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shipped_network_takes_grey_images_of_any_size(size: int) -> None:
    features = load_feature_network(SHIPPED, "cpu")(torch.rand(3, 1, size, size))
    assert features.shape == (3, 128)
    assert features.isfinite().all()


def test_loading_a_network_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    check_features(SHIPPED)
    assert torch.equal(torch.get_rng_state(), before)


def test_check_features_without_weights_names_the_key_and_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"evaluation\.features\.weights: is needed .* \$VAEGEN_FID_WEIGHTS"):
        check_features(FID)


def test_check_features_with_a_missing_file_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match=r"must be a file, there is none at .*none\.npz; give"):
        check_features(FID)


@pytest.mark.parametrize("name", ["damaged.npz", "damaged.safetensors"])
def test_check_features_with_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"this is neither")
    with pytest.raises(DataError, match=rf"{name}: must be an npz or safetensors file"):
        check_features(Features(network="inception_v3_fid", weights=str(tmp_path / name)))


def test_check_features_with_what_is_no_npz_of_numbers_is_refused(tmp_path: Path) -> None:
    """Each had ended in an exception of NumPy or zipfile."""
    np.savez(tmp_path / "cut.npz", weights=np.zeros(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    np.savez_compressed(tmp_path / "compressed.npz", weights=np.random.default_rng(0).integers(0, 9, 4000))
    content = bytearray((tmp_path / "compressed.npz").read_bytes())
    content[200:260] = b"\xff" * 60
    (tmp_path / "compressed.npz").write_bytes(content)
    np.save(tmp_path / "alone.npy", np.zeros(3))
    (tmp_path / "alone.npy").rename(tmp_path / "alone.npz")
    np.savez(tmp_path / "text.npz", weights=np.array(["text"]))
    for name in ("cut", "compressed", "alone", "text"):
        with pytest.raises(DataError, match=rf"{name}.npz: must be an npz or safetensors file"):
            check_features(Features(network="inception_v3_fid", weights=str(tmp_path / f"{name}.npz")))


def test_check_features_with_pickled_arrays_does_not_unpickle_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", weights=np.array([{"code": 1}], dtype=object))
    with pytest.raises(DataError, match="must be an npz or safetensors file of arrays"):
        check_features(Features(network="inception_v3_fid", weights=str(tmp_path / "pickled.npz")))


def test_check_features_with_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"tensors are missing and 1 have another shape"):
        check_features(Features(network="inception_v3_fid", weights=str(tmp_path / "other.safetensors")))


def test_inception_of_fid_reads_safetensors_with_the_features_of_the_model_saved(tmp_path: Path) -> None:
    original = FidInceptionV3().eval()
    save_file({name: tensor.contiguous() for name, tensor in original.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = load_feature_network(Features(network="inception_v3_fid", weights=str(tmp_path / "w.safetensors")), "cpu")
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        features = loaded(images)
        assert features.shape == (2, 2048)
        assert torch.allclose(features, original(images.expand(-1, 3, -1, -1)), atol=1e-5)


def test_torchvision_inception_without_a_download_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # Nothing listens there: the machine is as good as offline.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"inception_v3_torchvision.*which failed.*or use 'inception_v3_fid'"):
        check_features(Features(network="inception_v3_torchvision"))


@pytest.mark.slow
def test_inception_of_fid_reproduces_the_documented_fid_of_torchmetrics() -> None:
    """The figure in the docstring of torchmetrics 1.9, made by its own copy of the network."""
    weights = shared_data(INCEPTION_FILE)
    network = load_fid_inception(Location.of(weights))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(42)
        # The docstring builds the network, which draws from the same generator, before it draws the images.
        Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        first = torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8)
        second = torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8)
        sets = [
            torch.cat([network.features_after("maxpool1", part / 127.5 - 1) for part in torch.split(images, 25)])
            for images in (first, second)
        ]
    fid = frechet_distance(Gaussian.of(sets[0]), Gaussian.of(sets[1]))
    assert float(fid) == pytest.approx(12.6388, abs=5e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*save all extracted features")
def test_inception_of_fid_reproduces_the_documented_kid_of_torchmetrics() -> None:
    """The figure in the docstring of torchmetrics 1.9; a minute on two CPU cores."""
    weights = shared_data(INCEPTION_FILE)
    network = load_fid_inception(Location.of(weights))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(42)
        Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        images = [
            torch.randint(low, high, (100, 3, 299, 299), dtype=torch.uint8) for low, high in ((0, 200), (100, 255))
        ]
        state = torch.get_rng_state()
        real, fake = (torch.cat([network(part / 127.5 - 1) for part in torch.split(each, 25)]) for each in images)
        torch.set_rng_state(state)
        metric = KernelInceptionDistance(feature=nn.Identity(), subset_size=50)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        mean, deviation = metric.compute()
    assert float(mean) == pytest.approx(0.0312, abs=5e-5)
    assert float(deviation) == pytest.approx(0.0025, abs=5e-5)
