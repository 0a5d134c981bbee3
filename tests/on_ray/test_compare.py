"""A comparison on Ray: its runs side by side, killed and continued, one of them diverging."""

import json
from pathlib import Path

import pytest

from tests.search.samples import base_tree
from vaegen_ray.compare.directory import CompareDirectory
from vaegen_ray.compare.results import read_comparison
from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.loading import job_of
from vaegen_ray.errors import JobError
from vaegen_ray.on_ray.compare import Progress, run_comparison

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def compare_job(dataset: Path, storage: Path, **sections: object) -> CompareJob:
    tree = {
        "kind": "compare",
        "name": "families",
        "storage": str(storage),
        "base": base_tree(str(dataset)),
        "variants": {
            "vae_gan": {},
            "diverging": {"optimizer.generator.learning_rate": 1e30},
        },
        "seeds": [0],
        **sections,
    }
    job = job_of(tree, "compare")
    assert isinstance(job, CompareJob)
    return job


def test_comparison_runs_side_by_side_stops_goes_on_and_tells_who_diverged(dataset: Path, tmp_path: Path) -> None:
    # With 0.2 s, an idle machine was done before the runs had looked for a request to stop.
    job = compare_job(dataset, tmp_path, budget={"seconds": 6.0})
    directory = CompareDirectory.of(job)
    most_at_once: list[int] = []

    def stop_at_once(progress: Progress) -> None:
        most_at_once.append(len(progress.running))
        directory.stop_request.write_text("15")

    assert not run_comparison(job, stop_at_once)
    assert max(most_at_once) == 2
    images = json.loads(directory.images.read_text())
    assert images["vae_gan"] % 8 == 0
    assert run_comparison(job)
    assert json.loads(directory.images.read_text()) == images, "measured once"
    comparison = read_comparison(directory)
    (good,), (bad,) = comparison.runs["vae_gan"], comparison.runs["diverging"]
    assert good.outcome is not None
    assert bad.outcome is not None
    assert (good.outcome.ending, good.position) == ("complete", images["vae_gan"])
    assert bad.outcome.ending == "diverged"
    assert comparison.instability("diverging") == (1, 1)
    assert good.memory_bytes > 0
    assert run_comparison(job), "nothing is left to do"
    with pytest.raises(JobError, match=r"holds another comparison, which differs in budget"):
        run_comparison(compare_job(dataset, tmp_path))
