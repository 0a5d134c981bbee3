"""Whose a run directory is, and what is in it."""

from pathlib import Path

import pytest

from tests.config.samples import Tree, job
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory, job_differences
from vaegen_ray.errors import CheckpointError, JobError, StorageError


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where runs are kept."""
    if request.param == "local":
        return str(tmp_path / "runs")
    return f"{request.getfixturevalue('s3_bucket')}/runs"


def stored(storage: str, objective: str | Tree = "vae_gan", *overrides: str) -> TrainJob:
    return job(objective, f"storage={storage}", *overrides)


def refusal(claimed: TrainJob) -> str:
    with pytest.raises(JobError) as refused:
        RunDirectory.of(claimed).claim(claimed)
    return str(refused.value)


def test_claimed_directory_holds_the_resolved_job(storage: str) -> None:
    mine = stored(storage)
    run = RunDirectory.of(mine)
    assert str(run.root) == f"{storage}/tiny"
    run.claim(mine)
    assert run.load_job() == mine
    assert run.root.names() == ["job.json"]


def test_same_job_claims_its_directory_again(storage: str) -> None:
    for _ in range(2):
        RunDirectory.of(stored(storage)).claim(stored(storage))


def test_other_job_is_refused_with_what_differs(storage: str) -> None:
    RunDirectory.of(stored(storage)).claim(stored(storage))
    other = stored(storage, "vae_gan", "seed=7", "optimizer.generator.learning_rate=1e-3", "data.horizontal_flip=true")
    assert refusal(other) == (
        f"name: {storage}/tiny holds the run of another job (data.horizontal_flip: false there, true here; "
        "optimizer.generator.learning_rate: 0.0002 there, 0.001 here; seed: 0 there, 7 here); "
        "give this one another name (--set name=tiny-2) or remove that directory"
    )
    assert RunDirectory.of(other).load_job() == stored(storage)


def test_other_kind_is_named_without_the_keys_of_both_kinds(tmp_path: Path) -> None:
    mine = stored(str(tmp_path))
    RunDirectory.of(mine).claim(mine)
    assert set(job_differences(mine, stored(str(tmp_path), "gan"))) >= {"objective.kind"}
    assert not any(
        key.startswith("objective.") and key != "objective.kind"
        for key in job_differences(mine, stored(str(tmp_path), "gan"))
    )
    balance = "objective.adversarial.balance={kind: fixed, weight: 1}"
    assert "(objective.adversarial.balance.kind: 'gradient_share' there, 'fixed' here)" in refusal(
        stored(str(tmp_path), "vae_gan", balance)
    )


def test_many_differences_are_shortened(tmp_path: Path) -> None:
    mine = stored(str(tmp_path))
    RunDirectory.of(mine).claim(mine)
    changes = [f"model.{part}.{key}=5" for part in ("encoder", "decoder") for key in ("width", "max_width", "depth")]
    changes += [f"objective.discriminator.{key}=5" for key in ("width", "max_width", "depth")]
    assert "; and 2 more)" in refusal(stored(str(tmp_path), "vae_gan", *changes, "seed=1"))


@pytest.mark.parametrize(
    "free",
    [
        "resources.workers=2",
        "resources.max_failures=0",
        "resources.gpus_per_worker=0.5",
        "data.cache=/somewhere/else",
        "data.cache_bytes=50e9",
        "data.placement=stream",
        "tracking.mlflow.experiment=x",
        "training.report_every_images=1",
        "training.checkpoint_every_images=1",
        "training.keep_checkpoints=9",
        "training.accumulation_steps=2",
    ],
)
def test_setting_that_changes_nothing_computed_may_change_between_starts(free: str, tmp_path: Path) -> None:
    RunDirectory.of(stored(str(tmp_path))).claim(stored(str(tmp_path)))
    changed = stored(str(tmp_path), "vae_gan", free)
    assert changed != stored(str(tmp_path))
    RunDirectory.of(changed).claim(changed)
    assert RunDirectory.of(changed).load_job() == changed


@pytest.mark.parametrize(
    "change", ["seed=1", "training.total_images=2000", "training.precision=bfloat16", "evaluation.images=10"]
)
def test_setting_that_changes_what_is_computed_may_not(change: str, tmp_path: Path) -> None:
    RunDirectory.of(stored(str(tmp_path))).claim(stored(str(tmp_path)))
    assert change.split("=")[0] in refusal(stored(str(tmp_path), "vae_gan", change))


def test_moved_run_is_still_the_same_run(tmp_path: Path) -> None:
    first = stored(str(tmp_path / "here"))
    RunDirectory.of(first).claim(first)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = stored(str(tmp_path / "there"))
    RunDirectory.of(moved).claim(moved)


def test_checkpoints_without_a_job_are_nobodys(storage: str) -> None:
    mine = stored(storage)
    (RunDirectory.of(mine).checkpoint(640) / "manifest.json").write_text("{}")
    assert refusal(mine) == (
        f"name: {storage}/tiny holds checkpoints but no job.json; give this job another name (--set name=tiny-2) or "
        "remove that directory"
    )


def test_run_is_complete_when_its_scores_are_written(storage: str) -> None:
    run = RunDirectory.of(stored(storage))
    run.claim(stored(storage))
    (run.checkpoint(8) / "manifest.json").write_text("{}")
    (run.final / "model.json").write_text("{}")
    assert not run.is_complete()
    run.scores.write_text("{}")
    assert run.is_complete()


def test_checkpoints_are_listed_by_position(storage: str) -> None:
    run = RunDirectory.of(stored(storage))
    assert run.checkpoint_positions() == []
    for position in (1_000_000, 64, 999_999_999_999, 0):
        (run.checkpoint(position) / "x").write_text("")
    for other in ("images-64", "images-0000000000640", "latest"):
        (run.checkpoints / other / "x").write_text("")
    assert run.checkpoint_positions() == [0, 64, 1_000_000, 999_999_999_999]


def test_directory_of_no_run_is_refused(tmp_path: Path) -> None:
    run = RunDirectory.of(stored(str(tmp_path)))
    with pytest.raises(JobError, match=r"/tiny: must be the directory of a run, found no job.json there$"):
        run.load_job()
    run.job_file.write_text('{"kind": "prep')
    with pytest.raises(CheckpointError, match=r"/tiny/job.json: is damaged \(.*\); restore it or remove .*/tiny$"):
        run.load_job()
    for text, kind in (("[]", r"\[\]"), ("null", "nothing")):
        run.job_file.write_text(text)
        with pytest.raises(CheckpointError, match=rf"/tiny/job.json: is damaged \(holds {kind}, no job\); restore it"):
            run.load_job()
    run.job_file.write_text('{"kind": "train", "nome": 1}')
    with pytest.raises(JobError, match=r"/tiny/job.json: nome: no such key; did you mean 'name'\?"):
        run.load_job()


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    mine = stored(str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"^storage: .*/file/tiny must be writable, cannot write: NotADirectory"):
        RunDirectory.of(mine).claim(mine)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_bucket")
def test_bucket_that_is_not_there_is_refused() -> None:
    mine = stored("s3://nowhere/runs")
    with pytest.raises(
        StorageError, match=r"^storage: s3://nowhere/runs/tiny must be writable, cannot write: there is"
    ):
        RunDirectory.of(mine).claim(mine)
