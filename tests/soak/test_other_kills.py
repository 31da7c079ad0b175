"""Downloads and predictions that are killed at random moments end as undisturbed ones."""

import hashlib
import json
import multiprocessing
import os
import random
import time

import numpy as np
import pytest
from helpers.faulty_server import isolate, running_server
from PIL import Image

from solo_infer.cli.main import main
from solo_infer.weights.download import download_file

CYCLES = int(os.environ.get("SOLO_INFER_SOAK_CYCLES", "10"))
MAX_KILLS = 200  # of a call
BODY = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


def run_until_done(moments, longest, target, *arguments, check=lambda: None):
    """Start a process again and again, killed after random times, until it ends; return the number of kills.

    Args:
        moments: Random numbers.
        longest: Greatest time of a process in seconds.
        target: Function of the process.
        arguments: Its arguments.
        check: Function that is called after each kill.
    """
    for kills in range(MAX_KILLS):
        process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
        process.start()
        process.join(moments.uniform(0, longest * (1 + kills / 20)))
        if process.exitcode is not None:
            assert process.exitcode == 0
            return kills
        process.kill()
        process.join()
        check()
    raise AssertionError(f"not done after {MAX_KILLS} kills")


def slow_file(handler):
    """Serve a file, or the rest of it, within a second."""
    start = handler.range_start
    extra = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
    handler.head(206 if start else 200, Content_Length=len(BODY) - start, **extra)
    for position in range(start, len(BODY), 60_000):
        handler.body(BODY[position : position + 60_000])
        time.sleep(0.02)


@pytest.mark.soak
def test_killed_downloads(tmp_path, monkeypatch):
    isolate(monkeypatch, tmp_path / "home")
    moments, kills = random.Random(0), []
    with running_server() as server:
        url = server.at("/weights.pth", slow_file)
        for cycle in range(CYCLES):
            target = tmp_path / str(cycle) / "weights.pth"

            def check(target=target):
                assert not target.exists() or target.read_bytes() == BODY  # complete or not there at all

            kills.append(run_until_done(moments, 0.8, download, url, target, check=check))
            assert target.read_bytes() == BODY
            assert not target.with_name("weights.pth.part").exists()
        resumed = sum(bool(request.range) for request in server.requests)
    print(f"\n{CYCLES} downloads, killed {sum(kills)} times: {kills}; {resumed} requests resumed one")
    assert any(kills) and resumed


def download(url, target):
    download_file(url, target, sha256=SHA256, size=len(BODY), progress=False)


@pytest.mark.soak
def test_killed_predictions(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(photos / f"{number}.png")
    start = time.monotonic()
    run_until_done(random.Random(0), 1e6, predict, photos, tmp_path / "undisturbed")
    duration = time.monotonic() - start
    expected = outputs(tmp_path / "undisturbed")
    assert len(expected) == 13
    moments, kills = random.Random(1), []
    for cycle in range(CYCLES):
        folder = tmp_path / str(cycle)

        def check(folder=folder):
            for name, content in outputs(folder).items():
                assert content == expected[name]  # each file is complete or not there at all

        kills.append(run_until_done(moments, 0.8 * duration, predict, photos, folder, check=check))
        assert outputs(folder) == expected
    print(f"\n{CYCLES} predictions of {duration:.1f} s, killed {sum(kills)} times: {kills}")
    assert any(kills)


def predict(photos, folder):
    arguments = ["predict", str(photos), "--model", "tiny", "--device", "cpu", "--quiet"]
    assert main([*arguments, "--output", str(folder), "--save-json", str(folder / "results.json")]) == 0


def outputs(folder):
    """Return the complete outputs, JSON decoded; temporary files of killed processes are hidden."""
    files = [path for path in folder.glob("*") if not path.name.startswith(".")]
    contents = {path.name: path.read_bytes() for path in files}
    return {name: json.loads(raw) if name.endswith(".json") else raw for name, raw in contents.items()}
