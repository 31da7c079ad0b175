"""Predictions in processes that are forked after a prediction with several threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import solo_infer
from solo_infer.errors import DeviceError
from solo_infer.runtime.fork import require_own_cuda

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

PROGRAM = """
import multiprocessing, os, sys, threading
import numpy as np
import torch
from solo_infer import load_model

def predict(expected):
    assert torch.get_num_threads() == 1
    assert abs(len(model(image)) - expected) <= 1

torch.set_num_threads(2)
torch.mm(torch.rand(600, 600), torch.rand(600, 600))  # starts the threads
model = load_model("tiny", device="cpu")
image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
expected = len(model(image))

child = os.fork()
if child == 0:
    predict(expected)
    thread = threading.Thread(target=predict, args=(expected,))
    thread.start()
    thread.join()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
process = multiprocessing.get_context("fork").Process(target=predict, args=(expected,))
process.start()
process.join()
assert process.exitcode == 0
assert torch.get_num_threads() == 2
print("done", len(model(image)) == expected)
"""


def test_prediction_after_fork():
    root = str(Path(solo_infer.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # so that a child that hangs can be ended, too
    )
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        pytest.fail("The prediction in the child process hangs.")
    assert (out, err) == ("done True\n", "")


def test_cuda_of_the_parent_process_is_refused(monkeypatch):
    card, cpu = torch.device("cuda", 0), torch.device("cpu")
    require_own_cuda(card)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True, raising=False)
    require_own_cuda(cpu)
    with pytest.raises(DeviceError, match="cuda:0 was set up before this process was forked"):
        require_own_cuda(card)
