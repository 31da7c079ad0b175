"""What a SOLO network is trained for: class and mask losses of a batch, with mmdet's targets and averages."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from solo_infer.errors import ConfigError
from solo_infer.ops.losses import class_loss, dice_losses, mask_loss
from solo_infer.ops.targets import Instances, LevelTargets, assign_targets

if TYPE_CHECKING:
    from solo_infer.models.solo import SOLOHead, SOLONetwork


class _Required(TypedDict):
    boxes: Tensor
    labels: Tensor
    masks: Tensor


class Target(_Required, total=False):
    """The ground truth of one image, as torchvision's detectors take it.

    Keys:
        boxes: (n, 4) float x1 y1 x2 y2 in pixels of the network input, far edge exclusive.
        labels: (n,) int64, 0..classes-1.
        masks: (n, h, w) uint8 or bool, for the top left of the padded input.
        iscrowd: (n,), optional. Crowd regions teach nothing: their cells are left out of the class loss of
            their class.
        labelled: (k,) int64, optional: the classes that this image's labels cover. The others are left
            out of the class loss. All, if not given.
    """

    iscrowd: Tensor
    labelled: Tensor


def solo_losses(network: SOLONetwork, images: Tensor, targets: list[Target] | None) -> dict[str, Tensor]:
    """Return {"loss_cls", "loss_mask"}, scalars, of normalised images (N, 3, H, W).

    Raises:
        ConfigError: The targets do not fit the images or the classes.
    """
    config, head = network.config, network.mask_head
    check_targets(targets, images, config.num_classes)
    assert targets is not None
    size = (images.shape[-2], images.shape[-1])
    assigned = [
        assign_targets(
            learned_instances(target, size),
            config.num_grids,
            config.strides,
            config.scale_ranges,
            config.num_classes,
        )
        for target in targets
    ]
    levels = network.features(images)
    count, share = whole_batch(
        sum(len(level.positive) for image in assigned for level in image), images.device
    )
    logits = torch.cat([part.flatten(2) for part in head.class_logits(levels)], dim=2)
    labels = torch.stack([torch.cat([level.labels for level in image]) for image in assigned])
    ignored = torch.stack(
        [_ignored(target, config.num_grids, config.num_classes, size) for target in targets]
    )
    return {
        "loss_cls": class_loss(
            logits.transpose(1, 2).flatten(0, 1).float(),
            labels.flatten(),
            count,
            ignored.flatten(0, 1),
            share,
        ),
        "loss_mask": mask_loss(_dice(head, levels, assigned), count, share),
    }


def whole_batch(count: int, device: torch.device) -> tuple[float, float]:
    """Return a number summed over all processes, and the share of a process in the batch."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return float(count), 1.0
    total = torch.tensor(float(count), device=device)
    distributed.all_reduce(total)
    return float(total), 1.0 / distributed.get_world_size()


def _dice(head: SOLOHead, levels: list[Tensor], assigned: list[list[LevelTargets]]) -> Tensor:
    """Return the dice losses of all positive cells of a batch, and a zero that touches each parameter."""
    # Parameters of levels without instances get zero gradients, not missing ones: DDP waits for all.
    zero = sum(
        (parameter.sum() * 0.0 for parameter in head.parameters()), torch.zeros((), device=levels[0].device)
    )
    losses = [torch.as_tensor(zero).reshape(1)]
    start = 0
    for level, grid in enumerate(head.num_grids):
        parts = [image[level] for image in assigned]
        losses += _level_dice(head, levels, level, [part.positive + start for part in parts], parts)
        start += grid * grid
    return torch.cat(losses)


def _level_dice(
    head: SOLOHead, levels: list[Tensor], level: int, cells: list[Tensor], parts: list[LevelTargets]
) -> list[Tensor]:
    """Return the dice losses of one level's positive cells, running its mask branch where any is."""
    having = [image for image, members in enumerate(cells) if len(members)]
    if not having:
        return []
    chosen = list(levels)
    chosen[level] = levels[level] if len(having) == len(cells) else levels[level][having]
    maps = head.mask_maps(chosen, torch.cat(cells).unique())
    losses = []
    for index, image in enumerate(having):
        for part in head.split_cells(cells[image]):
            scores = maps.level_scores(index, part)
            losses.append(dice_losses(scores, _cut_or_padded(parts[image].masks, scores.shape[1:])))
    return losses


def _cut_or_padded(masks: Tensor, size: torch.Size) -> Tensor:
    """Return masks (k, h, w) of a size that differs by a few pixels if the input is no multiple of 32."""
    return pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))


def learned_instances(target: Target, size: tuple[int, int]) -> Instances:
    """Return the instances that are learned, their masks padded to the network input."""
    masks = target["masks"].bool()
    masks = pad(masks, (0, size[1] - masks.shape[-1], 0, size[0] - masks.shape[-2]))
    single = ~crowds(target)
    return Instances(target["boxes"].float()[single], target["labels"][single], masks[single])


def crowds(target: Target) -> Tensor:
    """Return which of the instances (n,) of a target are crowd regions."""
    crowd = target.get("iscrowd")
    return torch.zeros_like(target["labels"], dtype=torch.bool) if crowd is None else crowd.bool()


def _ignored(target: Target, num_grids: tuple[int, ...], classes: int, size: tuple[int, int]) -> Tensor:
    """Return which (cell, class) pairs (cells, classes) of an image teach nothing."""
    device = target["labels"].device
    unlabelled = torch.zeros(classes, dtype=torch.bool, device=device)
    if "labelled" in target:
        unlabelled[:] = True
        unlabelled[target["labelled"]] = False
    ignored = [unlabelled.repeat(grid * grid, 1) for grid in num_grids]
    for index in torch.nonzero(crowds(target)).flatten():
        mask, label = target["masks"][index].bool(), target["labels"][index]
        for grid, cells in zip(num_grids, ignored, strict=True):
            cells[:, label] |= _cells_inside(mask, grid, size)
    return torch.cat(ignored)


def _cells_inside(mask: Tensor, grid: int, size: tuple[int, int]) -> Tensor:
    """Return which cells (g * g,) have their centre inside a mask (h, w) of the top left of the input."""
    centres = (torch.arange(grid, device=mask.device) + 0.5) / grid
    rows, columns = (centres * size[0]).long(), (centres * size[1]).long()
    padded = pad(mask, (0, size[1] - mask.shape[1], 0, size[0] - mask.shape[0]))
    return padded[rows][:, columns].flatten()


def check_targets(targets: list[Target] | None, images: Tensor, classes: int) -> None:
    """Raise ConfigError if targets do not fit images (N, 3, H, W) or the number of classes."""
    if targets is None or len(targets) != len(images):
        given = "none" if targets is None else len(targets)
        raise ConfigError(f"Train mode needs a target for each of the {len(images)} images, got {given}.")
    height, width = images.shape[-2:]
    for index, target in enumerate(targets):
        boxes, labels, masks = target["boxes"], target["labels"], target["masks"]
        count = len(labels)
        if boxes.shape != (count, 4) or masks.ndim != 3 or len(masks) != count:
            raise ConfigError(
                f"Target {index}: boxes {tuple(boxes.shape)} and masks {tuple(masks.shape)} for {count} "
                f"labels; expected ({count}, 4) and ({count}, h, w)."
            )
        if masks.shape[1] > height or masks.shape[2] > width:
            raise ConfigError(
                f"Target {index}: masks of {tuple(masks.shape[1:])} for an input of {(height, width)} pixels."
            )
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ConfigError(f"Target {index}: labels {labels.tolist()}; expected 0..{classes - 1}.")
