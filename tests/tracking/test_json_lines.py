import json
import math
from pathlib import Path

import pytest

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError
from vaegen_ray.storage import Location
from vaegen_ray.tracking import json_lines
from vaegen_ray.tracking.json_lines import JsonLines, read_metrics


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_bucket")
    return RunDirectory(Location.of(root) / "run")


def written(run: RunDirectory, positions: list[int], start: int = 0) -> None:
    lines = JsonLines(run.metrics, start)
    for position in positions:
        lines.scalars({"loss": position / 10}, position)
    lines.close()


def test_metrics_are_read_as_they_were_written(run: RunDirectory) -> None:
    assert read_metrics(run) == []
    written(run, [10, 20])
    lines = read_metrics(run)
    assert [(line["position"], line["loss"]) for line in lines] == [(10, 1.0), (20, 2.0)]
    assert lines[0]["time_s"] <= lines[1]["time_s"]


def test_resumed_run_has_each_position_once(run: RunDirectory) -> None:
    written(run, [10, 20, 30, 40])
    written(run, [30, 40, 50], start=20)
    assert [line["position"] for line in read_metrics(run)] == [10, 20, 30, 40, 50]


def test_two_records_of_one_position_become_one_line(run: RunDirectory) -> None:
    lines = JsonLines(run.metrics, 0)
    lines.scalars({"loss": 1.0}, 10)
    lines.scalars({"loss": math.nan, "a": math.inf}, 20)
    lines.scalars({"sample_swd": 0.5, "a": 3.0}, 20)
    lines.close()
    written(run, [20], start=20)
    first, second = read_metrics(run)
    assert first["loss"] == 1.0
    assert {name: second[name] for name in ("position", "loss", "sample_swd", "a")} == {
        "position": 20,
        "loss": 2.0,
        "sample_swd": 0.5,
        "a": 3.0,
    }
    assert "not_finite" not in second


def test_values_that_are_not_finite_are_valid_json_and_come_back(run: RunDirectory) -> None:
    lines = JsonLines(run.metrics, 0)
    lines.scalars({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}, 10)
    lines.close()
    text = run.metrics.read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (line["a"], line["not_finite"]) == (None, {"a": "nan", "b": "inf", "c": "-inf"})
    (restored,) = read_metrics(run)
    assert math.isnan(restored["a"])
    assert (restored["b"], restored["c"], restored["d"]) == (math.inf, -math.inf, 1.0)


def test_line_that_a_kill_cut_off_is_dropped(run: RunDirectory) -> None:
    written(run, [10, 20])
    run.metrics.write_bytes(run.metrics.read_bytes()[:-9])
    assert [line["position"] for line in read_metrics(run)] == [10]
    written(run, [20], start=10)
    assert [line["position"] for line in read_metrics(run)] == [10, 20]


def test_line_that_is_damaged_is_named(run: RunDirectory) -> None:
    run.metrics.write_text('{"position": 1}\nnonsense\n{"position": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 must be a JSON object"):
        read_metrics(run)


def test_local_line_survives_a_kill_without_a_flush(tmp_path: Path) -> None:
    run = RunDirectory(Location.of(tmp_path))
    lines = JsonLines(run.metrics, 0)
    lines.scalars({"loss": 1.0}, 10)
    assert [line["position"] for line in read_metrics(run)] == [10]
    lines.close()


def test_object_is_written_at_a_flush_and_now_and_then(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(Location.of(s3_bucket) / "run")
    lines = JsonLines(run.metrics, 0)
    lines.scalars({"loss": 1.0}, 10)
    assert read_metrics(run) == []
    lines.flush()
    assert len(read_metrics(run)) == 1
    monkeypatch.setattr(json_lines, "SECONDS_BETWEEN_UPLOADS", 0.0)
    lines.scalars({"loss": 1.0}, 20)
    assert len(read_metrics(run)) == 2
    lines.close()
