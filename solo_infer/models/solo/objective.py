"""What a SOLO network is trained for: class and mask losses of a batch, with mmdet's targets and averages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from solo_infer.models.solo.losses import class_loss, dice_losses, mask_loss
from solo_infer.models.solo.targets import LevelTargets, assign_targets
from solo_infer.models.target import Target, check_targets, crowds, non_crowd_instances
from solo_infer.runtime.distributed import sum_over_processes

if TYPE_CHECKING:
    from solo_infer.models.solo.network import SOLOHead, SOLONetwork


def solo_losses(network: SOLONetwork, images: Tensor, targets: list[Target] | None) -> dict[str, Tensor]:
    """Return {"loss_cls", "loss_mask"}, scalars, of normalized images (N, 3, H, W).

    Raises:
        ConfigError: The targets do not fit the images or the classes.
    """
    config, head = network.config, network.mask_head
    check_targets(targets, images, config.num_classes)
    assert targets is not None
    size = (images.shape[-2], images.shape[-1])
    assigned = [
        assign_targets(
            non_crowd_instances(target, size),
            config.num_grids,
            config.strides,
            config.scale_ranges,
            config.num_classes,
        )
        for target in targets
    ]
    levels = network.features(images)
    count, share = sum_over_processes(
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
    """Return which cells (g * g,) have their center inside a mask (h, w) of the top left of the input."""
    centers = (torch.arange(grid, device=mask.device) + 0.5) / grid
    rows, columns = (centers * size[0]).long(), (centers * size[1]).long()
    padded = pad(mask, (0, size[1] - mask.shape[1], 0, size[0] - mask.shape[0]))
    return padded[rows][:, columns].flatten()
