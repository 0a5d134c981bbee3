"""What a user sees while a run trains: on a terminal, and in a file."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from vaegen_ray.cli.progress import TrainingProgress

METRICS = {
    "generator_loss": 0.25,
    "discriminator_loss": 1.375,
    "adversarial_loss": 0.6931,
    "nll_nats": 812.5,
    "train_kl_nats": 12.25,
    "adversarial_share": 0.4,
    "images_per_s": 2000.0,
    "learning_rate": 1e-3,
}
LOSSES = ("generator_loss", "discriminator_loss", "adversarial_loss", "nll_nats", "train_kl_nats")

ON_A_TERMINAL = f"""
from rich.console import Console
from vaegen_ray.cli.progress import TrainingProgress
with TrainingProgress(48_000, Console()) as progress:
    progress.update(12_000, {METRICS})
"""


def screen(columns: int, lines: int) -> str:
    """The last frame that the display leaves on a pseudo terminal of that size."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL], stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            output += os.read(master, 65536)
        except OSError:  # The child has closed its end.
            break
    os.close(master)
    assert child.wait() == 0
    frame = re.split(r"\x1b\[2K(?!\x1b)", output.decode())[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame).replace("\r", "")


def test_terminal_shows_rate_time_left_and_every_loss() -> None:
    frame = screen(columns=110, lines=30)
    assert "25%" in frame
    assert "12,000/48,000 images" in frame
    assert "2,000 images/s" in frame
    assert "0:18 left" in frame
    for name in (*LOSSES, "adversarial_share"):
        assert re.search(rf"{name} +[\d.]+", frame), name
    assert "learning_rate" not in frame
    assert max(map(len, frame.split("\n"))) <= 110


def test_low_terminal_keeps_the_losses_and_drops_the_rest() -> None:
    frame = screen(columns=92, lines=6)
    assert all(name in frame for name in LOSSES)
    assert "adversarial_share" not in frame


@pytest.fixture
def lines() -> tuple[TrainingProgress, io.StringIO]:
    """The display of a run whose output is a file."""
    file = io.StringIO()
    return TrainingProgress(1000, Console(file=file, width=40)), file


def test_file_gets_a_plain_line_with_rate_time_left_and_every_loss(
    lines: tuple[TrainingProgress, io.StringIO],
) -> None:
    shown, file = lines
    with shown:
        shown.update(500, METRICS | {"images_per_s": 0.1})
    assert file.getvalue() == (
        "500/1,000 images | 0 images/s | 1:23:20 left | adversarial_loss 0.6931 | discriminator_loss 1.375 | "
        "generator_loss 0.25 | nll_nats 812.5 | train_kl_nats 12.25\n"
    )


def test_file_gets_few_lines_and_always_the_last(lines: tuple[TrainingProgress, io.StringIO]) -> None:
    shown, file = lines
    with shown:
        for position in range(100, 1001, 100):
            shown.update(position, METRICS)
        shown.update(1000, {"sample_fid": 3.0})
    assert [line.split()[0] for line in file.getvalue().splitlines()] == ["100/1,000", "1,000/1,000"]


def test_last_step_may_pass_the_total(lines: tuple[TrainingProgress, io.StringIO]) -> None:
    shown, file = lines
    with shown:
        shown.update(1024, METRICS)
    assert file.getvalue().startswith("1,000/1,000 images | 2,000 images/s | 0:00 left | ")
