"""Argument types and options that several commands share. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.config.solo import NMS_METHODS
from solo_infer.config.tiling import Tile, as_tiling
from solo_infer.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from solo_infer.segmenters.base import Segmenter

    ModelT = TypeVar("ModelT", bound=Segmenter)

Group = Any  # argparse gives the class of its argument groups no public name
MODEL_HELP = "published model ('solo-infer models'), checkpoint file, folder or Hub repo id"
DTYPES = ("float32", "float16", "bfloat16", "auto")
MAX_DETECTIONS = (1, 10, 100)
ENGINES = ("onnxruntime", "openvino")


_MAX_DIGITS = 19  # of 2**63 - 1

# --- Argument types


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    return _parse_int(text, 1)


def non_negative_int(text: str) -> int:
    """Parse an integer of at least 0."""
    return _parse_int(text, 0)


def _parse_int(text: str, least: int) -> int:
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) >= least:
        return int(text)
    text = text if len(text) <= 40 else f"{text[:37]}..."
    length = f" and at most {_MAX_DIGITS} digits" if text.isdigit() and len(text) > _MAX_DIGITS else ""
    raise argparse.ArgumentTypeError(f"expected an integer of at least {least}{length}, got {text!r}")


def unit_interval(text: str) -> float:
    """Parse a number in 0..1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number in 0..1, got {text!r}")
    return number


def path(text: str) -> Path:
    """Parse a path; ``~`` is expanded."""
    return Path(os.path.expanduser(text))


def draw_threshold(args: argparse.Namespace) -> float:
    """Return ``--min-score``, or its default for drawings and all other outputs that people look at."""
    return DISPLAY_THRESHOLD if args.min_score is None else float(args.min_score)


# --- Parsers


def add_command(
    subparsers: Any,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    """Add the parser of one command.

    Args:
        subparsers: Return value of ``ArgumentParser.add_subparsers``.
        name: Name of the command.
        summary: One line without a final period, for the list of commands and as the description.
        run: Runs the command and returns the exit code; ``run`` of the parsed arguments.
        examples: Command lines that the help ends with.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        description=f"{summary}.",
        epilog=format_examples(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    verbosity = parser.add_mutually_exclusive_group()
    verbosity.add_argument("-v", "--verbose", action="store_true", help="show informational log messages")
    verbosity.add_argument(
        "-q", "--quiet", action="store_true", help="hide progress and all messages except errors"
    )
    return parser


def format_examples(examples: Sequence[str]) -> str:
    """Return the end of a help text; long command lines are wrapped as for a shell."""
    lines = ["examples:" if len(examples) > 1 else "example:"]
    for example in examples:
        # Lines break before options only, so that an option and its values stay together.
        unbroken = re.sub(" (?!--)", "\xa0", example)
        parts = textwrap.wrap(unbroken, 76, break_long_words=False, break_on_hyphens=False)
        lines.append("  " + " \\\n      ".join(parts).replace("\xa0", " "))
    return "\n".join(lines)


# --- Options


def add_model(group: Group, default: str) -> None:
    """Add ``--model``.

    Args:
        group: Parser or argument group.
        default: Description of the default.
    """
    group.add_argument("--model", metavar="MODEL", help=f"{MODEL_HELP} (default: {default})")


def add_engine(group: Group) -> None:
    """Add ``--engine``."""
    group.add_argument(
        "--engine",
        choices=ENGINES,
        help="engine that runs an exported model (.onnx, .xml) on the CPU (default: onnxruntime for .onnx, "
        "openvino for .xml)",
    )


def add_json(group: Group, content: str) -> None:
    """Add ``--json``.

    Args:
        group: Parser or argument group.
        content: Noun phrase for the printed value, e.g. "the report".
    """
    group.add_argument(
        "--json", action="store_true", help=f"print {content} as machine-readable JSON to standard output"
    )


def add_save_json(group: Group) -> None:
    """Add ``--save-json``."""
    group.add_argument("--save-json", type=path, metavar="FILE", help="write COCO results to this file")


def add_device(group: Group) -> None:
    """Add ``--device``."""
    group.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)",
    )


def add_dtype(group: Group, purpose: str = "dtype of the network") -> None:
    """Add ``--dtype``, with the default float32; see ``network_dtype``."""
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help=f"{purpose}; auto: the fastest one on the device (default: %(default)s)",
    )


def network_dtype(dtype: str, device: str | torch.device) -> str:
    """Return the name of the dtype that ``--dtype`` selects on a device, and report what auto selects.

    Raises:
        DeviceError: The device is not available.
    """
    if dtype != "auto":
        return dtype
    from solo_infer.cli.terminal import info
    from solo_infer.runtime.device import resolve_device
    from solo_infer.segmenters.auto_dtype import choose_dtype

    resolved = resolve_device(device)
    choice = choose_dtype(resolved)
    info(f"--dtype auto on {resolved}: {choice}")
    return choice.name


def add_batch_size(group: Group) -> None:
    """Add ``--batch-size``, with the default 1."""
    group.add_argument(
        "--batch-size",
        type=positive_int,
        default=1,
        metavar="N",
        help="images per forward pass (default: %(default)s)",
    )


class _OneOrTwo(argparse.Action):
    """Action that stores one or two values."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        if len(values) > 2:
            raise argparse.ArgumentError(self, f"expected one or two numbers, got {len(values)}")
        setattr(namespace, self.dest, values)


def add_min_score(group: Group, description: str) -> None:
    """Add ``--min-score``; see ``with_settings``."""
    group.add_argument("--min-score", type=unit_interval, metavar="S", help=description)


def add_scaling(group: Group) -> None:
    """Add ``--input-size`` for images of any size; see ``with_settings``."""
    group.add_argument(
        "--input-size",
        type=positive_int,
        nargs="+",
        action=_OneOrTwo,
        metavar=("H", "W"),
        help="scale images, keeping their ratio, to fit into this height and width (one number for both) in "
        "pixels, multiples of 32; exchanged for images of the other orientation (default: the model's)",
    )


def add_input_size(group: Group, description: str, *, required: bool = False) -> None:
    """Add ``--input-size`` of a network input."""
    group.add_argument(
        "--input-size", type=positive_int, nargs=2, required=required, metavar=("H", "W"), help=description
    )


def add_classes(group: Group, description: str) -> None:
    """Add ``--classes``."""
    group.add_argument("--classes", nargs="+", metavar="NAME", help=description)


def add_max_detections(group: Group, description: str) -> None:
    """Add ``--max-detections``."""
    numbers = " ".join(map(str, MAX_DETECTIONS))
    group.add_argument(
        "--max-detections",
        type=positive_int,
        nargs="+",
        default=list(MAX_DETECTIONS),
        metavar="N",
        help=f"{description} (default: {numbers})",
    )


def add_nms(group: Group) -> None:
    """Add ``--nms``, ``--nms-iou`` and ``--across-classes``; see ``with_settings``."""
    group.add_argument(
        "--across-classes",
        action="store_true",
        help="NMS also compares instances of different classes: one object is not detected as several",
    )
    group.add_argument(
        "--nms",
        choices=NMS_METHODS,
        help="lower the scores of duplicates (matrix) or remove them (greedy); SOLO only "
        "(default: the model's setting)",
    )
    group.add_argument(
        "--nms-iou",
        type=unit_interval,
        metavar="IOU",
        help="with --nms greedy: remove a mask whose IoU with a better one of its class exceeds this "
        "(default: the model's setting)",
    )


def add_tile(group: Group) -> None:
    """Add ``--tile`` and ``--tile-overlap``; see ``tile``."""
    group.add_argument(
        "--tile",
        type=positive_int,
        metavar="SIZE",
        help="cut large images into tiles of this many pixels a side, and stitch the instances "
        "(default: segment each image as a whole)",
    )
    group.add_argument(
        "--tile-overlap",
        type=positive_int,
        metavar="PIXELS",
        help="with --tile: least overlap of neighboring tiles, at most half of SIZE (default: a quarter)",
    )


def tile(args: argparse.Namespace) -> Tile | None:
    """Return the tile that ``--tile`` and ``--tile-overlap`` select, for ``Segmenter.stream``.

    Raises:
        ConfigError: A number is out of range.
    """
    tiling = as_tiling(args.tile if args.tile_overlap is None else (args.tile, args.tile_overlap))
    return None if tiling is None else (tiling.size, tiling.overlap)


def with_nms(model: ModelT, args: argparse.Namespace) -> ModelT:
    """Return the model with the NMS that ``--nms`` and ``--nms-iou`` select.

    Raises:
        ConfigError: The model has a fixed NMS, or the selected NMS has no IoU threshold.
    """
    if args.nms is None and args.nms_iou is None:
        return model
    thresholds: Any = model.config.thresholds
    if not hasattr(thresholds, "nms"):
        raise ConfigError(
            "--nms and --nms-iou are for SOLO models, and this model has a fixed NMS: remove these options."
        )
    if args.nms is not None:
        thresholds = replace(thresholds, nms=args.nms)
    if args.nms_iou is not None:
        if thresholds.nms != "greedy":
            raise ConfigError("--nms-iou requires greedy NMS: add --nms greedy.")
        thresholds = replace(thresholds, nms_iou=args.nms_iou)
    return model.with_thresholds(thresholds)


def with_settings(model: ModelT, args: argparse.Namespace) -> ModelT:
    """Return the model with the settings of ``--min-score``, ``--input-size`` and the options of ``add_nms``.

    Raises:
        ConfigError: The model does not have one of the settings.
    """
    size = args.input_size
    return with_nms(model, args).with_settings(
        min_score=args.min_score,
        input_size=size[0] if size is not None and len(size) == 1 else size,
        across_classes=args.across_classes or None,
    )
