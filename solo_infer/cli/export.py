"""``solo-infer export``: write a model as ONNX."""

from __future__ import annotations

import argparse
from typing import Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_text
from solo_infer.errors import ExportError
from solo_infer.runtime.output_files import refuse_overwriting, require_writable

SUMMARY = "Export a model to ONNX with static shapes"
EXAMPLES = (
    "solo-infer export tiny --output tiny.onnx --input-size 320 448",
    "solo-infer export decoupled_light_r50_3x --output light.onnx --input-size 512 864 --opset 11",
)


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "export", SUMMARY, run, EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help=options.MODEL_HELP)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=options.path, required=True, metavar="FILE", help="ONNX file to write"
    )
    options.add_input_size(
        output, "height and width of the network input in pixels, multiples of 32", required=True
    )
    output.add_argument(
        "--opset", type=int, choices=(11, 13), default=13, help="ONNX opset (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Export one model."""
    from solo_infer.export.onnx import export_onnx
    from solo_infer.segmenters.auto import load_model
    from solo_infer.weights.load import local_files

    refuse_overwriting({"--output": args.output}, {"MODEL": local_files(args.model)})
    require_writable("--output", args.output, error_type=ExportError)
    model = load_model(args.model, device="cpu")
    height, width = args.input_size
    print_text(str(export_onnx(model, args.output, size=(height, width), opset=args.opset)))
    return 0
