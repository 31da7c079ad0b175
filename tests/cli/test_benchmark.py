"""``solo-infer benchmark``."""

import json

import pytest

from solo_infer.diagnostics import benchmark

pytest_plugins = ["helpers.command_line_fixtures"]


def test_table_and_chart(run, photos, saved, tmp_path):
    pytest.importorskip("matplotlib", reason="the chart needs the extra [train]")
    common = ("benchmark", "photos/1.png", "--model", saved, "--runs", 1, "--warmup", 0)
    code, out, err = run(*common, "--batch-size", 1, 3, "--save-chart", tmp_path / "chart.png")
    assert (code, err) == (0, "")
    table = [line.split() for line in out.splitlines()[2:4]]
    assert [(line[0], line[1]) for line in table] == [(saved, "1"), (saved, "3")]
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_json(run, photos, saved):
    code, out, err = run("benchmark", "photos/1.png", "--model", saved, "--runs", 1, "--warmup", 0, "--json")
    assert (code, err) == (0, "")
    (measurement,) = json.loads(out)
    assert measurement["name"] == saved and set(measurement["stages"]) == set(benchmark.STAGES)


def test_every_combination_is_measured(run, photos, saved):
    common = ("benchmark", "photos/1.png", "--runs", 1, "--warmup", 0, "--json", "--device", "cpu")
    code, out, _ = run(*common, "--model", saved, saved, "--dtype", "float32", "bfloat16")
    assert code == 0
    assert [options["dtype"] for _, options in run.loadings] == ["float32", "bfloat16"] * 2
    assert [measurement["batch_size"] for measurement in json.loads(out)] == [1] * 4
