"""The batch script for Slurm, run by stand-ins for Slurm's and Ray's commands."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vaegen_ray.cli.main import app
from vaegen_ray.config.loading import load_job
from vaegen_ray.errors import JobError
from vaegen_ray.render.slurm import render

FACES = "jobs/train/vae_gan_faces_64.yaml"
ON_S3 = ("storage=s3://my-bucket/runs", "data.source=s3://my-bucket/datasets/faces_64")

COMMANDS = {
    "scontrol": """
        if [[ $1 == show ]]; then printf 'node1\\nnode2\\n'; else echo "$@" >>"$SEEN/scontrol"; fi
    """,
    # Two tasks, as on two nodes; the first is on the node of the script.
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        "$@" & first=$!
        IS_WORKER=1 "$@"
        wait "$first"
    """,
    "ray": """
        env | grep -E '^(RAY_|SEEN)' | sort >"$SEEN/environment"
        echo "${*%%-- *}" >>"$SEEN/ray"
        [[ ${IS_WORKER:-} ]] && exit 0
        stat -c %a "$RAY_AUTH_TOKEN_PATH" >"$SEEN/mode"; wc -c <"$RAY_AUTH_TOKEN_PATH" >"$SEEN/token"
        while [[ $1 != -- ]]; do shift; done
        shift
        "$@"
    """,
    "vaegen": """
        cp "$2" "$SEEN/job.json"; echo "$1" >"$SEEN/verb"
        trap 'echo saved >"$SEEN/saved"; exit "${AFTER:-143}"' TERM
        for _ in $(seq "${TENTHS:-0}"); do sleep 0.1; done
        exit "${CODE:-0}"
    """,
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script, with Slurm's commands first on the path."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, body in COMMANDS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (commands / name).chmod(0o755)
    (tmp_path / "seen").mkdir()
    return {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SEEN": str(tmp_path / "seen"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }


def script(tmp_path: Path, *settings: str) -> Path:
    file = tmp_path / "train.sbatch"
    file.write_text(render(load_job(FACES, (*ON_S3, *settings))))
    return file


def code_after_the_signal(file: Path, cluster: dict[str, str]) -> int:
    """What a script ends with whose run is asked to stop, as `--signal=B:TERM@120` asks it, while it trains."""
    process = subprocess.Popen(["bash", file], env=cluster | {"TENTHS": "300"})
    try:
        while not (Path(cluster["SEEN"]) / "verb").exists():
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=30)
    finally:
        process.kill()


def test_script_runs_the_job_on_all_nodes_and_leaves_nothing(tmp_path: Path, cluster: dict[str, str]) -> None:
    file = script(tmp_path, "resources.workers=2")
    done = subprocess.run(["bash", file], env=cluster, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    seen = tmp_path / "seen"
    assert json.loads((seen / "job.json").read_text())["name"] == "vae_gan_faces_64"
    assert (seen / "verb").read_text() == "train\n"
    calls = (seen / "ray").read_text().splitlines()
    assert len(calls) == 2
    assert calls[0] == calls[1]
    assert calls[0].startswith("symmetric-run --address node1:24711 --min-nodes 2 --dashboard-host=127.0.0.1")
    environment = (seen / "environment").read_text()
    assert "RAY_AUTH_MODE=token\n" in environment
    assert "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600\n" in environment
    assert ((seen / "mode").read_text(), (seen / "token").read_text()) == ("600\n", "64\n")
    assert not (seen / "scontrol").exists(), "what has ended is not queued again"
    assert not list(tmp_path.glob(".vaegen-*")), "the token stays nowhere"


def test_exit_code_of_the_run_is_that_of_the_script(tmp_path: Path, cluster: dict[str, str]) -> None:
    done = subprocess.run(["bash", script(tmp_path)], env=cluster | {"CODE": "2"}, check=False, timeout=30)
    assert done.returncode == 2


def test_run_saves_before_its_time_is_over_and_is_queued_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    assert code_after_the_signal(script(tmp_path), cluster) == 143
    assert (tmp_path / "seen" / "saved").read_text() == "saved\n"
    assert (tmp_path / "seen" / "scontrol").read_text() == "requeue 4711\n"


def test_run_that_ends_well_in_its_last_minutes_is_no_failure_and_not_queued_again(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    """The code of the interrupted `wait` had stayed."""
    assert code_after_the_signal(script(tmp_path), cluster | {"AFTER": "0"}) == 0
    assert not (tmp_path / "seen" / "scontrol").exists()


def test_header_asks_for_what_the_job_needs(tmp_path: Path) -> None:
    text = script(tmp_path, "resources.workers={min: 2, max: 8}", "resources.stop_window_s=300").read_text()
    assert "#SBATCH --nodes=8\n" in text
    assert "#SBATCH --gpus-per-node=1\n" in text
    assert "#SBATCH --signal=B:TERM@300\n" in text
    assert "#SBATCH --exclusive\n" in text
    assert "gpus" not in script(tmp_path, "resources.gpus_per_worker=0").read_text().split("JOB")[0]


def test_run_of_a_limited_duration_has_that_and_its_window_and_is_not_queued_again(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    file = script(tmp_path, "resources.max_duration_s=90000", "resources.stop_window_s=0.5")
    assert "#SBATCH --time=1-01:01:00\n" in file.read_text(), "25 hours, and the second of the window, in minutes"
    assert "#SBATCH --signal=B:TERM@1\n" in file.read_text()
    assert code_after_the_signal(file, cluster) == 143
    assert (tmp_path / "seen" / "saved").exists()
    assert not (tmp_path / "seen" / "scontrol").exists()


def test_window_of_which_slurm_cannot_warn_is_refused() -> None:
    settings = (*ON_S3, "resources.stop_window_s=65536")
    with pytest.raises(JobError, match=r"^resources.stop_window_s: must be at most 65535 s, .* got 65536"):
        render(load_job(FACES, settings))


def test_relative_path_is_refused() -> None:
    with pytest.raises(JobError, match=r"^storage: must be a URL"):
        render(load_job(FACES, ["data.source=s3://b/d"]))


def test_committed_script_is_what_the_command_prints() -> None:
    settings = [argument for setting in ON_S3 for argument in ("--set", setting)]
    printed = CliRunner().invoke(app, ["render", "slurm", FACES, *settings])
    assert printed.exit_code == 0, printed.output
    assert printed.stdout == Path("cluster/slurm/train.sbatch").read_text()
    subprocess.run(["bash", "-n", "cluster/slurm/train.sbatch"], check=True)
