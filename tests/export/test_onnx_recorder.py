"""Conversion of torch operators to ONNX."""

import pytest
import torch
from torch import nn

from solo_infer.errors import ExportError
from solo_infer.export import onnx_recorder

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from helpers.onnx_files import run_onnx  # noqa: E402


class AsTuple(nn.Module):
    """Returns its input as a tuple, as a recorded network must."""

    def forward(self, x):
        return (x,)


@pytest.mark.parametrize(
    "layer, message",
    [
        (nn.ConvTranspose2d(3, 3, 2), "Transposed"),
        (nn.MaxPool2d(2, dilation=2), "Pooling"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), "Pooling"),
        (nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True), "align_corners"),
    ],
)
def test_unsupported_attributes_raise(layer, message):
    with pytest.raises(ExportError, match=f"{message}.* cannot be exported"):
        onnx_recorder.record(nn.Sequential(layer, AsTuple()), torch.zeros(1, 3, 8, 8), ["out"], 13)


class RareOperators(nn.Module):
    """Operators and attributes that no network of the library uses today."""

    def forward(self, x):
        sliced = x[:, 1:, :, 2:-1:3]
        padded = torch.nn.functional.pad(sliced, (1, 2, 3, 0), value=7.0).clone()
        return (sliced.sigmoid() * sliced, padded.contiguous().detach() + 0 * torch.ones(1, device=x.device))


@pytest.mark.parametrize("opset", [11, 13])
def test_slices_pads_and_copies(opset, tmp_path):
    inputs = torch.randn(1, 3, 5, 9, generator=torch.Generator().manual_seed(0))
    graph = onnx_recorder.record(RareOperators(), inputs, ["a", "b"], opset)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save_model(graph, str(tmp_path / "model.onnx"))
    _, outputs = run_onnx(tmp_path / "model.onnx", inputs.numpy())
    for output, expected in zip(outputs, RareOperators()(inputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected)


class Rearranged(nn.Module):
    """Changes of the order and the number of axes, also with negative axes."""

    def forward(self, x):
        pairs = torch.stack([x.movedim(1, -1), x.relu().movedim(1, -1)], dim=-1)
        return (
            pairs.flatten(-2).movedim(-1, 1),
            torch.stack([x, x.sigmoid()]).transpose(0, -2),
            x.permute(0, -1, 1, -2),
            x.flatten(2).transpose(1, 2),
            x.view(-1, 45).view(3, 5, 1, 9),
            torch.stack([x, x], dim=2),
            nn.functional.leaky_relu(x, 0.1),
            nn.LeakyReLU()(x),
        )


@pytest.mark.parametrize("opset", [11, 13])
def test_axes_and_leaky_relu(opset, tmp_path):
    inputs = torch.randn(1, 3, 5, 9, generator=torch.Generator().manual_seed(0))
    expected = Rearranged()(inputs)
    names = [f"output_{index}" for index in range(len(expected))]
    graph = onnx_recorder.record(Rearranged(), inputs, names, opset)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save_model(graph, str(tmp_path / "model.onnx"))
    _, outputs = run_onnx(tmp_path / "model.onnx", inputs.numpy())
    for output, values in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), values)


def test_other_dtypes_in_the_network_raise():
    class Double(nn.Module):
        def forward(self, x):
            return (x.double(),)

    with pytest.raises(ExportError, match="float32 to .*torch.float64 cannot be exported"):
        onnx_recorder.record(Double(), torch.zeros(1, 3, 8, 8), ["out"], 13)


class ScaledAdd(nn.Module):
    def forward(self, x):
        return (torch.add(x, x, alpha=2.0),)


class TimesNumber(nn.Module):
    def forward(self, x):
        return (x * 2.0,)


@pytest.mark.parametrize("network", [ScaledAdd(), TimesNumber()])
def test_numbers_as_operands_raise(network):
    with pytest.raises(ExportError, match="cannot be exported: expected tensors only"):
        onnx_recorder.record(network, torch.zeros(1, 3, 8, 8), ["out"], 13)
