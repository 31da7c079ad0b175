"""Kernels and their twins: the interpreter's verdict, and what happens where a kernel cannot run."""

import logging
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from solo_infer.config import PreprocessConfig
from solo_infer.inference.preprocess import plan, prepare, prepare_batch
from solo_infer.ops import batched_nms, dispatch, packed_masks
from solo_infer.ops.group_norm_relu import group_norm_relu
from solo_infer.ops.matrix_nms import matrix_nms
from solo_infer.ops.paste_masks import enlarge, enlarge_torch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_failures_before(monkeypatch):
    monkeypatch.setattr(dispatch, "_failed", {})


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(
    find_spec("triton") is not None and version("triton").startswith("2."),
    reason="the interpreter of Triton 2 lacks what the kernels need",
)
def test_kernels_equal_their_twins_in_the_interpreter():
    kernels = Path(__file__).with_name("interpreter_suite.py")
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(kernels.parents[1])]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(kernels)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout and "skipped" not in found.stdout


def test_a_kernel_that_fails_is_told_once_and_never_tried_again(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: True)
    tries = []

    def fail():
        tries.append(1)
        raise OSError("no compiler\nhere")

    with caplog.at_level(logging.WARNING, "solo_infer"):
        assert [dispatch.run("sums", CPU, fail, lambda: 7) for _ in range(3)] == [7, 7, 7]
        assert dispatch.run("products", CPU, lambda: 8, lambda: 7) == 8
    assert len(tries) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "The Triton kernel 'sums' does not run here, PyTorch does its work: OSError: no compiler"
    ]
    assert dispatch.failures() == {"sums": "OSError: no compiler"}


def test_want_of_memory_is_no_fault_of_a_kernel(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: True)

    def fail():
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        dispatch.run("sums", CPU, fail, lambda: 7)
    assert dispatch.failures() == {}


def test_no_kernel_where_triton_is_not_allowed(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: False)
    assert dispatch.run("sums", CPU, lambda: 8, lambda: 7) == 7


def test_every_kernel_has_a_way_without_triton(monkeypatch, photo):
    """As where Triton is allowed but cannot be imported."""
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: True)
    names = ("matrix_nms_triton", "group_norm_triton", "enlarging_triton", "preparing_triton")
    for name in names:
        monkeypatch.setitem(sys.modules, f"solo_infer.ops.{name}", None)
    config = PreprocessConfig(short_side=64, long_side=96)
    geometry = plan(photo, config)
    inputs = prepare_batch([photo], [geometry], config, CPU, torch.float32)
    assert torch.equal(inputs[0], prepare(photo, geometry, config, CPU))
    normed = group_norm_relu(inputs, 3, torch.ones(3), torch.zeros(3), 1e-5)
    assert torch.equal(normed, torch.nn.functional.group_norm(inputs, 3).relu())
    soft = torch.rand(2, 16, 24)
    found = enlarge(soft, (64, 96), (60, 96), (30, 41), 0.5)
    assert all(map(torch.equal, found, enlarge_torch(soft, (64, 96), (60, 96), (30, 41), 0.5)))
    factors = batched_nms.decay_factors(
        torch.ones(1, 2, 1, dtype=torch.uint8), torch.ones(1, 2), torch.zeros(1, 2).long(), "linear", 2.0
    )
    assert factors.tolist() == [[1.0, 0.0]]
    assert len(dispatch.failures()) == 4


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_batched_matrix_nms_is_matrix_nms(kernel):
    masks = torch.rand(2, 40, 12, 14, generator=torch.Generator().manual_seed(1)) < 0.6
    masks[0, 5], masks[1, 7] = masks[0, 4], False
    scores = torch.linspace(0.9, 0.1, 40).expand(2, 40)
    labels = torch.randint(3, (2, 40), generator=torch.Generator().manual_seed(2))
    factors = batched_nms.decay_factors_torch(
        packed_masks.pack(masks.flatten(2)), masks.flatten(2).sum(2).float(), labels, kernel, 2.0
    )
    for image in range(2):
        kept = matrix_nms(masks[image], labels[image], scores[image], kernel=kernel)
        expected = torch.empty(40).scatter_(0, kept.keep, kept.scores)
        torch.testing.assert_close(factors[image] * scores[image], expected, rtol=0, atol=1e-6)


def test_common_pixels_in_several_parts(monkeypatch):
    monkeypatch.setattr(batched_nms, "_UNPACKED", 8)
    masks = torch.from_numpy(np.random.default_rng(0).random((1, 4, 100)) < 0.5)
    expected = masks.float() @ masks.float().mT
    assert torch.equal(batched_nms.pairwise_intersections(packed_masks.pack(masks)), expected)
