"""CSV files, plot and TensorBoard events of a run."""

import logging
import math
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from helpers.training_runs import ONE_LAYER, QUICK, Noise, Rectangles, one_layer_model, small_start
from PIL import Image

from solo_infer.errors import CheckpointError
from solo_infer.training import fit
from solo_infer.training.metrics_log import EvaluationLog, MetricsLogger, plot_run, read_rows


@pytest.fixture
def no_plots():
    """Plot the runs of this file."""


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


def test_run_is_plotted(tmp_path, caplog):
    pytest.importorskip("matplotlib", reason="the plot needs the extra [train]")
    fit(one_layer_model(), Noise(2), tmp_path, ONE_LAYER, device="cpu", evaluate=lambda model: {"AP": 0.25})
    with Image.open(tmp_path / "training.png") as plot:
        assert min(plot.size) > 400 and len(plot.convert("L").getcolors()) > 20
    assert "does not work" not in caplog.text


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


def break_matplotlib(monkeypatch, error):
    class Figure:
        def __init__(self, **options):
            raise error

    module = ModuleType("matplotlib.figure")
    module.Figure = Figure
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)


def break_tensorboard(monkeypatch, error, at):
    class SummaryWriter:
        def __init__(self, folder, purge_step):
            if at == "start":
                raise error

        def add_scalar(self, name, value, iteration):
            if at == "row":
                raise error

        def close(self):
            if at == "end":
                raise error

    tensorboard = ModuleType("tensorboard")
    tensorboard.__spec__ = ModuleSpec("tensorboard", None)
    writer = ModuleType("torch.utils.tensorboard")
    writer.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)


@pytest.mark.parametrize(
    ("at", "error"),
    [
        ("plot", AttributeError("module 'matplotlib' has no attribute 'rcParams'")),
        ("plot", ValueError("'Qt4Agg' is not a valid value for backend")),
        ("plot", OSError(28, "No space left on device")),
        ("start", TypeError("Descriptors cannot be created directly")),
        ("row", UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range(128)")),
        ("end", OSError(28, "No space left on device")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_broken_recorders_warn_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog, at, error):
    if at == "plot":
        break_matplotlib(monkeypatch, error)
    else:
        break_tensorboard(monkeypatch, error, at)
    fit(one_layer_model(), Noise(2), tmp_path, ONE_LAYER, device="cpu")
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "is not used in this run" in warnings[0]
    assert type(error).__name__ in warnings[0] and warnings[0].isprintable()
    assert len(read_rows(tmp_path / "training.csv")) == 4


def test_row_that_a_full_disk_cut_off_is_left_out(tmp_path):
    path = tmp_path / "training.csv"
    path.write_text("epoch,iteration,loss\n1,1,0.5\n1,2,0.4\n1,3")
    assert [row["loss"] for row in read_rows(path)] == ["0.5", "0.4"]


@pytest.mark.parametrize("content", ["epoch,loss\n1,2\n", "epoch,iteration,AP\n1,x,0.5\n", "\xff\xfe"])
def test_damaged_tables_are_named(tmp_path, content):
    path = tmp_path / "evaluation.csv"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match="evaluation.csv is damaged"):
        EvaluationLog(tmp_path, 10)
        read_rows(path)
        raise AssertionError("the table was read")


def test_best_evaluation_is_found_in_the_digits_of_the_file(tmp_path):
    """A resumed run reads rounded metrics, and must find the same best model."""
    first, second = 0.12345690, 0.12345695
    log = EvaluationLog(tmp_path, 0)
    log.add(1, 1, {"AP": first})
    assert log.is_best({"AP": second}) == EvaluationLog(tmp_path, 1).is_best({"AP": second})


def test_other_metrics_of_a_resumed_run_get_columns(tmp_path):
    EvaluationLog(tmp_path, 0).add(1, 1, {"AP": 0.1, "AR100": 0.2})
    EvaluationLog(tmp_path, 1).add(2, 2, {"AP": 0.3, "AR50": 0.4})
    rows = read_rows(tmp_path / "evaluation.csv")
    assert [(row["AP"], row["AR100"], row["AR50"]) for row in rows] == [
        ("0.1", "0.2", ""),
        ("0.3", "", "0.4"),
    ]


def test_log_lines_are_readable(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("solo_infer.training.metrics_log.time.perf_counter", iter((0.0, 1.0)).__next__)
    metrics = MetricsLogger(tmp_path, 0, 7200, ("loss_cls", "loss_mask"))
    metrics.add({"loss_cls": 0.123456, "loss_mask": 2.0, "loss": 2.123456, "grad_norm": 1234.567})
    with caplog.at_level(logging.INFO):
        metrics.flush(1, 3600, 1.23456e-4)
        EvaluationLog(tmp_path, 0).add(1, 3600, {"AP": 0.123456, "AP50": 1.0, "APs": math.nan})
    line, evaluation = caplog.messages
    assert line.startswith("epoch 1, iteration 3600/7200, loss 2.123 (loss_cls 0.123, loss_mask 2.000), ")
    assert line.endswith("grad_norm 1234.57, lr 0.00012, 1.00 s/it, 1:00:00 left")
    assert evaluation == ("evaluation after epoch 1 (iteration 3600), in percent: AP 12.3, AP50 100.0, APs -")


ZERO, SOME = {"AP": 0.0}, {"AP": 0.001}


@pytest.mark.parametrize(
    ("metrics", "warned_at"),
    [
        ([ZERO] * 6, [2]),  # a third of the run, and only once
        ([ZERO, ZERO, SOME, ZERO], [2]),
        ([ZERO, SOME, ZERO, ZERO], []),
        ([SOME, ZERO, ZERO, ZERO], []),
        ([{"AP": math.nan}] * 6, []),
    ],
)
def test_ap_that_stays_zero_is_warned_about(tmp_path, caplog, metrics, warned_at):
    log = EvaluationLog(tmp_path, 0, 60)
    warned = []
    for epoch, values in enumerate(metrics, start=1):
        log.add(epoch, 10 * epoch, values)
        warned += [epoch] * any("AP is still 0" in message for message in caplog.messages)
        caplog.clear()
    assert warned == warned_at


def test_ap_of_zero_in_the_only_evaluation_is_warned_about(tmp_path, caplog):
    fit(
        one_layer_model(),
        Noise(2),
        tmp_path,
        replace(ONE_LAYER, evaluate_every=100),
        device="cpu",
        evaluate=lambda model: ZERO,
    )
    (warning,) = [message for message in caplog.messages if "AP is still 0" in message]
    assert "4 of 4 iterations" in warning and "masks and classes" in warning and "epochs" in warning


def test_progress_bar_shows_losses_and_ap(tmp_path, monkeypatch):
    shown = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self):
            shown.append("it")

        def set_postfix_str(self, text):
            shown.append(text)

    monkeypatch.setattr("solo_infer.training.trainer.progress_bar", lambda **options: Bar())
    fit(one_layer_model(), Noise(1), tmp_path, ONE_LAYER, device="cpu", evaluate=lambda model: {"AP": 0.25})
    loss = float(read_rows(tmp_path / "training.csv")[1]["loss"])
    assert shown[-1] == f"loss {loss:.3f} (loss_cls {loss:.3f}), AP 25.0"
