"""LCBench without its files: the search that is run on it, and what is said when they are missing."""

from pathlib import Path

import pytest

from vaegen_ray.bench.lcbench import EPOCHS, FILES, SPACE, check_folder, lcbench_job
from vaegen_ray.errors import JobError


def test_search_has_an_epoch_to_each_rung_and_the_surrogates_axes_in_its_order() -> None:
    job = lcbench_job(seed=3)
    assert (job.seed, job.base.training.total_images, job.base.evaluation.every_images) == (3, EPOCHS, 1)
    assert list(job.space) == list(SPACE)


def test_missing_file_is_named_with_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / FILES[0]).touch()
    with pytest.raises(JobError, match=rf"--lcbench: must be .* has no {FILES[1]}; take both from https://github.com"):
        check_folder(tmp_path)
