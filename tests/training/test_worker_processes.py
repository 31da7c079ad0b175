"""Loading of batches by worker processes: errors, dead and stuck workers, and scarce shared memory."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import ROOT, TESTS
from torch.utils.data import _utils

from solo_infer.errors import ConfigError, DataError, SoloInferError, TrainingError
from solo_infer.training import worker_processes
from solo_infer.training.worker_processes import WorkerTraceback, load_batches

KEYS = [[0, 1], [2, 3], [4, 5], [6, 7]]


@dataclass(frozen=True)
class Numbers:
    """Loaded batch: a tensor of keys."""

    values: torch.Tensor

    @property
    def nbytes(self):
        return self.values.nbytes

    def pin_memory(self):
        return self


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(first)


def load_numbers(keys):
    return Numbers(torch.tensor(keys, dtype=torch.int64))


def load(keys_or_loader, workers=2):
    """Return the values of all batches."""
    batches = load_batches(keys_or_loader, KEYS, workers, torch.Generator("cpu"))
    return [batch.values.tolist() for batch in batches]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(worker_processes, "_POLL_SECONDS", 0.3)
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.3)


@pytest.mark.parametrize("free", [float("inf"), 0.0])
def test_batches_arrive_in_order_by_either_way(monkeypatch, caplog, free):
    monkeypatch.setattr(worker_processes, "_free_shared_memory", lambda: free)
    assert load(load_numbers) == load(load_numbers, workers=0) == KEYS
    assert caplog.text.count("too little free memory") == (free == 0)
    assert "--shm-size" in caplog.text or free


def test_shared_memory_that_is_full_after_all(monkeypatch):
    def dumps(batch):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(worker_processes, "ForkingPickler", SimpleNamespace(dumps=dumps))
    assert load(load_numbers) == KEYS


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (DataError("3.png cannot be read as an image."), DataError),
        (ConfigError("Images of another size."), ConfigError),
        (ValueError("a function of the user"), ValueError),
        (MemoryError("too large"), MemoryError),
        (Unpicklable("first", "second"), TrainingError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_those_of_loading_without_workers(error, type_):
    def fail(keys):
        if keys == KEYS[2]:
            raise error
        return load_numbers(keys)

    received = []
    with pytest.raises(type_) as caught:
        for batch in load_batches(fail, KEYS, 2, torch.Generator("cpu")):
            received.append(batch.values.tolist())
    assert received == KEYS[:2]
    assert type(caught.value) is type_ and str(error) in str(caught.value)
    assert type_ is TrainingError or str(caught.value) == str(error)
    assert isinstance(caught.value.__cause__, WorkerTraceback) != isinstance(error, SoloInferError)


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3)])
@pytest.mark.parametrize("in_thread", [False, True])
def test_dead_workers_are_reported(end, in_thread):
    def die(keys):
        if keys == KEYS[1]:
            end()
        return load_numbers(keys)

    errors = []

    def consume():
        try:
            load(die)
        except TrainingError as error:
            errors.append(str(error))

    if in_thread:
        thread = threading.Thread(target=consume)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    else:
        consume()
    assert "ended before its batch was complete" in errors[0]
    assert "pid" in errors[0] and "--shm-size" in errors[0] and "--workers 0" in errors[0]


def test_wait_for_a_stuck_worker_is_bounded(monkeypatch):
    monkeypatch.setattr(worker_processes, "_MAX_POLLS", 2)

    def hang(keys):
        time.sleep(100)

    start = time.monotonic()
    with pytest.raises(TrainingError, match="no batch within 1 seconds.*--workers 0"):
        load(hang, workers=1)
    assert time.monotonic() - start < 30


def test_slow_workers_are_waited_for():
    def slow(keys):
        time.sleep(0.7)  # more than two polls
        return load_numbers(keys)

    assert load(slow, workers=4) == KEYS


def test_workers_that_cannot_start(monkeypatch):
    def fork(*arguments):
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(TrainingError, match="cannot be started.*Resource temporarily.*--workers 0"):
        load(load_numbers)


def test_batch_that_cannot_be_taken_over():
    parcel = worker_processes._Parcel(pickle.dumps(load_numbers([1]))[:-5])
    with pytest.raises(TrainingError, match="cannot be taken over"):
        parcel.open()


def test_full_shared_memory_of_a_container(tmp_path):
    """Mount 8 MiB of shared memory, as Docker mounts 64, and send batches of 12 MB."""
    script = f"""
import sys
sys.path[:0] = {[str(TESTS), str(ROOT)]!r}
import torch
from solo_infer.training.worker_processes import load_batches
class Batch:
    nbytes = 12_000_000
    def __init__(self, keys):
        self.values = torch.full((3_000_000,), float(keys[0]))
batches = load_batches(Batch, [[0], [1], [2], [3], [4]], 2, torch.Generator("cpu"))
print([float(batch.values.mean()) for batch in batches])
"""
    mount = "mount -t tmpfs -o size=8m tmpfs /dev/shm || exit 77; exec "
    path = tmp_path / "script.py"
    path.write_text(script)
    command = ["unshare", "-m", "sh", "-c", f"{mount}{sys.executable} {path}"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=200)
    except FileNotFoundError:
        pytest.skip("this system has no unshare")
    if process.returncode in (1, 77) and not process.stdout:
        pytest.skip(f"no permission to mount a file system: {process.stderr[-200:]}")
    assert process.stdout == "[0.0, 1.0, 2.0, 3.0, 4.0]\n", process.stderr
