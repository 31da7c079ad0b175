"""Runs on a real Ray cluster of two nodes whose processes are killed give the rows of an undisturbed run."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import ray_clusters
from helpers.paths import DATA, EXAMPLES
from helpers.ray_clusters import kill, processes, variables, wait_for
from PIL import Image

pytest.importorskip("ray", reason="it needs Ray, of the extra ray")
pq = pytest.importorskip("pyarrow.parquet", reason="it needs pyarrow, of the extra ray")

COUNT = 40
PER_FILE = 4
WORKER = "ray::MapWorker"
PHOTOS = os.environ.get("SOLO_INFER_SOAK_PHOTOS")  # folder of other photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of 40 photos of different sizes, and one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    own = [DATA / "chelsea.png", EXAMPLES / "street.jpg", *sorted((DATA / "people").glob("*.jpg"))]
    for number, path in enumerate(sorted(Path(PHOTOS).glob("*.jpg"))[: COUNT - len(own)] if PHOTOS else []):
        shutil.copy(path, folder / f"coco_{number:02d}.jpg")
    for number in range(COUNT - len(list(folder.iterdir()))):
        with Image.open(own[number % len(own)]) as photo:
            side = 640 - 8 * number
            photo.convert("RGB").resize((side, side * 3 // 4)).save(folder / f"photo_{number:02d}.png")
    (folder / "text.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def cluster():
    folder = tempfile.mkdtemp(prefix="ray")  # paths of sockets are short
    with ray_clusters.cluster(folder, nodes=2) as (address, token):
        yield address, token
    shutil.rmtree(folder, ignore_errors=True)


def start(photos, output, address, *options):
    """Start the command, and return its process."""
    command = [sys.executable, "-m", "solo_infer", "batch", photos, "--output", output, "--model", "tiny"]
    command += ["--device", "cpu", "--address", address, "--images-per-file", str(PER_FILE), *options]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables(),
        cwd=photos.parent,
    )


def finish(process):
    """Return the standard output and error of a process that has segmented all but the bad image."""
    out, err = process.communicate(timeout=1500)
    assert process.returncode == 1 and "1 failed, 40 done" in err, err
    return out, err


def files(output):
    """Return the content of each Parquet file by name."""
    return {path.name: path.read_bytes() for path in sorted(output.glob("part-*.parquet"))}


def rate(out):
    return float(re.search(r"([\d.]+) images/s", out)[1])


@pytest.mark.soak
def test_killed_workers_and_drivers(photos, cluster, tmp_path):
    address, token = cluster
    undisturbed = tmp_path / "undisturbed"
    out, _ = finish(start(photos, undisturbed, address, "--workers", 1))
    rates = {1: rate(out)}
    expected = files(undisturbed)
    assert len(expected) == 11
    rows = [row for path in sorted(undisturbed.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 41 and sum(len(row["instances"]) for row in rows) > 100
    assert [Path(row["uri"]).name for row in rows if row["error"]] == ["text.jpg"]

    two = tmp_path / "two"
    out, _ = finish(start(photos, two, address, "--workers", 2))
    rates[2] = rate(out)
    assert files(two) == expected

    killed = tmp_path / "killed"
    process = start(photos, killed, address, "--workers", 2)
    wait_for(lambda: len(files(killed)) >= 2)
    victims = processes(token, WORKER)
    kill(victims[0])
    left = len(expected) - len(files(killed))
    finish(process)
    assert left > 0 and files(killed) == expected

    stopped = tmp_path / "stopped"
    counts = []
    for stop in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start(photos, stopped, address, "--workers", 2)
        before = len(files(stopped))
        wait_for(lambda count=before: len(files(stopped)) > count)
        process.send_signal(stop)
        process.communicate(timeout=300)
        assert process.returncode != 0
        wait_for(lambda: not processes(token, WORKER))
        done = files(stopped)
        assert done.items() <= expected.items()
        counts.append(len(done))
    times = {path: (stopped / path).stat().st_mtime_ns for path in files(stopped)}
    process = start(photos, stopped, address, "--workers", 2)
    process.communicate(timeout=1500)
    assert files(stopped) == expected
    assert {path: (stopped / path).stat().st_mtime_ns for path in times} == times  # nothing was done twice
    print(
        f"\n{COUNT} photos, images/s by workers: {rates}; a worker was killed with {left} files left; ",
        end="",
    )
    print(f"drivers stopped after {counts} of {len(expected)} files")
