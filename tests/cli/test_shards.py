"""``predict`` in several processes: each image is segmented once, and no output overwrites another."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import assert_clear, files_below
from helpers.paths import ROOT
from PIL import Image

from solo_infer import ConfigError
from solo_infer.runtime.shards import WHOLE, Shard, environment_shard

pytest_plugins = ["helpers.command_line_fixtures"]


@pytest.fixture
def five(photo, tmp_path, monkeypatch):
    """Enter a folder with five photos of different names."""
    folder = tmp_path / "work" / "photos"
    folder.mkdir(parents=True)
    for number in range(5):
        Image.fromarray(photo).resize((90 + 10 * number, 80)).save(folder / f"p{number}.png")
    monkeypatch.chdir(folder.parent)
    return folder


def predict(run, saved, *arguments):
    return run("predict", "photos", "--model", saved, "--device", "cpu", *arguments)


SAVING = ["--save-json", "a.json", "--save-csv", "a.csv", "--save-dataset", "d.json", "--save-yolo", "yolo"]


@pytest.mark.parametrize("way", ["option", "torchrun"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_processes_together_write_what_one_writes(run, five, saved, monkeypatch, way, count):
    assert predict(run, saved, *SAVING, "--save-labelme", "labelme", "--output", "drawn")[0] == 0
    expected = {
        name: Path(name).read_bytes() for name in files_below(Path(".")) if not name.startswith("photos")
    }
    for name in expected:
        Path(name).unlink()
    for index in range(count):
        if way == "torchrun":
            monkeypatch.setenv("RANK", str(index))
            monkeypatch.setenv("WORLD_SIZE", str(count))
        share = [] if way == "torchrun" else ["--shard", f"{index}/{count}"]
        code, out, _ = predict(run, saved, *SAVING, "--save-labelme", "labelme", "--output", "drawn", *share)
        assert code == 0 and out.count("\n") == len(range(index, 5, count))
    for name in ("a.json", "a.csv", "d.json"):
        stem, suffix = name.split(".")
        paths = [Path(f"{stem}-{index}-of-{count}.{suffix}" if count > 1 else name) for index in range(count)]
        if name == "a.json":  # ids of images are those of one process
            merged = sorted(json.dumps(entry) for path in paths for entry in json.loads(path.read_text()))
            assert merged == sorted(map(json.dumps, json.loads(expected[name])))
        elif name == "a.csv":
            merged = sorted(row for path in paths for row in list(csv.reader(path.open()))[1:])
            assert merged == sorted(list(csv.reader(expected[name].decode().splitlines()))[1:])
        else:
            images = [image for path in paths for image in json.loads(path.read_text())["images"]]
            assert sorted(images, key=str) == sorted(json.loads(expected[name])["images"], key=str)
        assert count == 1 or not Path(name).exists()
    for name in expected.keys() - {"a.json", "a.csv", "d.json"}:
        assert Path(name).read_bytes() == expected[name], name


def test_option_replaces_the_environment(run, five, saved, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert predict(run, saved, "--no-save", "--save-csv", "a.csv", "--shard", "0/3")[0] == 0
    assert [path.name for path in Path(".").glob("a*")] == ["a-0-of-3.csv"]


def test_bad_images_count_where_they_are(run, five, saved):
    (five / "p0.png").write_text("no image")
    assert predict(run, saved, "--no-save", "--shard", "1/2")[0] == 0
    code, _, err = predict(run, saved, "--no-save", "--shard", "0/2")
    assert code == 1 and "1 failed, 2 done" in err


@pytest.mark.parametrize(
    "options",
    [["--output", "drawn"], ["--no-save", "--save-yolo", "y"], ["--no-save", "--save-labelme", "l"]]
    + [["--no-save", "--save-crops", "c"]],
    ids=str,
)
def test_equal_names_of_files_are_refused(run, photos, saved, options):
    arguments = ["predict", "photos/**/*.png", "--model", saved, *options]
    code, _, err = run(*arguments, "--shard", "0/2")
    assert code == 1
    assert_clear(err, "'photos/1.png' and 'photos/deep/1.png' would both be written to", "--shard")
    assert run(*arguments)[0] == 0  # one process numbers them


def test_a_video_of_several_is_not_drawn_into_one_file(run, five, saved):
    Path("a.mp4").write_bytes(b"x")
    Path("b.mp4").write_bytes(b"x")
    code, _, err = run("predict", "a.mp4", "b.mp4", "--output", "c.mp4", "--shard", "0/2")
    assert code == 1
    assert_clear(err, "expected one video")


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "0/0", "1/2/3", "", "0/9999999999", "٠/2"])
def test_invalid_shard(run, five, text):
    code, _, err = run("predict", "photos", f"--shard={text}")
    assert code == 2
    assert_clear(err, "expected I/N")


@pytest.mark.parametrize(
    ("rank", "size"), [("2", "2"), ("x", "2"), ("-1", "2"), ("0", "0"), ("", "2"), ("1", "1")]
)
def test_invalid_environment(run, five, monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match="RANK="):
        environment_shard()
    code, _, err = run("predict", "photos")
    assert code == 1
    assert_clear(err, "ConfigError", "WORLD_SIZE")


@pytest.mark.parametrize("printed", [["--json"], ["--save-json", "-"], ["--save-csv", "-"]], ids=str)
def test_processes_of_torchrun_do_not_print_into_one_array(run, five, monkeypatch, printed):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run("predict", "photos", "--no-save", *printed)
    assert code == 2
    assert_clear(err, "--json-lines")


def test_shards():
    assert WHOLE.of("abc") == ["a", "b", "c"] and environment_shard() == WHOLE
    assert [Shard(index, 3).of(range(7)) for index in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert Shard(2, 3).of([0, 1]) == []
    assert Shard(0, 3).path(Path("out/a.b.json")) == Path("out/a.b-0-of-3.json")


def test_torchrun(five, saved, tmp_path):
    (five / "p1.png").write_text("no image")  # its process fails, and must not stop the other
    options = ["--model", saved, "--device", "cpu", "--no-save", "--save-csv", "a.csv", "--json-lines"]
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *program, "-m", "solo_infer", "predict", "photos", *options]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=500)
    assert finished.returncode != 0 and "1 failed, 1 done" in finished.stderr
    names = [json.loads(line)["source"] for line in finished.stdout.splitlines() if line.startswith("{")]
    assert sorted(names) == [f"photos/p{number}.png" for number in (0, 2, 3, 4)]
    assert sorted(path.name for path in Path(".").glob("a*")) == ["a-0-of-2.csv", "a-1-of-2.csv"]
