"""Fixtures of exported models."""

import pytest
from helpers.models import HEADS

from solo_infer.export.onnx import export_onnx


@pytest.fixture(scope="module", params=HEADS)
def model(request, small_models):
    return small_models[request.param]


@pytest.fixture(scope="module", params=[11, 13])
def exported(request, model, tmp_path_factory):
    """Return the path and the opset of a model exported as ONNX."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert export_onnx(model, path, size=(96, 160), opset=request.param) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    return path, request.param
