"""Errors cross Ray processes, and the command line prints them alone."""

import pickle

import pytest

from vaegen_ray import errors

MEMBERS = [member for member in vars(errors).values() if isinstance(member, type)]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
def test_error_survives_pickling_with_its_message(member: type[errors.VaegenError]) -> None:
    message = "training.images_per_step: must be a multiple of 3, got 256; try 255 or 258"
    copy = pickle.loads(pickle.dumps(member(message)))
    assert type(copy) is member
    assert str(copy) == message


def test_every_error_is_a_vaegen_error() -> None:
    assert len(MEMBERS) >= 7
    assert all(issubclass(member, errors.VaegenError) for member in MEMBERS)


def test_refusals_are_value_errors_and_failures_are_not() -> None:
    assert issubclass(errors.JobError, ValueError)
    assert issubclass(errors.DataError, ValueError)
    assert issubclass(errors.StorageError, OSError)
    for failure in (errors.CheckpointError, errors.TrainingError, errors.ClusterError):
        assert issubclass(failure, RuntimeError)
