"""``solo-infer eval``: COCO mask AP of a model, or of a file of detections."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_json, print_text, usage_error
from solo_infer.runtime.output_files import refuse_overwriting, require_writable
from solo_infer.weights.manifest import DEFAULT_MODEL

if TYPE_CHECKING:
    from solo_infer.evaluation.evaluate import Evaluation

SUMMARY = "Compute COCO mask AP of a model or of a file of detections"
EXAMPLES = (
    "solo-infer eval --model tiny --images val2017 --annotations instances_val2017.json",
    "solo-infer eval --detections results.json --annotations instances_val2017.json --json",
    "torchrun --nproc-per-node 4 -m solo_infer eval --images val2017 --annotations instances_val2017.json",
)
_MODEL_OPTIONS = (
    *("model", "save_json", "nms", "nms_iou", "across_classes", "min_score", "input_size", "engine"),
)


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "eval", SUMMARY, run, EXAMPLES)
    data = parser.add_argument_group("data set")
    data.add_argument(
        "--annotations", type=options.path, required=True, metavar="FILE", help="COCO annotation file"
    )
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", type=options.path, metavar="DIR", help="run the model on the images in this folder"
    )
    source.add_argument(
        "--detections", type=options.path, metavar="FILE", help="score this COCO results file; uses no model"
    )
    data.add_argument("--limit", type=options.positive_int, metavar="N", help="use only the first N images")
    options.add_classes(data, "evaluate only these classes of the data set")
    options.add_max_detections(
        data, "detections per image and class that count for recall; AP uses the greatest number"
    )
    model = parser.add_argument_group("model")
    options.add_model(model, DEFAULT_MODEL)
    options.add_nms(model)
    options.add_min_score(model, "leave out detections with a lower score (default: the model's setting)")
    options.add_scaling(model)
    output = parser.add_argument_group("output")
    options.add_json(output, "the metrics")
    options.add_save_json(output)
    device = parser.add_argument_group("device")
    options.add_device(device)
    options.add_dtype(device)
    options.add_engine(device)
    options.add_batch_size(device)


def run(args: argparse.Namespace) -> int:
    """Evaluate a model or a file of detections; the processes of torchrun share the images."""
    from solo_infer.weights.load import local_files

    refuse_overwriting(
        {"--save-json": args.save_json},
        {"--annotations": [args.annotations], "--model": local_files(args.model or DEFAULT_MODEL)},
    )
    require_writable("--save-json", args.save_json, create_folder=True)
    settings = {name: getattr(args, name) for name in ("max_detections", "limit", "classes")}
    values = {name: getattr(args, name) for name in _MODEL_OPTIONS}
    names = [name for name, value in values.items() if value is not None and value is not False]
    given = [f"--{name.replace('_', '-')}" for name in names]
    if args.detections and given:
        return usage_error(f"--detections are scored without a model: remove {', '.join(given)}")
    evaluation = _score(args, settings) if args.detections else _evaluate(args, settings)
    if evaluation is not None:
        if args.json:
            print_json(evaluation.to_dict())
        else:
            print_text(evaluation.format_table())
    return 0


def _score(args: argparse.Namespace, settings: dict[str, Any]) -> Evaluation | None:
    """Return the evaluation of a COCO results file in the main process, None in the others."""
    from solo_infer.evaluation import evaluate as evaluation
    from solo_infer.runtime.distributed import is_main_process_env

    if not is_main_process_env():
        return None
    return evaluation.evaluate_detections(args.annotations, args.detections, **settings)


def _evaluate(args: argparse.Namespace, settings: dict[str, Any]) -> Evaluation | None:
    """Return the evaluation of a model in the main process, None in the others."""
    from solo_infer.evaluation import evaluate as evaluation
    from solo_infer.runtime.distributed import process_group
    from solo_infer.segmenters.auto import load_model

    with process_group(args.device) as device:
        dtype = options.network_dtype(args.dtype, device)
        model = load_model(args.model or DEFAULT_MODEL, device=device, dtype=dtype, engine=args.engine)
        return evaluation.evaluate(
            options.with_settings(model, args),
            args.images,
            args.annotations,
            output=args.save_json,
            batch_size=args.batch_size,
            progress=not args.quiet,
            **settings,
        )
