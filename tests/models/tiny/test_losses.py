"""Losses of Tiny: their values, gradients, and what is left out of them."""

import pytest
import torch
from helpers.models import small_tiny_config
from helpers.nested_tensors import random_maps
from helpers.training_runs import Rectangles
from torch.nn import functional as F

from solo_infer.models.target import non_crowd_instances
from solo_infer.models.tiny.losses import BOX_WEIGHT, DISTANCE_WEIGHT, tiny_losses
from solo_infer.models.tiny.masks import decode_boxes, mask_logits
from solo_infer.models.tiny.network import TinyNetwork
from solo_infer.models.tiny.targets import assign
from solo_infer.training import init_model

SIZE = (96, 128)


def train_network(seed=0):
    network = init_model(small_tiny_config(), seed).network
    return network.requires_grad_(True).train()


def targets_of_rectangles(count):
    return [Rectangles().sample(0, index)[1] for index in range(count)]


def no_instances():
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, *SIZE, dtype=torch.bool),
    }


@pytest.mark.parametrize("empty", [False, True])
def test_losses_are_finite_and_every_parameter_gets_a_gradient(empty):
    network = train_network()
    images = random_maps((3, *SIZE), count=2)
    targets = [no_instances(), no_instances()] if empty else targets_of_rectangles(2)
    losses = network(images, targets)
    assert tuple(losses) == TinyNetwork.losses
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_cls"] > 0
    assert (losses["loss_mask"] == 0) == empty
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    trained = {name.split(".")[0] for name, gradient in gradients.items() if gradient.any()}
    assert trained == ({"backbone", "neck", "head"} if empty else {"backbone", "neck", "head", "mask_branch"})
    if not empty:
        without = [name for name, gradient in gradients.items() if not gradient.any()]
        # Other branches may have no assigned cell on a level.
        assert not [name for name in without if name.startswith(("backbone.", "neck.", "head.class_"))]


def test_training_lowers_the_losses():
    network = train_network()
    network.backbone.requires_grad_(False)  # a third of the time
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 10:50, 14:44] = True
    target = {"boxes": torch.tensor([[14.0, 10, 44, 50]]), "labels": torch.tensor([1]), "masks": masks}
    image = 0.1 * random_maps((3, 64, 64)) - 1 + 2 * masks
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=5e-3)
    totals = []
    for _ in range(30):
        losses = network(image, [target])
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-3:]) < 0.6 * sum(totals[:3]), totals


# --- Values


def predictions(count, seed=0):
    """Return random outputs of a network for a batch, which need gradients."""
    network = train_network(seed)
    with torch.no_grad():
        output = network.raw_outputs(random_maps((3, *SIZE), count=count))
    generator = torch.Generator().manual_seed(seed)
    cells = type(output.cells)(
        *(
            (values + torch.randn(values.shape, generator=generator)).requires_grad_(True)
            for values in output.cells
        )
    )
    features = torch.randn(output.features.shape, generator=generator).requires_grad_(True)
    return output._replace(cells=cells, features=features)


def expected_sums(output, index, target):
    """Return the sums of the losses of one image by plain loops over its cells, and their divisors."""
    logits, distance_logits, kernels = (values[index].detach() for values in output.cells)
    features = output.features[index].detach()
    boxes = decode_boxes(distance_logits, output.points)
    instances = non_crowd_instances(target, SIZE)
    assignment = assign(logits, boxes, instances, target)
    scores, quality = logits.sigmoid(), torch.zeros_like(logits)
    quality[assignment.cells, instances.labels[assignment.instances]] = assignment.quality
    entropy = -(quality * scores.log() + (1 - quality) * (1 - scores).log())
    cls = float((entropy * (quality - scores).abs() ** 2).sum())
    box, distance = 0.0, 0.0
    for cell, instance, weight in zip(*assignment[:3], strict=True):
        weight, expected = float(weight), instances.boxes[instance]
        box += weight * (1 - generalized_iou(boxes[cell].tolist(), expected.tolist()))
        x, y, stride = output.points[cell].tolist()
        left, top, right, bottom = expected.tolist()
        log_probabilities = distance_logits[cell].view(4, -1).log_softmax(dim=1)
        for side, pixels in enumerate((x - left, y - top, right - x, bottom - y)):
            position = min(max(pixels / stride, 0.0), log_probabilities.shape[1] - 1.01)
            low = int(position)
            share = position - low
            near, far = log_probabilities[side, low : low + 2].tolist()
            distance -= weight * ((1 - share) * near + share * far) / 4
    mask = sum(
        mask_loss(kernels[cell], boxes[cell], features, instances, instance)
        for cell, instance in zip(assignment.mask_cells, assignment.mask_instances, strict=True)
    )
    return (cls, box, distance, mask), (float(assignment.quality.sum()), len(assignment.mask_cells))


def generalized_iou(first, second):
    def area(left, top, right, bottom):
        return max(right - left, 0) * max(bottom - top, 0)

    low, high = [max(first[i], second[i]) for i in (0, 1)], [min(first[i], second[i]) for i in (2, 3)]
    hull = [min(first[i], second[i]) for i in (0, 1)] + [max(first[i], second[i]) for i in (2, 3)]
    intersection = area(*low, *high)
    union = area(*first) + area(*second) - intersection
    return intersection / union - (area(*hull) - union) / area(*hull)


def mask_loss(kernel, box, features, instances, index):
    (logits,) = mask_logits(kernel[None], box[None], features)
    mask = instances.masks[index].float()
    mask = mask.view(mask.shape[0] // 4, 4, mask.shape[1] // 4, 4).mean(dim=(1, 3))
    scores = logits.sigmoid()
    dice = 1 - (2 * (scores * mask).sum() + 1) / ((scores**2).sum() + (mask**2).sum() + 1)
    left, top, right, bottom = instances.boxes[index].tolist()
    margins = [0.15 * (right - left) + 6, 0.15 * (bottom - top) + 6]
    total, weights = 0.0, 0.0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            x, y = 4 * column + 2, 4 * row + 2
            if not (
                left - margins[0] < x < right + margins[0] and top - margins[1] < y < bottom + margins[1]
            ):
                continue
            around = mask[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3].mean()
            weight = 1 + 12 * float(around * (1 - around))
            entropy = F.binary_cross_entropy_with_logits(logits[row, column], mask[row, column])
            total, weights = total + weight * float(entropy), weights + weight
    return float(dice) + total / max(weights, 1.0)


def test_losses_of_a_batch_are_sums_over_its_images_with_common_divisors():
    output, targets = predictions(2), targets_of_rectangles(2)
    losses = tiny_losses(*output, targets)
    sums, divisors = zip(*(expected_sums(output, i, target) for i, target in enumerate(targets)), strict=True)
    cls, box, distance, mask = (sum(values) for values in zip(*sums, strict=True))
    quality, masks = (max(sum(values), 1.0) for values in zip(*divisors, strict=True))
    assert masks > 1
    expected = {
        "loss_cls": cls / quality,
        "loss_box": BOX_WEIGHT * box / quality,
        "loss_distance": DISTANCE_WEIGHT * distance / quality,
        "loss_mask": mask / masks,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=2e-3)


def test_processes_with_half_of_a_batch_average_to_the_whole(monkeypatch):
    """DDP averages over processes; each divides by half of the sums over both."""
    output, targets = predictions(2), targets_of_rectangles(2)
    whole = tiny_losses(*output, targets)
    divisors = [expected_sums(output, index, target)[1] for index, target in enumerate(targets)]
    totals = iter(2 * [sum(values) for values in zip(*divisors, strict=True)])
    monkeypatch.setattr(
        "solo_infer.models.tiny.losses.sum_over_processes", lambda count, device: (next(totals), 0.5)
    )
    halves = [
        tiny_losses(
            type(output.cells)(*(values[i : i + 1] for values in output.cells)),
            output.points,
            output.features[i : i + 1],
            [target],
        )
        for i, target in enumerate(targets)
    ]
    for name, loss in whole.items():
        mean = sum(half[name].item() for half in halves) / 2
        assert mean == pytest.approx(loss.item(), rel=1e-4), name


def class_gradient(target):
    """Return the gradient (cells, classes) of the class loss for one image, and the boxes of the cells."""
    output = predictions(1)
    tiny_losses(*output, [target])["loss_cls"].backward()
    return output.cells.class_logits.grad[0], decode_boxes(output.cells.distance_logits, output.points)[0]


def test_unlabelled_classes_have_no_gradient():
    (target,) = targets_of_rectangles(1)
    label = int(target["labels"][0])
    others = [other for other in range(3) if other != label]
    gradient, _ = class_gradient({**target, "labelled": torch.tensor([label, others[0]])})
    assert not gradient[:, others[1]].any()
    assert gradient[:, [label, others[0]]].ne(0).all()


def test_crowd_regions_have_no_gradient_for_their_class():
    crowd = {
        "boxes": torch.tensor([[0.0, 0.0, 64.0, 96.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 64, dtype=torch.bool),
        "iscrowd": torch.tensor([1]),
    }
    gradient, boxes = class_gradient(crowd)
    left, top, right, bottom = boxes.detach().unbind(dim=1)
    width, height = (right - left).clamp(min=0), (bottom - top).clamp(min=0)
    overlap = (right.clamp(max=64) - left.clamp(min=0)).clamp(min=0) * (
        bottom.clamp(max=96) - top.clamp(min=0)
    ).clamp(min=0)
    inside = overlap > 0.5 * width * height
    assert inside.any() and not inside.all()
    assert torch.equal(gradient[:, 1] == 0, inside)
    assert gradient[:, [0, 2]].ne(0).all()
