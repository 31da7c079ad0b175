"""Metrics of a training run: log lines, CSV files, a plot and TensorBoard events."""

from __future__ import annotations

import csv
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from solo_infer.errors import CheckpointError
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.runtime.csv_text import csv_text
from solo_infer.runtime.messages import describe_error, quoted
from solo_infer.training.checkpointing import written

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
        state: ``state_dict()`` of the run that is resumed.

    Raises:
        CacheError: The file cannot be written.
        CheckpointError: The file of the run is damaged.
    """

    def __init__(
        self,
        folder: Path,
        iteration: int,
        total: int,
        losses: Sequence[str],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.path, self.total = folder, folder / LOSSES_NAME, total
        self._columns = (*_FIRST_COLUMNS, *map(csv_text, losses), "loss", "grad_norm")
        _drop_rows_after(self.path, iteration, self._columns)
        self._recorders = {"TensorBoard", "matplotlib"}  # those that have not failed yet
        self._tensorboard: Any = None
        self._record("TensorBoard", lambda: self._open_tensorboard(iteration))
        state = state or {}
        self._sums: dict[str, float] = dict(state.get("sums", {}))
        self._count = int(state.get("count", 0))
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
            **{csv_text(name): f"{value:.6g}" for name, value in means.items()},
        }
        with written(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns).writerow(row)
        logger.info("%s", self._line(epoch, iteration, lr, seconds, means))
        if self._tensorboard:
            self._record("TensorBoard", lambda: self._add_scalars(row, iteration))
        self._sums, self._count = {}, 0

    def _line(self, epoch: int, iteration: int, lr: float, seconds: float, means: Mapping[str, float]) -> str:
        """Return a row for a reader."""
        values = [f"epoch {epoch}", f"iteration {iteration}/{self.total}", describe_losses(means)]
        if "grad_norm" in means:
            values.append(f"grad_norm {means['grad_norm']:.2f}")
        values += [f"lr {lr:.2g}", f"{seconds:.2f} s/it"]
        eta = timedelta(seconds=round(seconds * (self.total - iteration)))
        return ", ".join([*values, f"{eta} left"])

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last row, JSON-ready."""
        return {"sums": self._sums, "count": self._count}

    def plot(self) -> None:
        """Plot the run if matplotlib is installed."""
        self._record("matplotlib", lambda: plot_run(self.folder))

    def close(self) -> None:
        """Write the remaining events of TensorBoard."""
        if self._tensorboard:
            self._record("TensorBoard", self._tensorboard.close)

    def _record(self, name: str, record: Callable[[], object]) -> None:
        """Call an optional recorder, which is not called again after it has failed."""
        if name not in self._recorders:
            return
        try:
            record()
        except Exception as error:  # broken installations raise errors of any type
            self._recorders.discard(name)
            logger.warning(
                "%s does not work and is not used in this run: %s", name, quoted(describe_error(error), 200)
            )

    def _open_tensorboard(self, iteration: int) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._tensorboard = SummaryWriter(str(self.folder / TENSORBOARD_NAME), purge_step=iteration + 1)

    def _add_scalars(self, row: Mapping[str, Any], iteration: int) -> None:
        for name in self._columns[2:]:
            self._tensorboard.add_scalar(name, float(row[name]), iteration)


def describe_losses(losses: Mapping[str, float]) -> str:
    """Return the losses and their sum, such as "loss 1.500 (loss_cls 0.500, loss_mask 1.000)"."""
    parts = ", ".join(f"{name} {value:.3f}" for name, value in losses.items() if name.startswith("loss_"))
    total = f"loss {losses['loss']:.3f}" if "loss" in losses else ""
    return f"{total} ({parts})".strip() if parts else total


class EvaluationLog:
    """CSV file of the evaluations of a run: epoch, iteration, and the metrics in their order.

    A warning is logged, once, if the first metric is 0 in all evaluations of the first third of the run.

    Args:
        folder: Directory of the run. Rows after ``iteration`` are removed.
        iteration: Number of iterations that are done.
        total: Number of iterations of the whole run. Defaults to an unknown one, without the warning.
    """

    def __init__(self, folder: Path, iteration: int, total: int | None = None) -> None:
        self.path, self.total = folder / EVALUATIONS_NAME, total
        self.latest = ""  # first metric of the last evaluation for a reader, such as "AP 31.5"
        rows = _drop_rows_after(self.path, iteration)
        try:
            self._first_metrics = [float(list(row.values())[2]) for row in rows]
        except (IndexError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged: remove it, then resume the run.") from error

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Return whether the first metric of a new evaluation exceeds that of all previous ones."""
        value = _rounded(next(iter(metrics.values())))
        return value > max((old for old in self._first_metrics if not math.isnan(old)), default=-math.inf)

    def add(self, epoch: int, iteration: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one evaluation.

        Raises:
            CacheError: The file cannot be written.
        """
        row: dict[str, Any] = {"epoch": epoch, "iteration": iteration}
        row |= {csv_text(name): f"{value:.6g}" for name, value in metrics.items()}
        rows: list[Mapping[str, Any]] = [*read_rows(self.path), row]
        columns = list(dict.fromkeys(name for item in reversed(rows) for name in item))
        with written(self.path):
            write_whole(self.path, lambda temporary: _write_rows(temporary, rows, columns))
        name, value = next(iter(metrics.items()))
        self._first_metrics.append(_rounded(value))
        self.latest = _percent(name, value)
        shown = ", ".join(_percent(*item) for item in metrics.items())
        logger.info("evaluation after epoch %d (iteration %d), in percent: %s", epoch, iteration, shown)
        self._warn_if_zero(name, epoch, iteration)

    def _warn_if_zero(self, name: str, epoch: int, iteration: int) -> None:
        """Log what to check if nothing has been detected in the first third of the run."""
        total = self.total
        if total is None or 3 * iteration < total or any(value != 0 for value in self._first_metrics):
            return
        self.total = None  # one warning is enough
        logger.warning(
            "%s is still 0 after epoch %d (%d of %d iterations). Check that the masks and classes of the "
            "training and validation data are right and that the losses fall. New classes need about 50 "
            "iterations: train for more epochs, with a smaller batch size or with a higher learning rate.",
            name,
            epoch,
            iteration,
            total,
        )


def _percent(name: str, value: float) -> str:
    return f"{name} -" if math.isnan(value) else f"{name} {100 * value:.1f}"


def _rounded(value: float) -> float:
    """Return a metric as the file has it, so that a resumed run finds the same best evaluation."""
    return float(f"{value:.6g}")


def is_evaluated(folder: Path, iteration: int) -> bool:
    """Return whether a run has a row for the evaluation after an iteration."""
    return any(int(row["iteration"]) == iteration for row in read_rows(folder / EVALUATIONS_NAME))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a CSV file of a run, none if the file does not exist.

    A last row that a full disk cut off is left out.

    Raises:
        CheckpointError: The file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        if rows and (None in rows[-1] or None in rows[-1].values()):
            rows.pop()
        for row in rows:
            int(row["iteration"])
        return rows
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise CheckpointError(
            f"{path} is damaged ({describe_error(error)}): correct or remove it, then resume the run."
        ) from error


def _drop_rows_after(path: Path, iteration: int, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rewrite a CSV file without the rows after an iteration, and return the remaining rows.

    Without rows the file has only a header if columns are given, and is removed otherwise.
    """
    rows = [row for row in read_rows(path) if int(row["iteration"]) <= iteration]
    if columns or rows:
        names = list(columns) or list(rows[0])
        with written(path):
            write_whole(path, lambda temporary: _write_rows(temporary, rows, names))
    else:
        with written(path):
            path.unlink(missing_ok=True)
    return rows


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


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
