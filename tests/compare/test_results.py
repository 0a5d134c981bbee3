"""Means, deviations and significance against SciPy and closed forms; stability from metrics."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from tests.search.samples import base_tree
from vaegen_ray.compare.directory import CompareDirectory, Outcome
from vaegen_ray.compare.results import Comparison, read_comparison
from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.loading import dump_job, job_of
from vaegen_ray.config.variants import variant_job
from vaegen_ray.errors import CheckpointError, JobError

FID = {"gentle": (10.0, 12.0, 11.0), "strict": (20.0, 21.0, 25.0), "wild": (14.0, 40.0, 9.0)}


def compare_job(storage: Path | str, **sections: Any) -> CompareJob:
    tree = {
        "kind": "compare",
        "name": "families",
        "storage": str(storage),
        "base": base_tree(),
        "variants": {
            "gentle": {"objective.kl.weight": 0.5},
            "strict": {"objective.kl.weight": 5.0},
            "wild": {"optimizer.generator.learning_rate": 0.01},
        },
        **sections,
    }
    job = job_of(tree, "compare.yaml")
    assert isinstance(job, CompareJob)
    return job


def written(storage: Path, *, seeds: int = 3) -> Comparison:
    """A comparison whose runs were made up."""
    job = compare_job(storage)
    directory = CompareDirectory.of(job)
    directory.job_file.write_text(dump_job(job))
    for variant, values in FID.items():
        for seed in range(seeds):
            run = directory.run(variant, seed)
            run.claim(directory.train_job(job, variant, seed, {}))
            kl = 0.0 if (variant, seed) == ("strict", 1) else 5.0
            lines = [{"position": at, "time_s": 0.0, "train_kl_nats": kl, "images_per_s": 8.0 + at, "training_s": 2.0,
                      "input_s": 0.5, "peak_memory_bytes": float(at)} for at in (32, 64, 96)]  # fmt: skip
            run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if (variant, seed) == ("wild", 2):
                directory.record(variant, seed, Outcome("diverged", "a number is not finite"))
                continue
            record = {"scores": {"sample_fid": values[seed], "kl_nats": kl}, "measured_on": {"sample_fid": "16 images"}}
            run.scores.write_text(json.dumps(record))
            directory.record(variant, seed, Outcome("complete"))
    return read_comparison(directory)


def test_comparison_has_means_deviations_and_welchs_p(tmp_path: Path) -> None:
    comparison = written(tmp_path)
    statistic = comparison.statistic("gentle", "sample_fid")
    assert (statistic.mean, statistic.deviation) == (pytest.approx(11), pytest.approx(1))
    assert str(statistic) == "11 ± 1"
    expected = stats.ttest_ind(FID["gentle"], FID["strict"], equal_var=False).pvalue
    assert comparison.p_value("gentle", "strict", "sample_fid") == pytest.approx(expected)
    winner, p = comparison.best("sample_fid")
    assert winner == "gentle"
    # Two others, and the worse of the two p-values, that against the variant of two seeds, decides.
    assert p == pytest.approx(min(2 * comparison.p_value("gentle", "wild", "sample_fid"), 1))
    assert comparison.best("kl_nats") == (None, pytest.approx(math.nan, nan_ok=True))


def test_comparison_counts_cost_and_collapsed_and_diverged_runs(tmp_path: Path) -> None:
    comparison = written(tmp_path)
    assert [comparison.instability(name) for name in FID] == [(0, 3), (1, 3), (1, 3)]
    (incident,) = comparison.runs["strict"][1].collapses
    assert incident.rule == "posterior_collapse"
    cost = comparison.cost("gentle")
    assert cost["seconds"].values == (7.5,) * 3
    assert cost["images_per_s"].values == (72.0,) * 3
    assert cost["memory_bytes"].values == (96.0,) * 3


def test_comparison_of_one_seed_has_no_significance(tmp_path: Path) -> None:
    comparison = written(tmp_path, seeds=1)
    assert math.isnan(comparison.p_value("gentle", "strict", "sample_fid"))
    assert comparison.num_ended == 3
    assert str(comparison.statistic("gentle", "sample_fid")) == "10"
    json.loads(comparison.to_json())


def test_comparison_as_markdown_and_json_tells_the_same(tmp_path: Path) -> None:
    comparison = written(tmp_path)
    table = comparison.to_markdown()
    assert "| sample_fid | 11 ± 1 | 22 ± 2.6 | 27 ± 18 |" in table
    assert "| collapsed or diverged | 0 of 3 | 1 of 3 | 1 of 3 | |" in table
    tree = json.loads(comparison.to_json())
    assert tree["metrics"]["sample_fid"]["variants"]["gentle"]["values"] == [10.0, 12.0, 11.0]
    assert tree["stability"]["wild"]["runs"]["2"]["reason"] == "a number is not finite"


def test_variants_are_complete_jobs_under_the_budget(tmp_path: Path) -> None:
    job = compare_job(tmp_path, budget={"images": 400})
    train = CompareDirectory.of(job).train_job(job, "strict", 7, {})
    assert (train.name, train.seed, train.objective.kl.weight) == ("strict-7", 7, 5.0)
    assert train.training.total_images == 400
    assert train.training.report_every_images == 2, "what follows from the length follows from the new one"
    assert train.storage == f"{tmp_path}/families/runs"


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"variants": {"a": {}}}, "variants"),
        ({"variants": {"a": {}, "b": {"objective.kl.weight": -1}}}, "variants.b: objective.kl.weight: must be at"),
        ({"variants": {"a": {}, "b": {"objective.kl.wait": 1}}}, "variants.b: objective.kl.wait"),
        ({"variants": {"a": {}, "b": {"seed": 3}}}, "variants.b.seed: follows from `seeds`"),
        ({"variants": {"a": {}, "b": {"data.source": "elsewhere"}}}, "variants.b.data.source: must be the same"),
        ({"seeds": [1, 1]}, "must name each seed once"),
        ({"budget": {"images": 8, "seconds": 3.0}}, "one of them"),
        ({"budget": {}}, "one of them"),
    ],
)  # fmt: skip
def test_comparison_that_cannot_work_is_refused(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(JobError) as refused:
        compare_job("unused", **sections)
    assert sentence in str(refused.value)


def test_equal_values_have_no_deviation_that_could_be_significant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deviation of three times 0.1 is not zero in floating point."""
    for variant in ("gentle", "strict"):
        monkeypatch.setitem(FID, variant, (0.1, 0.1, 0.1))
    assert written(tmp_path).p_value("gentle", "strict", "sample_fid") == 1.0


def test_damaged_outcome_is_told_with_its_file(tmp_path: Path) -> None:
    comparison = written(tmp_path)
    file = comparison.directory.outcomes / "gentle-0.json"
    for content in ("", '{"ending": "complete", "colour": 1}'):
        file.write_text(content)
        with pytest.raises(CheckpointError, match=r"gentle-0\.json: is damaged"):
            read_comparison(comparison.directory)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"data": {"source": "elsewhere"}}, "data.source"),
        ({"evaluation.images": 30}, "evaluation.images"),
        ({"evaluation": {"images": 30}}, "evaluation.images"),
        ({"evaluation.features": {"network": "fashion_mnist_cnn"}}, "evaluation.features"),
    ],
)
def test_variant_whose_scores_would_be_of_other_images_is_refused(settings: dict[str, Any], path: str) -> None:
    with pytest.raises(JobError, match=rf"variants.other.{path}.*: must be the same in all variants"):
        compare_job("runs", variants={"base": {}, "other": settings})


def test_variant_judged_by_another_network_of_lpips_is_refused() -> None:
    base = base_tree()
    base["model"]["image_size"] = 32
    base["evaluation"]["lpips"] = {"network": "alexnet"}
    other = {"evaluation.lpips.network": "squeezenet"}
    with pytest.raises(JobError, match=r"variants\.other\.evaluation\.lpips\.network: must be the same in all"):
        compare_job("runs", base=base, variants={"base": {}, "other": other})


def test_variant_with_a_preset_beside_the_values_of_the_base_is_refused() -> None:
    """Each variant had been the base under another name."""
    sentence = r"variants.other.objective.preset: has no effect on a job in which every key has its value, got 'sgm'"
    with pytest.raises(JobError, match=sentence):
        compare_job("runs", variants={"base": {}, "other": {"objective.preset": "sgm"}})
    job = compare_job("runs", variants={"base": {}, "other": {"objective": {"preset": "larsen"}}})
    objective = variant_job(job, "other", 0, storage="runs").objective
    assert objective.kind == "vae_gan"
    assert objective.reconstruction.kind == "discriminator_features"


def test_variant_with_a_length_of_its_own_is_refused_beside_a_budget() -> None:
    variants = {"base": {}, "other": {"training": {"total_images": 640}}}
    with pytest.raises(JobError, match=r"variants.other.training.total_images: follows from `budget`"):
        compare_job("runs", variants=variants, budget={"images": 6400})
