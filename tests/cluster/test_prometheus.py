"""What Prometheus and Grafana are told: metrics that exist, and alerts that come when they should and only then."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vaegen_ray.on_ray import metrics

FOLDER = Path("cluster/prometheus")
OF_RAY = {"ray_node_gpus_utilization"}
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]] + [
    rule["expr"] for rule in RULES
]

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def names(expression: str) -> set[str]:
    """Without the suffixes that a histogram has."""
    return {re.sub(r"_(sum|count|bucket)$", "", name) for name in re.findall(r"ray_\w+", expression)}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_of_dashboard_and_alerts_is_exported(expression: str) -> None:
    assert names(expression) <= {f"ray_{name}" for name in metrics.NAMES} | OF_RAY


def test_dashboard_shows_every_metric() -> None:
    shown = set().union(*map(names, EXPRESSIONS))
    assert {f"ray_{name}" for name in metrics.NAMES} <= shown


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))


def test_scraping_shows_the_token() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert all(job["authorization"]["type"] == "Bearer" for job in jobs)


@needs_promtool
def test_promtool_accepts_the_files() -> None:
    subprocess.run(["promtool", "check", "config", "--syntax-only", FOLDER / "prometheus.yml"], check=True)
    subprocess.run(["promtool", "check", "rules", FOLDER / "alerts.yml"], check=True)


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    told = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{told}}}", "values": values}


def checkpoints(seconds: str) -> list[dict[str, str]]:
    """One a minute, of less than so many seconds and more than the bucket below."""
    bounds = ["30", "60", "120", "+Inf"]
    counts = {bound: "0+1x240" if bounds.index(bound) >= bounds.index(seconds) else "0x240" for bound in bounds}
    return [series("ray_vaegen_checkpoint_s_bucket", values, run="a", le=bound) for bound, values in counts.items()]


def position(values: str) -> list[dict[str, str]]:
    """Four a minute."""
    return [series("ray_vaegen_position_images", values, run="a")]


MOVING = position("0+100x240")[0]
STEPS = [series("ray_vaegen_step_s", "0.5x240", run="a", rank="1")]


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "input_series", "comes", "at"),
    [
        ("RunStalled", position("0+100x100 10000x140"), True, "45m"),
        ("RunStalled", [MOVING], False, "45m"),
        ("RunStalled", position("700x20"), False, "45m"),
        ("RunStalled", position("0x140 1000x100"), False, "45m"),  # Thirty-five minutes from report to report.
        ("RunStalled", position("0x40 1000x1000"), True, "250m"),
        ("RunStalled", position("0x140 1000x140 2000x140 3000x140 4000x140 5000x140 6000x140 7000x140"), False, "270m"),
        ("GpuIdle", [MOVING, series("ray_node_gpus_utilization", "5x240", ip="1", GpuIndex="0")], True, "45m"),
        ("GpuIdle", [MOVING, series("ray_node_gpus_utilization", "95x240", ip="1", GpuIndex="0")], False, "45m"),
        ("GpuIdle", [series("ray_node_gpus_utilization", "0x240", ip="1", GpuIndex="0")], False, "45m"),
        ("PreemptionsFrequent", [series("ray_vaegen_preemptions_total", "0+1x240", run="a")], True, "45m"),
        ("PreemptionsFrequent", [series("ray_vaegen_preemptions_total", "0x240", run="a")], False, "45m"),
        ("DataWaitHigh", [*STEPS, series("ray_vaegen_data_wait_s", "0.2x240", run="a", rank="1")], True, "45m"),
        ("DataWaitHigh", [*STEPS, series("ray_vaegen_data_wait_s", "0.05x240", run="a", rank="1")], False, "45m"),
        ("CheckpointSlow", checkpoints("120"), True, "45m"),
        ("CheckpointSlow", checkpoints("30"), False, "45m"),
    ],
)
def test_alert_comes_when_it_should_and_only_then(
    alert: str, input_series: list[dict[str, str]], comes: bool, at: str, tmp_path: Path
) -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == alert]
    # Its number alone: labels and annotations are not what is tested here.
    query = f"count({rule['expr']})"
    samples = [{"labels": "{}", "value": 1}] if comes else []
    test: dict[str, Any] = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": input_series,
                "promql_expr_test": [{"expr": query, "eval_time": at, "exp_samples": samples}],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
