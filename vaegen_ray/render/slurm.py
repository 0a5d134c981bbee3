"""A job as a batch script for Slurm: Ray on all nodes of the allocation, for as long as the job takes."""

import math
import shlex

from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.loading import AnyJob, dump_job
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import JobError
from vaegen_ray.render.nodes import Nodes, check_paths, nodes_of

SCRIPT = """\
#!/usr/bin/env bash
# Made by `vaegen render slurm`; cluster/README.md says how to use it.
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
{gpus}# Alone on its nodes, because at its end Ray stops every Ray there.
#SBATCH --exclusive
#SBATCH --time={time}
# So long before the time is over, the run is asked to save{and_then}.
#SBATCH --signal=B:TERM@{window_s}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# On a disk that all nodes share. The token keeps other users of these machines out.
folder=$SLURM_SUBMIT_DIR/.vaegen-$SLURM_JOB_ID
mkdir -p "$folder"
trap 'rm -rf "$folder"' EXIT
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \\n' >"$folder/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
cat >"$folder/job.json" <<'JOB'
{job}JOB

# This script runs on the first node, which is where Ray's head and the command are.
is_over=false
save_and_leave() {{
  is_over=true
  [[ ! -s $folder/pid ]] || kill -TERM "$(<"$folder/pid")"
}}
trap save_and_leave TERM

# Not by `head`, which ends the pipe before the list has, and with it this script.
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
srun --cpu-bind=none ray symmetric-run --address "$head:$((20000 + SLURM_JOB_ID % 20000))" \\
  --min-nodes "$SLURM_JOB_NUM_NODES" --dashboard-host=127.0.0.1 --disable-usage-stats \\
  -- bash -c 'echo $$ >"$1/pid" && exec vaegen {kind} "$1/job.json"' _ "$folder" &
step=$!
# A signal ends `wait` before the step has ended, with a code of its own.
while code=0; wait "$step" || code=$?; kill -0 "$step" 2>/dev/null; do :; done
{requeue}exit "$code"
"""


AND_THEN = ", and is then queued again, to go on where it was"
REQUEUE = '! $is_over || (( code == 0 )) || scontrol requeue "$SLURM_JOB_ID"\n'
DAY_S = 86_400
LONGEST_LEAD_S = 65_535
"""Of a signal before the end of the time; Slurm counts it in 16 bits."""


def render(job: AnyJob) -> str:
    """The script for ``sbatch``. JobError where a path depends on the directory in which it is rendered.

    A job whose duration the user limits is not queued again when that is over.
    """
    check_paths(job)
    nodes = nodes_of(job)
    window_s = _lead_s(job, nodes)
    is_limited = nodes.max_duration_s is not None
    return SCRIPT.format(
        name=shlex.quote(job.name),
        nodes=nodes.most,
        gpus=f"#SBATCH --gpus-per-node={nodes.gpus}\n" if nodes.gpus else "",
        time=_time(DAY_S if nodes.max_duration_s is None else nodes.max_duration_s + window_s),
        window_s=window_s,
        and_then="" if is_limited else AND_THEN,
        requeue="" if is_limited else REQUEUE,
        job=dump_job(job),
        kind=job.kind,
    )


def _lead_s(job: AnyJob, nodes: Nodes) -> int:
    """How long before the end of its time the run is asked to stop."""
    window_s = math.ceil(nodes.stop_window_s)
    if window_s > LONGEST_LEAD_S:
        key = f"{'base.' if isinstance(job, SearchJob | CompareJob) else ''}resources.stop_window_s"
        raise JobError(
            f"{key}: must be at most {LONGEST_LEAD_S} s, so long Slurm can signal before the end of a job's time, got "
            f"{nodes.stop_window_s:g}; use --set {key}={LONGEST_LEAD_S}"
        )
    return window_s


def _time(seconds: float) -> str:
    """As Slurm writes it, in whole minutes, of which it counts the time."""
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours // 24}-{hours % 24:02}:{minutes:02}:00"
