"""``solo-infer export``: a model in, a file for engines out."""

from __future__ import annotations

import argparse

from solo_infer.cli.terminal import print_text


def export(options: argparse.Namespace) -> int:
    """Write a model as ONNX."""
    from solo_infer.export.onnx import export_onnx
    from solo_infer.segmenters.auto import load_model

    model = load_model(options.model, device="cpu")
    height, width = options.size
    print_text(str(export_onnx(model, options.onnx, size=(height, width), opset=options.opset)))
    return 0
