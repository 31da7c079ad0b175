"""``solo-infer train``: a model, a COCO data set and a recipe in, a trained model out."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer.cli.terminal import WRONG_USAGE, print_text, say
from solo_infer.errors import ConfigError

if TYPE_CHECKING:
    from solo_infer.segmenters.base import Segmenter
    from solo_infer.training.recipe import Recipe

_SETTINGS = ("batch_size", "lr", "autocast", "seed", "workers", "size", "evaluate_every")


def train(options: argparse.Namespace) -> int:
    """Fine-tune a model on a COCO data set."""
    if bool(options.config) == bool(options.model):
        say("give --model, or --config (and --body) to start anew")
        return WRONG_USAGE
    if options.body and not options.config:
        say("--body is for --config: a --model has its body")
        return WRONG_USAGE
    from solo_infer.runtime.distributed import is_main_process_env
    from solo_infer.training import CocoFiles, fine_tune
    from solo_infer.training.fine_tune import require_free

    logging.getLogger("solo_infer").setLevel(logging.INFO if is_main_process_env() else logging.WARNING)
    require_free(options.output, options.resume)
    validation = None
    if options.val_annotations:
        validation = CocoFiles(options.val_images or options.images, options.val_annotations)
    recipe = chosen_recipe(options)
    fine_tune(
        _start(options),
        CocoFiles(options.images, options.annotations),
        options.output,
        recipe,
        validation=validation,
        classes=options.classes,
        max_detections=options.max_detections,
        device=options.device,
        resume=options.resume,
    )
    if is_main_process_env():
        print_text(str(options.output))
    return 0


def chosen_recipe(options: argparse.Namespace) -> Recipe:
    """Return the named recipe, or that of a file, with the settings that options change.

    With other epochs, milestones keep their places in the run; with another batch size SGD's learning rate
    follows it, as it was published for 16 images.
    """
    from solo_infer.training.recipe import RECIPES, Recipe

    named = RECIPES.get(options.recipe)
    recipe = Recipe.from_dict(_read(Path(options.recipe))) if named is None else named
    changes: dict[str, Any] = {
        name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None
    }
    if options.epochs is not None:
        changes["epochs"] = options.epochs
        changes["milestones"] = tuple(
            round(epoch * options.epochs / recipe.epochs) for epoch in recipe.milestones
        )
    if recipe.optimizer == "sgd" and options.batch_size and options.lr is None:
        changes["lr"] = recipe.lr * options.batch_size / recipe.batch_size
        say(f"learning rate {changes['lr']:.4g}, for batches of {options.batch_size}")
    return replace(recipe, **changes)


def _read(path: Path) -> Any:
    """Return what a JSON file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected finetune, 1x, 3x, yolact, or a JSON file of settings such as the recipe.json "
            f"of a run ({error})."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, expected an object of settings.")
    return content


def _start(options: argparse.Namespace) -> Segmenter:
    """Return the model to start from."""
    from solo_infer.segmenters.auto import build_segmenter, load_model
    from solo_infer.training import init_model, load_backbone_weights
    from solo_infer.weights.checkpoint import read_config

    if options.model:
        model = load_model(options.model, device="cpu")
    else:
        model = init_model(read_config(options.config), options.seed or 0)
        if options.body:
            load_backbone_weights(model.network, options.body)
    if options.image_size is None:
        return model
    short, long = options.image_size
    preprocessing = replace(model.config.preprocessing, short_side=short, long_side=long)
    return build_segmenter(replace(model.config, preprocessing=preprocessing), model.network)
