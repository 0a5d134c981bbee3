"""What every tracker must do, run on each of them: what was tracked is read back by the tracker's own means."""

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.evaluation.samples import tiny_job
from vaegen_ray.config.job import Mlflow
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError
from vaegen_ray.tracking.json_lines import JsonLines, read_metrics
from vaegen_ray.tracking.mlflow import MlflowTracker
from vaegen_ray.tracking.open import check_tracking, open_trackers
from vaegen_ray.tracking.tensorboard import TensorBoardTracker
from vaegen_ray.tracking.tracker import Tracker

# MLflow and SQLAlchemy warn of each other's, not of our, old ways.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Points = dict[int, float]
PICTURE = Image.new("L", (8, 8), 128)


@dataclass
class Place:
    """A tracker's way in and out."""

    open: Callable[[int], Tracker]
    """At a position."""
    points: Callable[[str], Points]
    """Of a metric: position to the last value there."""
    pictures: Callable[[], int]
    """How many it holds."""


def json_lines_place(run: RunDirectory, _: str, __: Path) -> Place:
    return Place(
        open=lambda position: JsonLines(run.metrics, position),
        points=lambda name: {line["position"]: line[name] for line in read_metrics(run) if name in line},
        pictures=lambda: 0,
    )


def tensorboard_place(run: RunDirectory, _: str, tmp_path: Path) -> Place:
    def events() -> EventAccumulator:
        folder = tmp_path / "events"
        folder.mkdir(exist_ok=True)
        for file in run.tensorboard.names():
            (run.tensorboard / file).download(folder / file)
        return EventAccumulator(str(folder)).Reload()

    return Place(
        open=lambda position: TensorBoardTracker(run.tensorboard, position),
        points=lambda name: {event.step: event.value for event in events().Scalars(name)},
        pictures=lambda: len(events().Images("samples")),
    )


def mlflow_place(run: RunDirectory, mlflow_uri: str, _: Path) -> Place:
    settings = Mlflow(experiment="tests", tracking_uri=mlflow_uri)
    client = mlflow.MlflowClient(tracking_uri=mlflow_uri)
    id_file = run.root / "mlflow_run_id"

    def points(name: str) -> Points:
        history = client.get_metric_history(id_file.read_text().strip(), name)
        return {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.timestamp)}

    return Place(
        open=lambda _: MlflowTracker(settings, tiny_job(), id_file),
        points=points,
        pictures=lambda: len(client.list_artifacts(id_file.read_text().strip(), "samples")),
    )


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: MLflow takes seconds to lay out a new one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


PLACES = {"json_lines": json_lines_place, "tensorboard": tensorboard_place, "mlflow": mlflow_place}


@pytest.fixture(params=["json_lines-local", "json_lines-s3", "tensorboard-local", "tensorboard-s3", "mlflow-local"])
def place(request: pytest.FixtureRequest, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    name, storage = request.param.split("-")
    # MLflow puts artifacts into the working directory.
    monkeypatch.chdir(tmp_path)
    root = str(tmp_path) if storage == "local" else request.getfixturevalue("s3_bucket")
    return PLACES[name](RunDirectory.of(tiny_job(root)), mlflow_uri, tmp_path)


class TestTracker:
    def test_scalars_are_kept_at_their_positions(self, place: Place) -> None:
        tracker = place.open(0)
        tracker.scalars({"loss": 1.5, "kl_nats": 3.0}, 10)
        tracker.scalars({"loss": 0.5}, 20)
        tracker.close()
        assert place.points("loss") == {10: 1.5, 20: 0.5}
        assert place.points("kl_nats") == {10: 3.0}

    def test_scalars_are_readable_after_a_flush(self, place: Place) -> None:
        tracker = place.open(0)
        tracker.scalars({"loss": 1.5}, 10)
        tracker.flush()
        assert place.points("loss") == {10: 1.5}
        tracker.close()

    def test_resumed_run_shows_the_newer_value_of_each_position(self, place: Place) -> None:
        killed = place.open(0)
        for position in (10, 20, 30):
            killed.scalars({"loss": 1.0}, position)
        killed.flush()
        # TensorBoard orders event files by the second of their birth, then by process and counter, as text.
        time.sleep(1.1)
        resumed = place.open(10)
        for position in (20, 30):
            resumed.scalars({"loss": 2.0}, position)
        resumed.close()
        assert place.points("loss") == {10: 1.0, 20: 2.0, 30: 2.0}

    def test_value_that_is_not_finite_does_not_stop_the_run(self, place: Place) -> None:
        tracker = place.open(0)
        tracker.scalars({"loss": math.nan, "other": math.inf}, 10)
        tracker.scalars({"loss": 1.0}, 20)
        tracker.close()
        assert math.isnan(place.points("loss")[10])
        assert place.points("loss")[20] == 1.0

    def test_pictures_are_kept_where_pictures_can_be_shown(self, place: Place, request: pytest.FixtureRequest) -> None:
        tracker = place.open(0)
        tracker.image("samples", PICTURE, 10)
        tracker.image("samples", PICTURE, 20)
        tracker.close()
        keeps_pictures = "json_lines" not in request.node.name
        assert place.pictures() == (2 if keeps_pictures else 0)


def test_mlflow_run_goes_on_under_its_id_after_a_resume(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = tiny_job(tmp_path, tracking={"mlflow": {"experiment": "resumed", "tracking_uri": mlflow_uri}})
    run = RunDirectory.of(job)
    client = mlflow.MlflowClient(tracking_uri=mlflow_uri)
    for position in (0, 10):
        trackers = open_trackers(job, run, position, lambda: None)
        trackers.scalars({"loss": 1.0}, position + 10)
        trackers.close()
    experiment = client.get_experiment_by_name("resumed")
    assert experiment is not None
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.info.status == "FINISHED"
    assert only.data.params["model.latent_dim"] == "6"
    assert [line["position"] for line in read_metrics(run)] == [10, 20]


def test_wandb_that_is_not_installed_is_refused_with_the_command() -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed; the refusal shows without it")
    job = tiny_job(tracking={"wandb": {"project": "tests"}})
    with pytest.raises(JobError, match=r"tracking\.wandb: needs the package wandb.*pip install 'vaegen_ray\[wandb\]'"):
        check_tracking(job.tracking)


def test_wandb_run_goes_on_under_its_id_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb: `uv sync --extra wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    job = tiny_job(tmp_path, tracking={"wandb": {"project": "tests"}})
    run = RunDirectory.of(job)
    ids = set()
    for position in (0, 10):
        trackers = open_trackers(job, run, position, lambda: None)
        trackers.scalars({"loss": 1.0}, position + 10)
        trackers.image("samples", PICTURE, position + 10)
        trackers.close()
        ids.add((run.root / "wandb_run_id").read_text())
    assert len(ids) == 1
