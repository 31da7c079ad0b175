"""``solo-infer train``: train or fine-tune a model on a data set in COCO or YOLO format."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options
from solo_infer.cli.terminal import info, print_text, show_info_of, usage_error
from solo_infer.config.suggestions import did_you_mean
from solo_infer.config.validation import require_positive_ints
from solo_infer.errors import ConfigError
from solo_infer.runtime.messages import first_line, quoted
from solo_infer.runtime.text_files import read_json

if TYPE_CHECKING:
    from solo_infer.segmenters.base import Segmenter
    from solo_infer.training.data_files import CocoFiles, YoloFiles
    from solo_infer.training.recipe import Recipe

SUMMARY = "Train or fine-tune a model on a data set in COCO or YOLO format"
EXAMPLES = (
    "solo-infer train --model tiny --images photos --annotations train.json --output run --epochs 10",
    "solo-infer train --model tiny --yolo data.yaml --output run",
    "solo-infer train --config config.json --backbone-weights resnet50.pth --recipe 3x "
    "--images train2017 --annotations instances_train2017.json --output run",
    "torchrun --nproc-per-node 4 -m solo_infer train --model solo_r50_3x --images photos "
    "--annotations train.json --output run --resume",
)
# Setting of the recipe that each option changes.
RECIPE_SETTINGS = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "lr",
    "seed": "seed",
    "evaluate_every": "evaluate_every",
    "workers": "workers",
    "crop_size": "crop_size",
    "dtype": "autocast",
}


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "train", SUMMARY, run, EXAMPLES)
    model = parser.add_argument_group("model", "Pass either --model or --config.")
    model.add_argument("--model", metavar="MODEL", help=f"start from these weights: {options.MODEL_HELP}")
    model.add_argument(
        "--config", type=options.path, metavar="FILE", help="start from scratch: config.json of a model"
    )
    model.add_argument(
        "--backbone-weights",
        type=options.path,
        metavar="FILE",
        help="with --config: checkpoint of an ImageNet classifier for the backbone",
    )
    _add_data_options(
        parser.add_argument_group("data set", "Pass either --images and --annotations, or --yolo.")
    )
    _add_recipe_options(parser.add_argument_group("recipe"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=options.path,
        required=True,
        metavar="DIR",
        help="folder for the trained model, checkpoints and metrics",
    )
    output.add_argument("--resume", action="store_true", help="continue the run in --output")
    device = parser.add_argument_group("device")
    options.add_device(device)
    device.add_argument(
        "--dtype",
        choices=options.DTYPES,
        help="autocast dtype of the network; auto: the one that is fastest for prediction on the device "
        "(default: the recipe's)",
    )
    device.add_argument(
        "--workers",
        type=options.non_negative_int,
        metavar="N",
        help="processes that load images (default: the recipe's)",
    )


def _add_data_options(group: options.Group) -> None:
    path = options.path
    group.add_argument("--images", type=path, metavar="DIR", help="training images")
    group.add_argument("--annotations", type=path, metavar="FILE", help="COCO annotations of the images")
    group.add_argument(
        "--yolo",
        type=path,
        metavar="FILE",
        help="data.yaml of a data set in YOLO format with polygons; its val split is the validation data",
    )
    group.add_argument("--val-images", type=path, metavar="DIR", help="validation images (default: --images)")
    group.add_argument(
        "--val-annotations",
        type=path,
        metavar="FILE",
        help="COCO annotations to evaluate the model on during training (default: no evaluation)",
    )
    options.add_classes(group, "use only these classes of the data set")
    options.add_max_detections(
        group, "detections per image that count in validation; the model keeps at least the greatest number"
    )
    group.add_argument(
        "--scale",
        type=options.positive_int,
        nargs=2,
        metavar=("SHORT", "LONG"),
        help="resize images to at most these lengths of the shorter and longer side in pixels, in training "
        "and in the trained model (default: the model's)",
    )
    group.add_argument(
        "--crop-size",
        type=options.positive_int,
        metavar="N",
        help="side of the square training crop in pixels, for recipes that crop (default: the recipe's)",
    )


def _add_recipe_options(group: options.Group) -> None:
    group.add_argument(
        "--recipe",
        default="finetune",
        metavar="NAME",
        help="finetune (AdamW, cosine), 1x, 3x, solov2_1x, solov2_3x or yolact (as published), or the "
        "recipe.json of a run "
        "(default: %(default)s)",
    )
    for name, number, description in (
        ("--epochs", options.positive_int, "passes over the training images"),
        ("--batch-size", options.positive_int, "images per iteration, over all processes"),
        ("--evaluate-every", options.positive_int, "epochs between evaluations"),
        ("--seed", options.non_negative_int, "seed of new weights, image order and augmentation"),
    ):
        group.add_argument(name, type=number, metavar="N", help=f"{description} (default: the recipe's)")
    group.add_argument("--lr", type=float, metavar="LR", help="peak learning rate (default: the recipe's)")


def run(args: argparse.Namespace) -> int:
    """Train a model; the processes of torchrun share each batch."""
    if bool(args.config) == bool(args.model):
        return usage_error("pass either --model, or --config to start from scratch")
    if args.backbone_weights and not args.config:
        return usage_error("--backbone-weights requires --config: a --model has backbone weights")
    if problem := _data_problem(args):
        return usage_error(problem)
    from solo_infer.runtime.distributed import is_main_process_env

    is_main = is_main_process_env()
    with show_info_of("solo_infer.training", enabled=is_main and not args.quiet):
        _train(args)
    if is_main:
        print_text(str(args.output))
    return 0


def _data_problem(args: argparse.Namespace) -> str:
    """Return what is wrong with the options of the data set, "" if nothing is."""
    coco = (args.images, args.annotations, args.val_images, args.val_annotations)
    if args.yolo and any(coco):
        return "--yolo names images, labels and validation data: remove --images, --annotations and --val-..."
    if not args.yolo and not (args.images and args.annotations):
        return "pass --images and --annotations of a COCO data set, or --yolo with a data.yaml"
    return "--val-images requires --val-annotations" if args.val_images and not args.val_annotations else ""


def _data_of(args: argparse.Namespace) -> tuple[CocoFiles | YoloFiles, CocoFiles | YoloFiles | None]:
    """Return the training data and the validation data, None if there are none."""
    from solo_infer.data.yolo import read_description
    from solo_infer.training import CocoFiles, YoloFiles

    if args.yolo:
        has_validation = "val" in read_description(args.yolo).splits
        return YoloFiles(args.yolo), YoloFiles(args.yolo, "val") if has_validation else None
    validation = (
        CocoFiles(args.val_images or args.images, args.val_annotations) if args.val_annotations else None
    )
    return CocoFiles(args.images, args.annotations), validation


def _train(args: argparse.Namespace) -> None:
    from solo_infer.training import fine_tune
    from solo_infer.training.fine_tune import require_empty_dir

    require_empty_dir(args.output, args.resume)
    data, validation = _data_of(args)
    if args.dtype is not None:
        args.dtype = options.network_dtype(args.dtype, args.device)
    recipe = recipe_from_options(args)
    fine_tune(
        _initial_model(args, recipe.seed),
        data,
        args.output,
        recipe,
        validation=validation,
        classes=args.classes,
        max_detections=args.max_detections,
        device=args.device,
        resume=args.resume,
        progress=not args.quiet,
    )


def recipe_from_options(args: argparse.Namespace) -> Recipe:
    """Return the recipe that ``--recipe`` names, with the settings that other options change.

    The milestones of the schedule scale with the number of epochs. The learning rate of SGD scales with the
    batch size unless ``--lr`` is given.
    """
    from solo_infer.training.recipe import RECIPES, Recipe

    named = RECIPES.get(args.recipe)
    recipe = Recipe.from_dict(_read_recipe(args.recipe, RECIPES)) if named is None else named
    changed = {
        setting: getattr(args, option)
        for option, setting in RECIPE_SETTINGS.items()
        if getattr(args, option) is not None
    }
    settings = replace(recipe, **changed)
    if args.epochs is not None:
        milestones = (round(epoch * settings.epochs / recipe.epochs) for epoch in recipe.milestones)
        settings = replace(settings, milestones=tuple(milestones))
    if recipe.optimizer == "sgd" and args.batch_size and args.lr is None:
        settings = replace(settings, lr=recipe.lr * settings.batch_size / recipe.batch_size)
        info(f"learning rate {settings.lr:.4g} for a batch size of {settings.batch_size}")
    return settings


def _read_recipe(name: str, known: Any) -> dict[str, Any]:
    """Return the content of a JSON file of settings."""
    path = Path(os.path.expanduser(name))
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)  # without the name again
        raise ConfigError(
            f"No recipe {quoted(name)} ({reason}). {did_you_mean(name[:60], known)}Expected "
            f"{', '.join(known)}, or a JSON file of settings, e.g. the recipe.json of a run."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} contains a {type(content).__name__}: expected a JSON object of settings.")
    return content


def _initial_model(args: argparse.Namespace, seed: int) -> Segmenter:
    """Return the model that training starts from."""
    from solo_infer.segmenters.auto import build_segmenter, load_model
    from solo_infer.training import init_model, load_backbone_weights
    from solo_infer.weights.checkpoint import read_config

    if args.scale is not None:
        require_positive_ints(dict(zip(("short_side", "long_side"), args.scale, strict=True)))
    if args.model:
        model = load_model(args.model, device="cpu")
    else:
        model = init_model(read_config(args.config), seed)
        if args.backbone_weights:
            load_backbone_weights(model.network, args.backbone_weights)
    if args.scale is None:
        return model
    short_side, long_side = args.scale
    preprocessing = replace(model.config.preprocessing, short_side=short_side, long_side=long_side)
    return build_segmenter(replace(model.config, preprocessing=preprocessing), model.network)
