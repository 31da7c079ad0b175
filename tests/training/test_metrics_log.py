"""CSV files, plot and TensorBoard events of a run."""

import logging
import math
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

from helpers.training_runs import QUICK, Rectangles, small_start

from solo_infer.training import fit
from solo_infer.training.metrics_log import EvaluationLog, MetricsLogger, plot_run, read_rows


def test_rows_hold_means_since_the_last_one(tmp_path, caplog):
    metrics = MetricsLogger(tmp_path, 0, 10, ("loss_cls",))
    with caplog.at_level(logging.INFO):
        for loss in (1.0, 3.0):
            values = {"loss_cls": loss, "loss": loss, "grad_norm": 2.0, "time": 0.5, "data_time": 0.1}
            metrics.add(values)
        metrics.flush(1, 2, 0.01)
        metrics.flush(1, 2, 0.01)  # no new values
    metrics.close()
    (row,) = read_rows(tmp_path / "training.csv")
    assert list(row) == [
        *("epoch", "iteration", "lr", "eta", "time", "data_time", "memory"),
        *("loss_cls", "loss", "grad_norm"),
    ]
    assert (row["epoch"], row["iteration"], row["lr"], row["loss_cls"]) == ("1", "2", "0.01", "2")
    assert "loss_cls 2" in caplog.text


def test_rows_that_a_resumed_run_repeats_are_removed(tmp_path):
    metrics = MetricsLogger(tmp_path, 0, 10, ())
    for iteration in (1, 2, 3):
        metrics.add({"loss": float(iteration)})
        metrics.flush(1, iteration, 0.01)
    MetricsLogger(tmp_path, 2, 10, ())
    assert [row["loss"] for row in read_rows(tmp_path / "training.csv")] == ["1", "2"]


def test_evaluation_log_finds_the_best_and_drops_repeated_rows(tmp_path):
    log = EvaluationLog(tmp_path, 0)
    for epoch, (ap, is_best) in enumerate(((0.2, True), (0.1, False), (0.3, True), (0.3, False)), start=1):
        assert log.is_best({"AP": ap, "AP50": 2 * ap}) == is_best
        log.add(epoch, 10 * epoch, {"AP": ap, "AP50": 2 * ap})
    resumed = EvaluationLog(tmp_path, 20)
    assert [row["AP"] for row in read_rows(tmp_path / "evaluation.csv")] == ["0.2", "0.1"]
    assert resumed.is_best({"AP": 0.25, "AP50": 0.5}) and not resumed.is_best({"AP": 0.15})
    EvaluationLog(tmp_path, 0)
    assert not (tmp_path / "evaluation.csv").exists()


def test_undefined_metrics_are_never_the_best(tmp_path):
    log = EvaluationLog(tmp_path, 0)
    for epoch, (ap, is_best) in enumerate(((math.nan, False), (0.1, True), (math.nan, False), (0.2, True))):
        assert log.is_best({"AP": ap}) == is_best
        log.add(epoch, 10 * epoch, {"AP": ap})


def test_run_without_matplotlib_is_not_plotted(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # importing it raises
    with caplog.at_level(logging.INFO):
        assert plot_run(tmp_path) is None
    assert "matplotlib is not installed" in caplog.text


def test_tensorboard_gets_the_values_of_the_csv(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, iteration):
            calls.append((name, value, iteration))

        def close(self):
            calls.append("closed")

    tensorboard = ModuleType("tensorboard")
    tensorboard.__spec__ = ModuleSpec("tensorboard", None)
    writer = ModuleType("torch.utils.tensorboard")
    writer.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    fit(small_start(), Rectangles(2), tmp_path, replace(QUICK, epochs=1), device="cpu")
    assert calls[0] == (str(tmp_path / "tensorboard"), 1) and calls[-1] == "closed"
    for row in read_rows(tmp_path / "training.csv"):
        assert ("loss", float(row["loss"]), int(row["iteration"])) in calls
