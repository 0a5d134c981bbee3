import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.evaluation.samples import random_pictures, tiny_generator, tiny_job
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.metrics import evaluated_metrics
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import DataError, DivergedError
from vaegen_ray.evaluation.evaluate import evaluate
from vaegen_ray.evaluation.scores import UNITS, Compared, read_record, save_scores

CPU = torch.device("cpu")
WITH_FEATURES = {"images": 60, "features": {"network": "fashion_mnist_cnn"}}


class Ranks:
    """Threads that meet in a gather, as the ranks of a process group do."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self._barrier = threading.Barrier(num_ranks, timeout=60)
        self._parts: dict[int, Tensor] = {}

    def gather(self, rank: int, rows: Tensor) -> Tensor:
        self._parts[rank] = rows
        self._barrier.wait()
        assert len({part.shape for part in self._parts.values()}) == 1
        gathered = torch.cat([self._parts[each] for each in range(self.num_ranks)])
        self._barrier.wait()
        return gathered

    def evaluate(
        self, job: TrainJob, held_out: NDArray[np.uint8], samples: int | None = None
    ) -> list[dict[str, float]]:
        results: dict[int, dict[str, float]] = {}
        # Each rank has a model of its own, as processes do.
        generators = [tiny_generator(job) for _ in range(self.num_ranks)]

        def run(rank: int) -> None:
            results[rank] = evaluate(
                generators[rank],
                held_out,
                job,
                device=CPU,
                rank=rank,
                num_ranks=self.num_ranks,
                gather=lambda rows: self.gather(rank, rows),
                samples=samples,
            )

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.num_ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return [results[rank] for rank in range(self.num_ranks)]


def test_evaluate_of_a_vae_gives_every_score_as_a_finite_float() -> None:
    job = tiny_job(evaluation=WITH_FEATURES)
    scores = evaluate(tiny_generator(job), random_pictures(80), job, device=CPU)
    assert set(scores) == set(UNITS) - {"memorised_fraction", "reconstruction_lpips"}
    assert set(scores) == set(evaluated_metrics(job))
    assert all(type(value) is float and math.isfinite(value) for value in scores.values())


def test_evaluate_of_a_gan_gives_scores_of_samples_alone() -> None:
    job = tiny_job(kind="gan")
    assert set(evaluate(tiny_generator(job), random_pictures(60), job, device=CPU)) == {
        "sample_swd", "sample_diversity"
    }  # fmt: skip


@pytest.mark.parametrize("num_ranks", [2, 7])
def test_evaluate_on_several_ranks_gives_the_scores_of_one(num_ranks: int) -> None:
    # 59 images: neither 2 nor 7 ranks share them equally.
    job = tiny_job(evaluation={**WITH_FEATURES, "images": 59})
    held_out = random_pictures(70)
    alone = evaluate(tiny_generator(job), held_out, job, device=CPU)
    for scores in Ranks(num_ranks).evaluate(job, held_out):
        assert scores == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_evaluate_on_more_ranks_than_images_gives_the_scores_of_one() -> None:
    job = tiny_job()
    held_out = random_pictures(2)
    alone = evaluate(tiny_generator(job), held_out, job, device=CPU)
    assert Ranks(3).evaluate(job, held_out)[2] == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_evaluate_twice_gives_the_same_scores_and_leaves_everything_as_it_was() -> None:
    job = tiny_job(evaluation=WITH_FEATURES)
    generator = tiny_generator(job).train()
    before = torch.get_rng_state()
    first = evaluate(generator, random_pictures(60), job, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert generator.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in generator.parameters())
    torch.rand(3)
    assert evaluate(generator, random_pictures(60), job, device=CPU) == first


def test_evaluate_compares_the_first_images_that_the_job_allows() -> None:
    job = tiny_job(evaluation={"images": 20})
    held_out = random_pictures(40)
    changed = held_out.copy()
    changed[20:] = 0
    generator = tiny_generator(job)
    assert evaluate(generator, held_out, job, device=CPU) == evaluate(generator, changed, job, device=CPU)


def test_evaluate_of_one_held_out_image_is_refused() -> None:
    job = tiny_job()
    with pytest.raises(DataError, match=r"evaluation.images: must be at least 2"):
        evaluate(tiny_generator(job), random_pictures(1), job, device=CPU)


@pytest.mark.parametrize(("part", "named"), [("decoder", "reconstruction|sample"), ("encoder", "reconstruction")])
def test_evaluate_of_a_diverged_generator_names_what_is_not_finite(part: str, named: str) -> None:
    job = tiny_job(evaluation=WITH_FEATURES)
    generator = tiny_generator(job)
    with torch.no_grad():
        next(getattr(generator, part).parameters()).fill_(math.nan)
    with pytest.raises(DivergedError, match=rf"evaluation\.({named}): images must be finite, .* in 60 of 60"):
        evaluate(generator, random_pictures(60), job, device=CPU)


def test_evaluate_of_a_posterior_without_a_variance_names_the_score() -> None:
    job = tiny_job()
    generator = tiny_generator(job)
    assert generator.encoder is not None
    with torch.no_grad():
        # The images are finite: the posterior's mean, which they are decoded from, is.
        generator.encoder.to_posterior.bias[6:] = math.nan
    with pytest.raises(DivergedError, match=r"evaluation\.kl_nats: must be finite, got nan"):
        evaluate(generator, random_pictures(60), job, device=CPU)


def test_scores_of_a_run_are_read_as_they_were_saved(vae_run: RunDirectory) -> None:
    save_scores({"sample_swd": 0.25}, vae_run.load_job(), Compared("held_out", 50, 50), vae_run, position=1000)
    assert vae_run.is_complete()
    assert read_record(vae_run)["scores"] == {"sample_swd": 0.25}


def test_scores_measured_later_stand_beside_the_earlier_ones_each_with_what_it_was_measured_on(
    vae_run: RunDirectory,
) -> None:
    job = tiny_job(evaluation=WITH_FEATURES)
    save_scores({"sample_swd": 0.25, "kl_nats": 3.0}, job, Compared("held_out", 50, 50), vae_run, position=990)
    save_scores({"sample_fid": 12.0}, job, Compared("train", 900, 50_000), vae_run, position=990)
    record = read_record(vae_run)
    assert record["scores"] == {"sample_swd": 0.25, "kl_nats": 3.0, "sample_fid": 12.0}
    assert record["position"] == 990
    assert record["measured_on"] == {
        "sample_swd": "50 samples against 50 held_out images of shipped:fashion_mnist; at 32 pixels, not resized",
        "kl_nats": "50 held_out images of shipped:fashion_mnist; at 32 pixels, not resized",
        "sample_fid": "50,000 samples against 900 train images of shipped:fashion_mnist; fashion_mnist_cnn, resized to "
        "32 pixels, bilinear, antialiased from 32 pixels",
    }


def test_evaluate_of_more_samples_than_real_images_is_the_same_on_several_ranks() -> None:
    job = tiny_job(evaluation=WITH_FEATURES)
    held_out = random_pictures(20)
    alone = evaluate(tiny_generator(job), held_out, job, device=CPU, samples=45)
    results = Ranks(3).evaluate(job, held_out, samples=45)
    assert results[1] == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert alone["sample_fid"] != evaluate(tiny_generator(job), held_out, job, device=CPU)["sample_fid"]


def test_real_features_are_kept_in_storage_and_used_again(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, evaluation=WITH_FEATURES)
    held_out, generator = random_pictures(60), tiny_generator(job)
    first = evaluate(generator, held_out, job, device=CPU, fingerprint="f" * 64)
    (file,) = (tmp_path / "statistics" / ("f" * 32)).iterdir()
    assert file.name == "held_out-60-32px-1ch-fashion_mnist_cnn-bilinear-antialiased-32.safetensors"
    assert evaluate(generator, held_out, job, device=CPU, fingerprint="f" * 64) == first
    statistics = load_file(file)
    save_file({**statistics, "mean": statistics["mean"] + 1}, file)
    shifted = evaluate(generator, held_out, job, device=CPU, fingerprint="f" * 64)
    assert shifted["sample_fid"] != pytest.approx(first["sample_fid"], rel=0.01)
    file.write_bytes(b"damaged")
    assert evaluate(generator, held_out, job, device=CPU, fingerprint="f" * 64) == first
