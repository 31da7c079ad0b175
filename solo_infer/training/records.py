"""What a training run leaves to be read: log lines, a csv, a picture of the losses."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from solo_infer._files import write_whole

logger = logging.getLogger(__name__)

CSV_NAME, PLOT_NAME = "training.csv", "losses.png"
COLUMNS = (
    "epoch",
    "iteration",
    "lr",
    "eta",
    "time",
    "data_time",
    "memory",
    "loss_cls",
    "loss_mask",
    "loss",
    "grad_norm",
)


class Record:
    """The csv of a run: one row for each log interval, with means over it.

    Columns: epoch from 1, iteration from 1 over all epochs, lr, eta in seconds, time and data_time in
    seconds an iteration, memory in MiB (peak on CUDA, 0 on the CPU), losses, grad_norm before clipping.

    Args:
        path: The csv; rows after ``iteration`` are dropped, for a resumed run writes them again.
        iteration: Iterations that are done.
        total: Iterations of the whole run.
    """

    def __init__(self, path: Path, iteration: int, total: int) -> None:
        self.path, self.total = path, total
        kept = [row for row in read_rows(path) if int(row["iteration"]) <= iteration]
        write_whole(path, lambda temporary: _write_rows(temporary, kept))
        self._sums: dict[str, float] = {}
        self._count = 0
        self._start = time.perf_counter()
        self._iterations = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the losses and times of one iteration."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._iterations += 1

    def flush(self, epoch: int, iteration: int, lr: float) -> None:
        """Write a row of means, if anything came since the last one."""
        if self._count == 0:
            return
        means = {name: value / self._count for name, value in self._sums.items()}
        each = (time.perf_counter() - self._start) / self._iterations
        memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        row = {
            "epoch": epoch,
            "iteration": iteration,
            "lr": f"{lr:.6g}",
            "eta": f"{each * (self.total - iteration):.0f}",
            "memory": f"{memory:.0f}",
            **{name: f"{value:.6g}" for name, value in means.items()},
        }
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(row)
        logger.info("%s", "  ".join(f"{name} {row[name]}" for name in COLUMNS if name in row))
        self._sums, self._count = {}, 0


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a run's csv, none if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def plot_losses(folder: Path) -> Path | None:
    """Draw the csv of a run as a picture, if matplotlib is installed; return its path."""
    rows = read_rows(folder / CSV_NAME)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info(
            "No picture of the losses: matplotlib is not installed (pip install 'solo-infer[train]')."
        )
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    iterations = [int(row["iteration"]) for row in rows]
    for name in ("loss", "loss_mask", "loss_cls"):
        axes.plot(iterations, [float(row[name]) for row in rows], label=name)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return write_whole(folder / PLOT_NAME, lambda temporary: figure.savefig(temporary, dpi=110))
