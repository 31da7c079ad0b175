"""``solo-infer export``: write a model for inference engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_text, usage_error
from solo_infer.errors import ExportError
from solo_infer.runtime.output_files import refuse_overwriting, require_writable

SUMMARY = "Export a model to ONNX, OpenVINO or torch.export"
EXAMPLES = (
    "solo-infer export tiny --output tiny.onnx",
    "solo-infer export tiny --output tiny.xml --input-size 512 512",
    "solo-infer export tiny --output tiny.onnx --photo-size 480 640",
    "solo-infer export decoupled_light_r50_3x --output light.onnx --input-size 512 864 --opset 11",
)
HEADS_FORMAT = "onnx-heads"
FORMATS = ("onnx", HEADS_FORMAT, "openvino", "torch")
HEADS_OPSETS = (11, 13)


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "export", SUMMARY, run, EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help=options.MODEL_HELP)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=options.path,
        required=True,
        metavar="FILE",
        help="file to write: .onnx, .xml (OpenVINO, with a .bin file beside it) or .pt2 (torch.export)",
    )
    output.add_argument(
        "--format",
        choices=FORMATS,
        help="what to write: detections as ONNX, OpenVINO or torch.export, or the raw outputs of the heads "
        "as ONNX for engines of accelerators (onnx-heads) (default: from the suffix of FILE and --opset)",
    )
    options.add_input_size(
        output,
        "height and width of the network input in pixels, multiples of 32; required by onnx-heads (default: "
        "any, or the one of YOLACT)",
    )
    output.add_argument(
        "--opset",
        type=int,
        choices=(*HEADS_OPSETS, 18),
        help="ONNX opset: 18 for detections; 11 or 13 for onnx-heads (default: 18, or 13 for onnx-heads)",
    )
    output.add_argument(
        "--pixels",
        action="store_true",
        help="the network input is uint8 RGB pixels, which the graph normalizes; not with onnx-heads",
    )

    output.add_argument(
        "--photo-size",
        type=options.positive_int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width in pixels of the photos that the graph takes (uint8 RGB, N x H x W x 3) and "
        "resizes, instead of network inputs; not with onnx-heads",
    )


def run(args: argparse.Namespace) -> int:
    """Export one model."""
    is_heads = args.format == HEADS_FORMAT or (args.format is None and args.opset in HEADS_OPSETS)
    misuse = _find_misuse(args, is_heads)
    if misuse:
        return usage_error(misuse)
    print_text(str(_export_heads(args) if is_heads else _export_model(args)))
    return 0


def _find_misuse(args: argparse.Namespace, is_heads: bool) -> str | None:
    """Return what is wrong with the combination of options."""
    if is_heads and args.input_size is None:
        return "raw outputs of the heads (onnx-heads, opset 11 or 13) require --input-size H W"
    if is_heads and args.pixels:
        return "--pixels is not available with raw outputs of the heads (onnx-heads, opset 11 or 13)"
    if is_heads and args.photo_size:
        return "--photo-size is not available with raw outputs of the heads (onnx-heads, opset 11 or 13)"
    if args.photo_size and (args.input_size or args.pixels):
        return "--photo-size sets the size of the network input and takes pixels: no --input-size or --pixels"
    if is_heads and args.opset == 18:
        return "--format onnx-heads requires --opset 11 or 13"
    if not is_heads and args.opset in HEADS_OPSETS:
        return f"--opset {args.opset} requires --format onnx-heads: detections need opset 18"
    return None


def _export_heads(args: argparse.Namespace) -> Path:
    from solo_infer.export.onnx import export_onnx

    height, width = args.input_size
    return export_onnx(_load(args), args.output, size=(height, width), opset=args.opset or HEADS_OPSETS[-1])


def _export_model(args: argparse.Namespace) -> Path:
    from solo_infer.export.model_file import export_model, format_of

    format_of(args.output, args.format)
    return export_model(
        _load(args),
        args.output,
        format=args.format,
        size=args.input_size and tuple(args.input_size),
        pixels=args.pixels,
        photo_size=args.photo_size and tuple(args.photo_size),
        source=args.model,
    )


def _load(args: argparse.Namespace) -> Any:
    """Return the model; first check that its files are not overwritten and that the output can be written."""
    from solo_infer.segmenters.auto import load_model
    from solo_infer.weights.load import local_files

    refuse_overwriting({"--output": args.output}, {"MODEL": local_files(args.model)})
    require_writable("--output", args.output, error_type=ExportError)
    return load_model(args.model, device="cpu")
