"""``solo-infer verify``: compare a device with results of mmdet, and exported files with PyTorch."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_json, print_text, usage_error
from solo_infer.config.suggestions import did_you_mean
from solo_infer.errors import ConfigError, DeviceError, SoloInferError

if TYPE_CHECKING:
    import torch

    from solo_infer.diagnostics.verify import Check

SUMMARY = "Compare this device with reference results of mmdet, or an exported file with PyTorch"
EXAMPLES = (
    "solo-infer verify",
    "solo-infer verify --model solo_r50 yolact_r50 --device cuda --dtype bfloat16",
    "solo-infer verify --model tiny.onnx --image street.jpg",
)
FILE_SUFFIXES = (".onnx", ".xml")  # of exported models


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "verify", SUMMARY, run, EXAMPLES)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        nargs="+",
        metavar="MODEL",
        help="presets to compare with mmdet, e.g. solo_r50, and exported files (.onnx, .xml) to compare with "
        "their PyTorch models (default: all presets)",
    )
    model.add_argument(
        "--reference",
        metavar="MODEL",
        help="PyTorch model to compare exported files with (default: the one that each was exported from)",
    )
    model.add_argument(
        "--image", metavar="IMAGE", help="image for exported files, file or URL (default: a procedural one)"
    )
    options.add_json(parser.add_argument_group("output"), "the differences")
    device = parser.add_argument_group("device")
    options.add_device(device)
    options.add_dtype(device)
    options.add_engine(device)


def run(args: argparse.Namespace) -> int:
    """Compare networks and detections; return 1 if any difference exceeds its tolerance."""
    import torch

    from solo_infer.diagnostics.verify import MODELS
    from solo_infer.runtime.device import resolve_device

    names = args.model or MODELS
    files = [name for name in names if name.endswith(FILE_SUFFIXES)]
    presets = [name for name in names if name not in files]
    _require_known(presets, MODELS)
    if not files and (args.reference or args.image or args.engine):
        return usage_error("--reference, --image and --engine require --model FILE, an exported model")
    device = resolve_device(args.device) if presets else torch.device("cpu")
    args.dtype = options.network_dtype(args.dtype, device)
    checks = _compare(device, args, presets, files)
    failed = sum(not check.passed for check in checks)
    if args.json:
        print_json([_to_dict(check) for check in checks])
    else:
        outcome = f"{failed} of {len(checks)} checks failed" if failed else "all checks passed"
        print_text(f"{outcome} ({device}, {args.dtype})")
        if device.type == "cuda" and args.dtype == "float32" and torch.backends.cudnn.allow_tf32:
            print_text(
                "Checked without TF32. PyTorch allows it in convolutions, where it changes class scores by "
                "up to 0.01; torch.backends.cudnn.allow_tf32 = False turns it off."
            )
    return 1 if failed else 0


def _require_known(presets: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in presets if name not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise ConfigError(
            f"No reference results for {', '.join(unknown)}. {hint}Presets: {', '.join(known)}."
        )


def _all_checks(
    device: torch.device, args: argparse.Namespace, presets: Sequence[str], files: Sequence[str]
) -> Iterator[Check]:
    """Iterate over the checks of presets and of exported files."""
    from solo_infer.diagnostics import verify
    from solo_infer.diagnostics.verify_export import verify_file

    if presets:
        yield from verify.verify(device, args.dtype, presets)
    for file in files:
        yield from verify_file(
            os.path.expanduser(file),
            reference=args.reference,
            image=args.image,
            engine=args.engine,
            dtype=args.dtype,
        )


def _compare(
    device: torch.device, args: argparse.Namespace, presets: Sequence[str], files: Sequence[str]
) -> list[Check]:
    """Return all checks; without ``--json`` print each one when it is done."""
    checks: list[Check] = []
    if not args.json:
        print_text(f"{'model':<22}{'quantity':<16}{'difference':>12}{'tolerance':>12}")
    try:
        for check in _all_checks(device, args, presets, files):
            checks.append(check)
            if not args.json:
                numbers = f"{check.difference:>12.2e}{check.limit:>12.0e}"
                state = "ok" if check.passed else "FAILED"
                print_text(f"{check.model:<22}{check.quantity:<16}{numbers}  {state}")
    except RuntimeError as error:  # torch raises it for operators that a device lacks
        if isinstance(error, SoloInferError):
            raise
        raise DeviceError(f"{device} cannot compute this in {args.dtype}: {error}") from error
    return checks


def _to_dict(check: Check) -> dict[str, Any]:
    """Return a check as JSON-ready values, with None for NaN and infinity."""
    return {
        "model": check.model,
        "quantity": check.quantity,
        "difference": check.difference if math.isfinite(check.difference) else None,
        "tolerance": check.limit,
        "passed": check.passed,
    }
