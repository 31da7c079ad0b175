"""``solo-infer models``."""

import json

from solo_infer.runtime import environment
from solo_infer.weights import manifest

pytest_plugins = ["helpers.command_line_fixtures"]


def test_models(run, published, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "weights").mkdir(parents=True)
    (home / "weights" / "tiny_b.pth").write_bytes(b"x")
    monkeypatch.setenv(environment.HOME, str(home))
    code, out, err = run("models")
    assert (code, err) == (0, "")
    head, first, second = (line.split() for line in out.splitlines())
    assert head == ["name", "mask", "AP", "classes", "MB", "cached", "origin", "license"]
    assert first == ["tiny_a", "1.5", "80", "-", "no", "us", "for", "tests", "only"]
    assert second[:5] == ["tiny_b", "1.5", "80", "-", "yes"]
    listed = json.loads(run("models", "--json")[1])
    assert [(entry["name"], entry["cached"]) for entry in listed] == [("tiny_a", False), ("tiny_b", True)]


def test_columns_are_aligned(run):
    head, *lines = run("models")[1].splitlines()
    assert [line.split()[0] for line in lines] == manifest.available_models()
    for line in lines:
        assert line[head.index("cached") - 1] == " " and line[head.index("cached")] in "yn"
        assert line[head.index("license") - 1] == " " != line[head.index("license")]
