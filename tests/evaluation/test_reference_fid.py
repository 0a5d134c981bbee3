"""FID of whole sets of images against the reference implementation, its own network included."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.samples import random_pictures, shared_data, tiny_job
from vaegen_ray.evaluation.descriptions import Describer
from vaegen_ray.evaluation.inference import images_of_bytes
from vaegen_ray.evaluation.shares import Share

CPU = torch.device("cpu")
IMAGES = 40


def reference_weights(published: Path, folder: Path) -> Path:
    """The same weights as torch-fidelity's network wants them; its classifier, which FID does not use, is zero."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with np.load(published, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    names = dict(state)
    for name in list(state):
        if name.endswith("bn.running_mean"):
            stem = name.removesuffix("running_mean")
            names.setdefault(f"{stem}weight", torch.ones_like(state[name]))
            names.setdefault(f"{stem}num_batches_tracked", torch.tensor(0))
    names |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    file = folder / "inception.pth"
    torch.save(names, file)
    FeatureExtractorInceptionV3("check", ["2048"], feature_extractor_weights_path=str(file))
    return file


@pytest.mark.slow
def test_fid_is_that_of_the_reference_implementation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity, of the development dependencies")
    weights = shared_data("fid_inception_v3_2015-12-05_nofc.npz")
    from torchmetrics.image.fid import FrechetInceptionDistance

    monkeypatch.setenv("VAEGEN_FID_WEIGHTS", str(weights))
    first, second = (random_pictures(IMAGES, channels=3, seed=seed) for seed in (0, 1))
    second = np.clip(second.astype(int) + 30, 0, 255).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = FrechetInceptionDistance(
            feature=2048, feature_extractor_weights_path=str(reference_weights(weights, tmp_path))
        ).set_dtype(torch.float64)
        for images, real in ((first, True), (second, False)):
            metric.update(torch.from_numpy(images).permute(0, 3, 1, 2), real=real)
        reference = float(metric.compute())

    model = {"kind": "convolutional", "image_size": 32, "channels": 3, "latent_dim": 4, "encoder": {"width": 4}}
    job = tiny_job(model={**model, "decoder": {"width": 4}}, evaluation={"features": {"network": "inception_v3_fid"}})
    describer, share = Describer(job, IMAGES, CPU), Share(IMAGES, 0, 1, lambda rows: rows, lambda tensor: tensor)
    with torch.no_grad():
        sets = [
            describer.describe(name, lambda at, images=images: images_of_bytes(images[at.numpy()], CPU), share)
            for name, images in (("real", first), ("sample", second))
        ]
    assert describer.distances("sample", *sets)["sample_fid"] == pytest.approx(reference, rel=1e-3)
