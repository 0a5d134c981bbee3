"""After which failures another attempt follows."""

from pathlib import Path

from vaegen_ray.on_ray.submit import TRANSIENT, Outcome, Retries
from vaegen_ray.runs.attempts import Attempt, AttemptState, now, write_attempt
from vaegen_ray.storage import Location

LOST = Outcome(TRANSIENT, "lost")


def fail(root: Location, number: int, *, position: int, kind: str = "WorkersLostError", error: str = "lost") -> None:
    write_attempt(
        root,
        Attempt(
            number=number,
            submission=f"tiny-a{number}",
            cluster="http://head:8265",
            driver="process 7 on head",
            begun=now(),
            heard=now(),
            state=AttemptState.FAILED,
            exit_code=TRANSIENT,
            error=error,
            error_kind=kind,
            position=position,
        ),
    )


def test_failure_of_the_job_is_never_tried_again(tmp_path: Path) -> None:
    retries = Retries(3)
    assert retries.may_follow(Outcome(2, "error: data.source: ..."), Location.of(tmp_path)) is not None
    assert retries.left == 3


def test_failures_of_the_cluster_are_tried_again_as_often_as_asked_and_less_and_less_often(tmp_path: Path) -> None:
    root, retries, waits = Location.of(tmp_path), Retries(3), []
    for number in (1, 2, 3):
        fail(root, number, position=0, kind="ClusterUnavailableError")
        assert retries.may_follow(LOST, root) is None
        waits.append(retries.wait_s())
    assert waits == [5.0, 10.0, 20.0]
    assert retries.may_follow(LOST, root) == "no retries are left"


def test_workers_that_die_twice_in_the_same_way_at_the_same_place_are_not_tried_again(tmp_path: Path) -> None:
    root, retries = Location.of(tmp_path), Retries(5)
    fail(root, 1, position=400)
    assert retries.may_follow(LOST, root) is None
    fail(root, 2, position=400)
    assert retries.may_follow(LOST, root) == "it failed twice in the same way at the same place: lost"


def test_workers_that_die_in_the_same_way_further_on_are_tried_again(tmp_path: Path) -> None:
    root, retries = Location.of(tmp_path), Retries(5)
    for number, position in ((1, 400), (2, 800), (3, 1200)):
        fail(root, number, position=position)
        assert retries.may_follow(LOST, root) is None


def test_record_of_the_same_attempt_is_no_second_failure(tmp_path: Path) -> None:
    # The next attempt was lost before it could record anything.
    root, retries = Location.of(tmp_path), Retries(5)
    fail(root, 1, position=400)
    assert retries.may_follow(LOST, root) is None
    assert retries.may_follow(LOST, root) is None
