"""What a recipe makes of its images: the augmentation, and the size of its batches."""

from __future__ import annotations

from solo_infer.config import PreprocessConfig
from solo_infer.training.recipe import Recipe
from solo_infer.training.transforms import (
    Augmentation,
    ColorJitter,
    CopyPaste,
    Crop,
    Flip,
    LargeScaleJitter,
    ResizeChoice,
    Step,
    Stretch,
)

_SHORT_SIDES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)  # 800, 768, ... 640 of 800 (mmdet's 3x schedule)


def augmentation(recipe: Recipe, preprocessing: PreprocessConfig) -> Augmentation:
    """Return what changes the training images of a model, as ``Recipe.augment`` names it.

    A model that does not keep the ratio of sides learns from stretched images; "multiscale" cuts windows out
    of them (as the crops of mmdet's YOLACT do), for its input has one size.
    """
    short, long = preprocessing.short_side, preprocessing.long_side
    if recipe.augment == "jitter":
        side = window(recipe, preprocessing)
        least, greatest = (scale * long / side for scale in recipe.scales)
        colors = ColorJitter(brightness=20.0, contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=8.0)
        pasting = CopyPaste(recipe.copy_paste) if recipe.copy_paste else None
        shape: tuple[Step, ...] = () if preprocessing.keep_ratio else (Stretch(short),)
        return Augmentation((colors, Flip(), *shape, LargeScaleJitter(side, (least, greatest))), pasting)
    if not preprocessing.keep_ratio:
        cut: tuple[Step, ...] = (Crop(),) if recipe.augment == "multiscale" else ()
        mirrored: tuple[Step, ...] = () if recipe.augment == "none" else (Flip(),)
        return Augmentation((*cut, Stretch(short), *mirrored))
    factors = _SHORT_SIDES if recipe.augment == "multiscale" else (1.0,)
    steps: list[Step] = [ResizeChoice(tuple(max(round(short * factor), 1) for factor in factors), long)]
    if recipe.augment != "none":
        steps.append(Flip())
    return Augmentation(tuple(steps))


def batch_size_in_pixels(recipe: Recipe, preprocessing: PreprocessConfig) -> tuple[int, int] | None:
    """Return height and width of all batches, None if each is as large as its images need."""
    if recipe.augment != "jitter":
        return None
    side = window(recipe, preprocessing)
    return side, side


def window(recipe: Recipe, preprocessing: PreprocessConfig) -> int:
    """Return the side of the square window of "jitter" in pixels, a multiple of the size divisor."""
    side = recipe.size or preprocessing.short_side
    return preprocessing.padded_shape(side, side)[0]
