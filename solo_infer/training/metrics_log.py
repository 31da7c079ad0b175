"""What a training run leaves to be read: log lines, csv files, a picture, TensorBoard's events."""

from __future__ import annotations

import csv
import importlib.util
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from solo_infer.runtime.atomic_files import write_whole

logger = logging.getLogger(__name__)

CSV_NAME, SCORES_NAME, PLOT_NAME = "training.csv", "evaluation.csv", "training.png"
BOARD_NAME = "tensorboard"
_COLUMNS = ("epoch", "iteration", "lr", "eta", "time", "data_time", "memory")  # before the losses


def columns(losses: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a run's csv whose network has these losses."""
    return (*_COLUMNS, *losses, "loss", "grad_norm")


class Record:
    """The csv of a run: one row for each log interval, with means over it.

    Columns: epoch from 1, iteration from 1 over all epochs, lr, eta in seconds, time and data_time in
    seconds an iteration, memory in MiB (peak on CUDA, 0 on the CPU), losses, grad_norm before clipping.

    They go to TensorBoard too, if that is installed.

    Args:
        folder: Of the run; rows after ``iteration`` are dropped, for a resumed run writes them again.
        iteration: Iterations that are done.
        total: Iterations of the whole run.
        losses: Names of the network's losses.
    """

    def __init__(self, folder: Path, iteration: int, total: int, losses: Sequence[str]) -> None:
        self.path, self.total, self._columns = folder / CSV_NAME, total, columns(losses)
        _drop_rows_after(self.path, iteration, self._columns)
        self._board = _open_board(folder / BOARD_NAME, iteration)
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
        row: dict[str, Any] = {
            "epoch": epoch,
            "iteration": iteration,
            "lr": f"{lr:.6g}",
            "eta": f"{each * (self.total - iteration):.0f}",
            "memory": f"{memory:.0f}",
            **{name: f"{value:.6g}" for name, value in means.items()},
        }
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns).writerow(row)
        logger.info("%s", "  ".join(f"{name} {row[name]}" for name in self._columns if name in row))
        if self._board:
            for name in self._columns[2:]:
                self._board.add_scalar(name, float(row[name]), iteration)
        self._sums, self._count = {}, 0

    def close(self) -> None:
        """Write what TensorBoard's writer still holds."""
        if self._board:
            self._board.close()


class Scores:
    """The csv of a run's evaluations: epoch, iteration, and the metrics in the order they come in.

    Args:
        folder: Of the run; rows after ``iteration`` are dropped.
        iteration: Iterations that are done.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self.path = folder / SCORES_NAME
        rows = _drop_rows_after(self.path, iteration)
        self._seen = [float(list(row.values())[2]) for row in rows]

    @property
    def last_is_best(self) -> bool:
        """Whether the first metric of the last evaluation exceeds that of all before it."""
        *before, last = self._seen
        return last > max(before, default=-math.inf)

    def add(self, epoch: int, iteration: int, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of one evaluation, the same names each time."""
        row: dict[str, Any] = {"epoch": epoch, "iteration": iteration}
        row |= {k: f"{v:.6g}" for k, v in metrics.items()}
        rows: list[Mapping[str, Any]] = [*read_rows(self.path), row]
        write_whole(self.path, lambda temporary: _write_rows(temporary, rows, list(row)))
        self._seen.append(next(iter(metrics.values())))
        logger.info("evaluation after %s", "  ".join(f"{name} {value}" for name, value in row.items()))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a run's csv, none if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _drop_rows_after(path: Path, iteration: int, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rewrite a csv without the rows after an iteration, with a header at least if there are columns."""
    rows = [row for row in read_rows(path) if int(row["iteration"]) <= iteration]
    if columns or rows:
        names = list(columns) or list(rows[0])
        write_whole(path, lambda temporary: _write_rows(temporary, rows, names))
    else:
        path.unlink(missing_ok=True)
    return rows


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def _open_board(folder: Path, iteration: int) -> Any:
    """Return TensorBoard's writer, None if it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=iteration + 1)


def plot_run(folder: Path) -> Path | None:
    """Draw losses and evaluations of a run as a picture, if matplotlib is installed; return its path."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("No picture of the run: matplotlib is not installed (pip install 'solo-infer[train]').")
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    rows = read_rows(folder / CSV_NAME)
    losses = [name for name in reversed(rows[0]) if name.startswith("loss")] if rows else []
    for name in losses:
        axes.plot([int(row["iteration"]) for row in rows], [float(row[name]) for row in rows], label=name)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=len(losses) or 1, frameon=False)
    if scores := read_rows(folder / SCORES_NAME):
        right = axes.twinx()
        for name, style in zip(list(scores[0])[2:4], ("k-o", "k--o"), strict=False):
            values = [100 * float(row[name]) for row in scores]
            right.plot([int(row["iteration"]) for row in scores], values, style, markersize=3, label=name)
        right.set(ylabel="mask AP in percent", ylim=(0, None))
        right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, frameon=False)
    return write_whole(folder / PLOT_NAME, lambda temporary: figure.savefig(temporary, dpi=110))
