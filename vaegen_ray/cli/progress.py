"""The progress of a run in the terminal: a bar, images a second, time left, and every loss."""

from collections.abc import Mapping
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from vaegen_ray.cli.console import duration

HIDDEN = (
    "images_per_s", "learning_rate", "training_s", "input_s", "evaluation_s", "checkpoint_s", "peak_memory_bytes",
)  # fmt: skip
LOSSES = ("_loss", "nll_nats", "train_kl_nats", "feature_error")
"""Endings of the names that stand first: generator's and discriminator's losses, and the terms of the bound."""

SECONDS_A_LINE = 10.0
"""Where the output is no terminal, at most one line is printed in this time."""

CELL = 46
"""Characters of a name and its value, with the space to the next."""


class TrainingProgress:
    """A live display on a terminal; else a plain line now and then."""

    def __init__(self, total_images: int, console: Console) -> None:
        self._total, self._console = total_images, console
        self._bar = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task("training", total=total_images, rate="", left="")
        self._metrics: dict[str, float] = {}
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, position: int, metrics: Mapping[str, float]) -> None:
        """Show the newest metrics; what ``metrics`` does not name keeps its last value."""
        self._metrics |= {name: value for name, value in metrics.items() if name not in HIDDEN}
        position = min(position, self._total)
        rate = metrics.get("images_per_s")
        timing = [f"{rate:,.0f} images/s", f"{duration((self._total - position) / rate)} left"] if rate else []
        if timing:
            self._bar.update(self._task, rate=timing[0], left=timing[1])
        self._bar.update(self._task, completed=position)
        if self._console.is_terminal:
            self._live.update(Group(self._bar, *self._tables()))
        elif timing and (position == self._total or self._bar.get_time() >= self._next_line_s):
            self._next_line_s = self._bar.get_time() + SECONDS_A_LINE
            losses = [f"{name} {self._metrics[name]:.4g}" for name in self._losses()]
            line = " | ".join([f"{position:,}/{self._total:,} images", *timing, *losses])
            self._console.print(line, soft_wrap=True, highlight=False)

    def _losses(self) -> list[str]:
        return sorted(name for name in self._metrics if name.endswith(LOSSES))

    def _tables(self) -> tuple[Text, Text]:
        """The losses, and below them, dimmed, as many other metrics as the terminal has lines for."""
        losses = self._losses()
        others = sorted(self._metrics.keys() - losses)
        rows = self._rows(losses)
        room = max(self._console.height - len(rows) - 3, 0)
        return Text("\n".join(rows)), Text("\n".join(self._rows(others)[:room]), style="dim")

    def _rows(self, names: list[str]) -> list[str]:
        cells = [f"{name:<31} {self._metrics[name]:>10.4g}".ljust(CELL) for name in names]
        columns = max(1, (self._console.width + 4) // CELL)
        return ["".join(cells[start : start + columns]).rstrip() for start in range(0, len(cells), columns)]
