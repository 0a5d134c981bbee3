"""What `cluster/local` starts and ends, with a stand-in for Ray that leaves processes behind as Ray does."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RAY = """\
#!/bin/bash
echo "$*" >>"$SEEN.arguments"
env | grep -E '^(RAY_|CUDA)' | sort >"$SEEN.environment"
# One that knows nothing of its environment any more, one in a session of its own, as Ray's agents and drivers are.
env -i /bin/sleep 600 &
setsid /bin/sleep 600 &
echo "  ray start --address='10.1.2.3:6379'"
echo "  RAY_API_SERVER_ADDRESS='http://127.0.0.1:8265' ray job submit"
echo "Ray runtime started."
wait
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for ``cluster/local``, of which there is a copy that has no .venv beside it."""
    (tmp_path / "cluster").mkdir()
    shutil.copy("cluster/local", tmp_path / "cluster" / "local")
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "ray").write_text(RAY)
    (commands / "ray").chmod(0o755)
    (commands / "python").symlink_to(sys.executable)
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "VAEGEN_LOCAL_CLUSTER": str(tmp_path / "state"),
        "SEEN": str(tmp_path / "seen"),
    }
    yield environment
    local("down", cluster=environment)


def local(*arguments: str, cluster: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = Path(cluster["HOME"], "cluster", "local")
    return subprocess.run([program, *arguments], env=cluster, capture_output=True, text=True, check=False, timeout=60)


def processes(cluster: dict[str, str]) -> list[str]:
    """Those that stem from this test's stand-in."""
    found = subprocess.run(["pgrep", "-f", f"{cluster['HOME']}/commands/ray"], capture_output=True, text=True)
    return found.stdout.split()


def pid(cluster: dict[str, str], name: str) -> int:
    return int(Path(cluster["VAEGEN_LOCAL_CLUSTER"], f"{name}.pid").read_text())


def is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_up_starts_a_head_without_processors_and_workers_with_addresses_and_prints_the_exports(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    done = local("up", "2", cluster=cluster)
    assert done.returncode == 0, done.stderr
    token = tmp_path / "state" / "auth_token"
    assert done.stdout.splitlines() == [
        "export RAY_ADDRESS=http://127.0.0.1:8265",
        "export RAY_AUTH_MODE=token",
        f"export RAY_AUTH_TOKEN_PATH={token}",
    ]
    assert (len(token.read_text()), token.stat().st_mode & 0o777) == (64, 0o600)
    head, *workers = (tmp_path / "seen.arguments").read_text().splitlines()
    assert "--head" in head
    assert "--num-cpus=0" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert all("--address=10.1.2.3:6379" in worker and "--num-cpus=1" in worker for worker in workers)
    addresses = sorted(word for worker in workers for word in worker.split() if "node-ip" in word)
    assert addresses == ["--node-ip-address=127.0.0.2", "--node-ip-address=127.0.0.3"]
    environment = (tmp_path / "seen.environment").read_text()
    assert "RAY_AUTH_MODE=token\n" in environment
    assert "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0\n" in environment


def test_down_ends_all_that_the_nodes_left_behind_and_nothing_else(cluster: dict[str, str], tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "600"], env=cluster)
    try:
        assert local("up", "1", cluster=cluster).returncode == 0
        number = pid(cluster, "worker-1")
        children = [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
        assert len(children) == 2
        done = local("down", cluster=cluster)
        assert (done.returncode, done.stderr) == (0, "ended\n")
        assert not any(map(is_alive, [number, *children]))
        assert processes(cluster) == []
        assert bystander.poll() is None
        assert not (tmp_path / "state").exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_up_again_starts_what_is_missing_only(cluster: dict[str, str]) -> None:
    local("up", "2", cluster=cluster)
    head, first, second = (pid(cluster, name) for name in ("head", "worker-1", "worker-2"))
    subprocess.run(["kill", "-KILL", str(first)], check=True)
    while is_alive(first):
        time.sleep(0.01)
    assert "worker-1     dead" in local("status", cluster=cluster).stderr
    assert local("up", "3", cluster=cluster).returncode == 0
    assert (pid(cluster, "head"), pid(cluster, "worker-2")) == (head, second)
    assert pid(cluster, "worker-1") != first
    assert is_alive(pid(cluster, "worker-3"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["status"], "no cluster runs in"),
        (["down"], "no cluster in"),
        (["up", "many"], "WORKERS: must be a number from 1 to 99, got 'many'"),
    ],
)
def test_mistake_is_named(arguments: list[str], sentence: str, cluster: dict[str, str]) -> None:
    done = local(*arguments, cluster=cluster)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_node_that_does_not_start_is_tried_again_then_named_with_its_log(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "commands" / "ray").write_text("#!/bin/bash\necho once >>$SEEN\necho no room\nexit 1\n")
    done = local("up", cluster=cluster)
    assert done.returncode == 1
    assert "no room" in done.stderr
    assert "head did not start in 3 attempts" in done.stderr
    assert (tmp_path / "seen").read_text().count("once") == 3


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_accepts_the_scripts() -> None:
    subprocess.run(["shellcheck", "--severity=warning", "cluster/local", "cluster/slurm/train.sbatch"], check=True)
