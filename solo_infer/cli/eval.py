"""``solo-infer eval``: a model, or detections that are there already, scored on a COCO data set."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from solo_infer.cli.nms_options import with_chosen_nms
from solo_infer.cli.terminal import WRONG_USAGE, print_json, print_text, say
from solo_infer.weights.manifest import DEFAULT_MODEL

if TYPE_CHECKING:
    from solo_infer.evaluation.evaluate import Evaluation


def evaluate(options: argparse.Namespace) -> int:
    """Score a model, or a file of detections, on a COCO data set; torchrun's processes share the images."""
    from solo_infer.evaluation import evaluate as evaluation
    from solo_infer.runtime.distributed import is_main_process_env

    chosen = {name: getattr(options, name) for name in ("max_detections", "limit", "classes")}
    if not options.detections:
        found = _predict_and_score(options, chosen)
    elif options.model or options.output or options.nms or options.nms_iou is not None:
        say("--detections are scored as they are: leave out --model, --output and --nms")
        return WRONG_USAGE
    else:
        found = (
            evaluation.evaluate_detections(options.annotations, options.detections, **chosen)
            if is_main_process_env()
            else None
        )
    if found is None:
        return 0
    if options.json:
        print_json(found.to_dict())
    else:
        print_text(found.format_table())
    return 0


def _predict_and_score(options: argparse.Namespace, chosen: dict[str, Any]) -> Evaluation | None:
    """Return the evaluation of a model, None in all processes but the first."""
    from solo_infer.evaluation import evaluate as evaluation
    from solo_infer.runtime.distributed import process_group
    from solo_infer.segmenters.auto import load_model

    with process_group(options.device) as device:
        model = load_model(options.model or DEFAULT_MODEL, device=device, dtype=options.dtype)
        return evaluation.evaluate(
            with_chosen_nms(model, options),
            options.images,
            options.annotations,
            output=options.output,
            batch_size=options.batch_size,
            **chosen,
        )
