"""The kernels in Triton's interpreter, and their replacement where they cannot run."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from solo_infer.ops import dispatch
from solo_infer.ops.group_norm_relu import group_norm_relu
from solo_infer.ops.mask_statistics import axis_mask_statistics, cell_mask_statistics
from solo_infer.ops.matrix_nms import decay_factors
from solo_infer.ops.paste_masks import paste_masks
from solo_infer.ops.preprocess import preprocess

CPU = torch.device("cpu")
MODULES = ("preprocess", "group_norm_relu", "mask_statistics", "matrix_nms", "paste_masks")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(
    find_spec("triton") is not None and version("triton").startswith("2."),
    reason="the interpreter of Triton 2 lacks functions that the kernels use",
)
def test_kernels_equal_pytorch_in_the_interpreter():
    suite = Path(__file__).with_name("interpreter_suite.py")
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(suite.parents[1])]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(suite)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert " passed" in process.stdout and "skipped" not in process.stdout


def test_every_kernel_has_a_pytorch_implementation(monkeypatch, photo):
    """Triton is allowed but cannot be imported."""
    monkeypatch.setattr(dispatch, "_failed", {})
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: True)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, f"solo_infer.ops.triton.{name}", None)
    image = torch.from_numpy(np.ascontiguousarray(photo))
    sizes, mean, std = [(64, 96)], (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    arguments = [image], sizes, (64, 96), mean, std, True, CPU, torch.float32
    inputs = preprocess(*arguments)
    assert torch.equal(inputs, preprocess.reference(*arguments))
    normalized = group_norm_relu(inputs, 3, torch.ones(3), torch.zeros(3), 1e-5)
    assert torch.equal(normalized, torch.nn.functional.group_norm(inputs, 3).relu())
    arguments = torch.rand(2, 16, 24), (64, 96), (60, 96), (30, 41), 0.5
    assert all(map(torch.equal, paste_masks(*arguments), paste_masks.reference(*arguments)))
    factors = decay_factors(
        torch.ones(1, 2, 1, dtype=torch.uint8), torch.ones(1, 2), torch.zeros(1, 2).long(), "linear", 2.0
    )
    assert factors.tolist() == [[1.0, 0.0]]
    levels = torch.tensor([[0, 4]])
    arguments = torch.randn(1, 2, 126), levels, ((8, 12), (4, 6), (2, 3)), (16, 24), 0.5
    statistics = cell_mask_statistics(*arguments)
    assert all(map(torch.equal, statistics, cell_mask_statistics.reference(*arguments)))
    assert len(dispatch.failures()) == 5
    arguments = torch.rand(1, 5, 8, 8), torch.rand(1, 5, 8, 8), levels, levels, 0.5
    statistics = axis_mask_statistics(*arguments)
    assert all(map(torch.equal, statistics, axis_mask_statistics.reference(*arguments)))
    assert len(dispatch.failures()) == 6
