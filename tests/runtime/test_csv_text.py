"""Cells of CSV files that a spreadsheet would take for formulas."""

import csv

import pytest

from solo_infer.runtime.csv_text import csv_text
from solo_infer.training.metrics_log import EvaluationLog, MetricsLogger, read_rows


@pytest.mark.parametrize(
    "text", ["=1+1", "+a", "-a", "@SUM(A1)", "\t=1", "\r=1", "  =1", "=cmd|' /C calc'!A0", "\uff1d1", "-2+3"]
)
def test_formulas_are_text(text):
    assert csv_text(text) == f"'{text}" and csv_text(csv_text(text)) == csv_text(text)


@pytest.mark.parametrize("text", ["", "person", "a=b", "-1.5", "+3", "-inf", "-1e-7", "traffic light", "'=1"])
def test_other_texts_and_numbers_are_unchanged(text):
    assert csv_text(text) == text


def test_files_of_a_run_have_no_formulas(tmp_path):
    """Losses and metrics of the user's own functions have any names."""
    logger = MetricsLogger(tmp_path, 0, 2, ["=loss", "@b"])
    for iteration in (1, 2):
        values = {"=loss": -1.0, "@b": 2.0, "loss": 1.0, "grad_norm": 0.5, "time": 0.1, "data_time": 0.0}
        logger.add(values)
        logger.flush(1, iteration, 0.1)
    logger.close()
    evaluations = EvaluationLog(tmp_path, 0)
    for iteration in (1, 2):
        evaluations.add(1, iteration, {"=AP": -0.5 + iteration, "-x": 0.25})
    assert [float(row["'=loss"]) for row in read_rows(logger.path)] == [-1.0, -1.0]
    assert [(row["'=AP"], row["'-x"]) for row in read_rows(evaluations.path)] == [
        ("0.5", "0.25"),
        ("1.5", "0.25"),
    ]
    for path in (logger.path, evaluations.path):
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]
