"""What the verbs of the command line take. Imports nothing heavy, so that --help answers at once."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from solo_infer._version import __version__
from solo_infer.config.solo import NMS_METHODS
from solo_infer.runtime import environment
from solo_infer.weights.manifest import DEFAULT_MODEL, EMBEDDED_MODEL

Verb = Callable[[argparse.Namespace], int]
MODEL_HELP = "a published model ('solo-infer models'), a checkpoint file, a directory or a Hub repo id"
DTYPES = ("float32", "float16", "bfloat16")
DRAWN_FROM = 0.3  # score from which instances are drawn and told, if no other is given


def make_parser(functions: Iterable[Verb]) -> argparse.ArgumentParser:
    """Return the parser of all verbs.

    Args:
        functions: Runs each verb, by its name; it becomes ``run`` of the parsed options.
    """
    parser = argparse.ArgumentParser(
        prog="solo-infer", description="Instance segmentation with SOLO and YOLACT."
    )
    parser.add_argument("--version", action="version", version=f"solo-infer {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    run = {function.__name__: function for function in functions}
    _add_predict(_add_verb(verbs, run["predict"], "segment images, into pictures and a COCO results file"))
    _add_train(_add_verb(verbs, run["train"], "fine-tune a model on a COCO data set"))
    summary = "score a model, or a file of detections, on a COCO data set: mask AP"
    _add_eval(_add_verb(verbs, run["evaluate"], summary, name="eval"))
    _add_benchmark(_add_verb(verbs, run["benchmark"], "time models on one image, stage by stage"))
    _add_json(_add_verb(verbs, run["models"], "list the published models"))
    _add_info(_add_verb(verbs, run["info"], "describe a model: origin, license, architecture, layers"))
    verb = _add_verb(verbs, run["download"], "fetch published models into the cache, or a bundle")
    verb.add_argument("models", nargs="+", metavar="MODEL", help="a published model ('solo-infer models')")
    verb.add_argument(
        "--output",
        type=_path,
        metavar="DIR",
        help=f"collect a bundle here; on the offline machine set {environment.HOME} to a copy of it",
    )
    verb = _add_verb(verbs, run["convert"], "write a model as config.json + model.safetensors")
    verb.add_argument("model", help=MODEL_HELP)
    verb.add_argument("output", type=_path, metavar="DIR", help="where to write")
    _add_dtype(verb)
    verb.add_argument("--classes", nargs="+", metavar="NAME", help="keep only these classes of the model")
    _add_export(_add_verb(verbs, run["export"], "write a model for engines: ONNX with fixed shapes"))
    summary = "examine this machine: versions, devices, cache, sources, problems"
    _add_json(_add_verb(verbs, run["doctor"], summary))
    verb = _add_verb(verbs, run["verify"], "compare this device with mmdet's own results")
    _add_device(verb)
    verb.add_argument("--models", nargs="+", metavar="PRESET", help="only these, e.g. solo_r50")
    _add_json(verb)
    return parser


def _add_verb(verbs: Any, function: Verb, summary: str, name: str = "") -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    verb = verbs.add_parser(name or function.__name__, help=summary, description=description)
    verb.set_defaults(run=function)
    verb.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    return verb


def _add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON, for machines")


def _add_device(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    _add_dtype(verb)


def _add_dtype(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="(default: %(default)s)")


def _add_predict(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("sources", nargs="+", metavar="IMAGE", help="files, folders, glob patterns or URLs")
    verb.add_argument(
        "--model",
        help=f"{MODEL_HELP} (default: {DEFAULT_MODEL} or, where that cannot be had, {EMBEDDED_MODEL})",
    )
    verb.add_argument(
        "--output", type=_path, default=Path("."), metavar="DIR", help="where pictures go (default: here)"
    )
    verb.add_argument("--json", type=_path, metavar="FILE", help="write COCO results to this file")
    verb.add_argument(
        "--image-ids",
        type=_path,
        metavar="FILE",
        help="take image ids from this COCO annotation file (default: the number that is a file's name, "
        "else its place in the order)",
    )
    verb.add_argument("--no-pictures", action="store_true", help="write no pictures")
    verb.add_argument("--boxes", action="store_true", help="draw boxes too")
    verb.add_argument(
        "--min-score",
        type=_score,
        metavar="S",
        help=f"leave out instances below this score (default: {DRAWN_FROM} in pictures, none in --json)",
    )
    verb.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes")
    _add_nms(verb)
    verb.add_argument("--batch-size", type=_count, default=1, metavar="N", help="(default: %(default)s)")
    verb.add_argument("--offline", action="store_true", help="never touch the network")
    _add_device(verb)


def _add_eval(verb: argparse.ArgumentParser) -> None:
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=_path, metavar="DIR", help="predict the data set's images, lying here")
    what.add_argument(
        "--detections", type=_path, metavar="FILE", help="score this COCO results file, without a model"
    )
    verb.add_argument(
        "--annotations", type=_path, required=True, metavar="FILE", help="the data set: COCO annotations"
    )
    verb.add_argument("--model", help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})")
    verb.add_argument("--output", type=_path, metavar="FILE", help="write COCO results to this file")
    _add_max_detections(verb, "detections per image and class that count; AP takes the most")
    verb.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes of the data set")
    verb.add_argument("--limit", type=_count, metavar="N", help="only the first so many images")
    _add_nms(verb)
    verb.add_argument("--batch-size", type=_count, default=1, metavar="N", help="(default: %(default)s)")
    _add_device(verb)
    _add_json(verb)


def _add_nms(verb: argparse.ArgumentParser) -> None:
    shown = "duplicates lose score (matrix) or are dropped (greedy; default: as the model has it)"
    verb.add_argument("--nms", choices=NMS_METHODS, help=shown)
    verb.add_argument(
        "--nms-iou",
        type=_score,
        metavar="X",
        help="with --nms greedy: drop a mask whose IoU with a better one of its class is greater "
        "(default: as the model has it)",
    )


def _add_max_detections(verb: argparse.ArgumentParser, what: str) -> None:
    numbers = [1, 10, 100]
    shown = f"{what} (default: 1 10 100)"
    verb.add_argument("--max-detections", type=_count, nargs="+", default=numbers, metavar="N", help=shown)


def _add_info(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", help=f"{MODEL_HELP}, a preset (e.g. solo_r101) or a config.json")
    verb.add_argument(
        "--input-size",
        type=_count,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the network input in pixels (default: the model's largest)",
    )
    verb.add_argument(
        "--depth",
        type=_whole,
        default=2,
        metavar="N",
        help="rows of layers within layers; 0 for the totals alone (default: %(default)s)",
    )
    _add_json(verb)


def _add_train(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", help=f"where to start: {MODEL_HELP}")
    verb.add_argument(
        "--config", type=_path, metavar="FILE", help="start anew instead: the config.json of a model"
    )
    verb.add_argument(
        "--body", type=_path, metavar="FILE", help="with --config: an ImageNet classifier for the body"
    )
    verb.add_argument("--images", type=_path, required=True, metavar="DIR", help="training images")
    verb.add_argument("--annotations", type=_path, required=True, metavar="FILE", help="COCO annotations")
    verb.add_argument("--val-images", type=_path, metavar="DIR", help="(default: --images)")
    verb.add_argument(
        "--val-annotations", type=_path, metavar="FILE", help="score the model on these while it is trained"
    )
    verb.add_argument("--output", type=_path, required=True, metavar="DIR", help="the run and its model")
    verb.add_argument("--resume", action="store_true", help="go on with the run in --output")
    verb.add_argument(
        "--recipe",
        default="finetune",
        metavar="NAME",
        help="finetune (AdamW, cosine), 1x, 3x or yolact (as published), or the recipe.json of a run "
        "(default: %(default)s)",
    )
    for name, kind, what in (
        ("--epochs", _count, "passes over the training images"),
        ("--batch-size", _count, "images of an iteration, over all processes"),
        ("--size", _count, "side in pixels of the window that the recipe trains on"),
        ("--evaluate-every", _count, "epochs between evaluations"),
        ("--workers", _whole, "processes that load images"),
        ("--seed", _whole, "of the order of images and their changes"),
    ):
        verb.add_argument(name, type=kind, metavar="N", help=f"{what} (default: the recipe's)")
    verb.add_argument("--lr", type=float, metavar="X", help="highest learning rate (default: the recipe's)")
    verb.add_argument("--autocast", choices=DTYPES, help="what the network computes in (default: float32)")
    verb.add_argument(
        "--image-size",
        type=_count,
        nargs=2,
        metavar=("SHORT", "LONG"),
        help="scale images to these sides in pixels (default: the model's)",
    )
    verb.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes of the data set")
    _add_max_detections(verb, "detections per image that count in validation; the model gives the most")
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")


def _add_benchmark(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("image", metavar="IMAGE", help="a file or URL")
    verb.add_argument(
        "--models", nargs="+", metavar="MODEL", help=f"{MODEL_HELP} (default: {EMBEDDED_MODEL})"
    )
    verb.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[DTYPES[0]], help="(default: float32)")
    verb.add_argument(
        "--batch-sizes",
        nargs="+",
        type=_count,
        default=[1],
        metavar="N",
        help="images at a time (default: 1)",
    )
    verb.add_argument(
        "--runs", type=_count, default=10, metavar="N", help="timed runs (default: %(default)s)"
    )
    verb.add_argument("--warmup", type=_whole, default=2, metavar="N", help="(default: %(default)s)")
    verb.add_argument("--chart", type=_path, metavar="FILE", help="draw the stages as a picture")
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    _add_json(verb)


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", help=MODEL_HELP)
    verb.add_argument("--onnx", type=_path, required=True, metavar="FILE", help="where to write")
    verb.add_argument(
        "--size",
        type=_count,
        nargs=2,
        required=True,
        metavar=("HEIGHT", "WIDTH"),
        help="of the network input in pixels, multiples of 32",
    )
    verb.add_argument(
        "--opset", type=int, choices=(11, 13), default=13, help="of ONNX (default: %(default)s)"
    )


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0.0 <= score <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number in 0..1, got {text!r}")
    return score


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _whole(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))
