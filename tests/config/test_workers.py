"""Numbers of workers: which a run may have, and in how many portions each handles its share."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.training.jobs import OBJECTIVES, job_with
from vaegen_ray.config.job import TrainJob


def job_of(images_per_step: int, workers: Any, accumulation_steps: int = 1) -> TrainJob:
    return job_with(
        OBJECTIVES["vae"],
        training={
            "images_per_step": images_per_step,
            "total_images": 10 * images_per_step,
            "accumulation_steps": accumulation_steps,
        },
        resources={"workers": workers},
    )


def test_numbers_that_do_not_divide_the_batch_are_left_out() -> None:
    assert job_of(64, {"min": 1, "max": 8}).worker_counts == [8, 4, 2, 1]
    assert job_of(64, 4).worker_counts == [4]


def test_bounds_have_to_divide_the_batch() -> None:
    with pytest.raises(ValidationError, match=r"resources\.workers \(both 2 and 3\).* got 64; try 60 or 66"):
        job_of(64, {"min": 2, "max": 3})


def test_fewer_workers_take_smaller_portions_of_their_larger_share() -> None:
    job = job_of(64, {"min": 1, "max": 8})
    assert [job.portions(count) for count in (8, 4, 2, 1)] == [1, 2, 4, 8]


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(1, 6))
def test_no_portion_is_larger_than_with_all_workers(fewest: int, more: int, accumulation: int, factor: int) -> None:
    most = fewest + more
    job = job_of(fewest * most * accumulation * factor, {"min": fewest, "max": most}, accumulation)
    largest = job.training.images_per_step // (most * accumulation)
    for count in job.worker_counts:
        share = job.training.images_per_step // count
        assert share % job.portions(count) == 0
        assert share // job.portions(count) <= largest
    assert job.portions(most) == accumulation


def test_password_in_a_job_is_refused_and_not_repeated() -> None:
    from vaegen_ray.config.loading import job_of as load
    from vaegen_ray.errors import JobError

    tree = job_of(8, 1).model_dump(mode="json")
    tree["tracking"]["mlflow"] = {"experiment": "e", "tracking_uri": "https://me:hunter2@host/"}
    with pytest.raises(JobError, match=r"tracking\.mlflow\.tracking_uri: must hold no user, password") as caught:
        load(tree, "job.yaml")
    assert "hunter2" not in str(caught.value)
