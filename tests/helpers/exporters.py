"""Whether this version of torch exports whole models."""

import inspect

import pytest
import torch


def require_exporter():
    """Skip a test on versions of torch that cannot export detections."""
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        pytest.skip(f"torch {torch.__version__} cannot export detections")
