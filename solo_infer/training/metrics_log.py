"""Metrics of a training run: log lines, CSV files, a plot and TensorBoard events."""

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

LOSSES_NAME, EVALUATIONS_NAME, PLOT_NAME = "training.csv", "evaluation.csv", "training.png"
TENSORBOARD_NAME = "tensorboard"
_FIRST_COLUMNS = ("epoch", "iteration", "lr", "eta", "time", "data_time", "memory")


class MetricsLogger:
    """CSV file of a run, with a row of means for each log interval.

    The columns are epoch from 1, iteration from 1 over all epochs, lr, eta in seconds, time and data_time in
    seconds per iteration, memory in MiB (peak on CUDA, 0 on the CPU), the losses, their sum, and grad_norm
    before clipping. The values are also written to TensorBoard if it is installed.

    Args:
        folder: Directory of the run. Rows after ``iteration`` are removed, because a resumed run repeats
            them.
        iteration: Number of iterations that are done.
        total: Number of iterations of the whole run.
        losses: Names of the losses of the network.
    """

    def __init__(self, folder: Path, iteration: int, total: int, losses: Sequence[str]) -> None:
        self.path, self.total = folder / LOSSES_NAME, total
        self._columns = (*_FIRST_COLUMNS, *losses, "loss", "grad_norm")
        _drop_rows_after(self.path, iteration, self._columns)
        self._tensorboard = _open_tensorboard(folder / TENSORBOARD_NAME, iteration)
        self._sums: dict[str, float] = {}
        self._count = 0
        self._start = time.perf_counter()
        self._iterations = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Add the losses and times of one iteration."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._iterations += 1

    def flush(self, epoch: int, iteration: int, lr: float) -> None:
        """Write a row with the means since the last one; without new values nothing is written."""
        if self._count == 0:
            return
        means = {name: value / self._count for name, value in self._sums.items()}
        seconds = (time.perf_counter() - self._start) / self._iterations
        memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        row: dict[str, Any] = {
            "epoch": epoch,
            "iteration": iteration,
            "lr": f"{lr:.6g}",
            "eta": f"{seconds * (self.total - iteration):.0f}",
            "memory": f"{memory:.0f}",
            **{name: f"{value:.6g}" for name, value in means.items()},
        }
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns).writerow(row)
        logger.info("%s", "  ".join(f"{name} {row[name]}" for name in self._columns if name in row))
        if self._tensorboard:
            for name in self._columns[2:]:
                self._tensorboard.add_scalar(name, float(row[name]), iteration)
        self._sums, self._count = {}, 0

    def close(self) -> None:
        """Write the remaining events of TensorBoard."""
        if self._tensorboard:
            self._tensorboard.close()


class EvaluationLog:
    """CSV file of the evaluations of a run: epoch, iteration, and the metrics in their order.

    Args:
        folder: Directory of the run. Rows after ``iteration`` are removed.
        iteration: Number of iterations that are done.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self.path = folder / EVALUATIONS_NAME
        rows = _drop_rows_after(self.path, iteration)
        self._first_metrics = [float(list(row.values())[2]) for row in rows]

    @property
    def is_best(self) -> bool:
        """``True`` if the first metric of the last evaluation exceeds that of all previous ones."""
        *previous, last = self._first_metrics
        return last > max((value for value in previous if not math.isnan(value)), default=-math.inf)

    def add(self, epoch: int, iteration: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one evaluation, which have the same names each time."""
        row: dict[str, Any] = {"epoch": epoch, "iteration": iteration}
        row |= {name: f"{value:.6g}" for name, value in metrics.items()}
        rows: list[Mapping[str, Any]] = [*read_rows(self.path), row]
        write_whole(self.path, lambda temporary: _write_rows(temporary, rows, list(row)))
        self._first_metrics.append(next(iter(metrics.values())))
        logger.info("evaluation after %s", "  ".join(f"{name} {value}" for name, value in row.items()))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file of a run, none if the file does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _drop_rows_after(path: Path, iteration: int, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rewrite a CSV file without the rows after an iteration, and return the remaining rows.

    Without rows the file has only a header if columns are given, and is removed otherwise.
    """
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


def _open_tensorboard(folder: Path, iteration: int) -> Any:
    """Return a TensorBoard writer, None if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=iteration + 1)


def plot_run(folder: Path) -> Path | None:
    """Plot losses and evaluations of a run, if matplotlib is installed, and return the path of the plot."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("The run is not plotted: matplotlib is not installed (pip install 'solo-infer[train]').")
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    rows = read_rows(folder / LOSSES_NAME)
    losses = [name for name in reversed(rows[0]) if name.startswith("loss")] if rows else []
    for name in losses:
        axes.plot([int(row["iteration"]) for row in rows], [float(row[name]) for row in rows], label=name)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=len(losses) or 1, frameon=False)
    if evaluations := read_rows(folder / EVALUATIONS_NAME):
        iterations = [int(row["iteration"]) for row in evaluations]
        right = axes.twinx()
        for name, style in zip(list(evaluations[0])[2:4], ("k-o", "k--o"), strict=False):
            percents = [100 * float(row[name]) for row in evaluations]
            right.plot(iterations, percents, style, markersize=3, label=name)
        right.set(ylabel="mask AP in percent", ylim=(0, None))
        right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, frameon=False)
    return write_whole(folder / PLOT_NAME, lambda temporary: figure.savefig(temporary, dpi=110))
