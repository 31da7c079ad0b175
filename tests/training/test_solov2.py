"""Training of SOLOv2: losses in plain loops, parameters without gradients, runs, several processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import variant_of
from helpers.training_runs import (
    QUICK,
    QUICK_FINE_TUNE,
    Rectangles,
    small_start,
    train_in_two_processes,
    write_nuts_and_bolts,
)

from solo_infer import SOLO
from solo_infer.models.solo.targets import downsample_masks
from solo_infer.training import PUBLISHED_SOLOV2_3X, fine_tune, fit, init_model
from solo_infer.training.initialization import keep_classes, prepare_for_training, replace_classifier
from solo_infer.training.metrics_log import read_rows
from solo_infer.training.recipe import Recipe

SIZE = (96, 128)


def rectangles_target(*rectangles, **optional):
    """Return the target of an image with rectangles (label, top, left, bottom, right)."""
    masks = torch.zeros(len(rectangles), *SIZE, dtype=torch.uint8)
    for mask, (_, top, left, bottom, right) in zip(masks, rectangles, strict=True):
        mask[top:bottom, left:right] = 1
    boxes = [(left, top, right, bottom) for _, top, left, bottom, right in rectangles]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([label for label, *_ in rectangles], dtype=torch.int64),
        "masks": masks,
        **optional,
    }


# Of the first image, two claim the same cells; of the second one, the first has no pixel.
OVERLAPPING = [
    rectangles_target((0, 10, 20, 70, 90), (2, 20, 30, 60, 80), (1, 2, 2, 31, 37)),
    rectangles_target((1, 50, 50, 50, 50), (1, 3, 60, 93, 121)),
]
EMPTY = rectangles_target()


@pytest.fixture(scope="module")
def start():
    return small_start("solov2")


@pytest.fixture
def network(start):
    """Return a network in train mode whose kernels give masks of any score."""
    network = prepare_for_training(replace_classifier(start, start.config.categories).network, Recipe())
    with torch.no_grad():
        network.mask_head.conv_kernel.weight.mul_(20)
        network.mask_head.conv_cls.weight.mul_(20)
    return network


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def plain_claims(target, grid, bounds):
    """Yield the instance and the row and column of each cell that an instance claims (mmdet's rules)."""
    for index, mask in enumerate(target["masks"].numpy()):
        x1, y1, x2, y2 = target["boxes"][index].tolist()
        if not mask.any() or not bounds[0] <= ((x2 - x1) * (y2 - y1)) ** 0.5 <= bounds[1]:
            continue
        lines = []
        for pixels, side, length in zip(np.nonzero(mask), (y2 - y1, x2 - x1), SIZE, strict=True):
            center = pixels.mean()
            first, middle, last = (
                int(place / length * grid) for place in (center - 0.1 * side, center, center + 0.1 * side)
            )
            lines.append(range(max(first, 0, middle - 1), min(last, grid - 1, middle + 1) + 1))
        yield from ((index, row, column) for row in lines[0] for column in lines[1])


def test_losses_in_plain_loops(network, images):
    config = network.config
    with torch.no_grad():
        losses = network(images, OVERLAPPING)
        logits, kernels, features = network.mask_head(network.features(images))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(images, OVERLAPPING)
    dice, focal, pairs, cells = 0.0, 0.0, 0, 0
    for image, target in enumerate(OVERLAPPING):
        expected_masks = downsample_masks(target["masks"].bool(), 4).double()
        for level, grid in enumerate(config.num_grids):
            labels = {}
            for index, row, column in plain_claims(target, grid, config.scale_ranges[level]):
                kernel = kernels[level][image, :, row, column].double()
                scores = (kernel[:, None, None] * features[image].double()).sum(dim=0).sigmoid()
                expected = expected_masks[index]
                squares = (scores**2).sum() + (expected**2).sum() + 2e-3
                dice += 1 - 2 * float((scores * expected).sum() / squares)
                pairs += 1
                labels[row, column] = int(target["labels"][index])
            cells += len(labels)
            for row in range(grid):
                for column in range(grid):
                    for label in range(config.num_classes):
                        score = float(logits[level][image, label, row, column].double().sigmoid())
                        if labels.get((row, column)) == label:
                            focal -= 0.25 * (1 - score) ** 2 * np.log(score)
                        else:
                            focal -= 0.75 * score**2 * np.log(1 - score)
    assert pairs > cells > 10  # some cells have two masks
    assert float(losses["loss_mask"]) == pytest.approx(3 * dice / cells, rel=1e-5)
    assert float(losses["loss_cls"]) == pytest.approx(focal / (cells + 1), rel=1e-5)
    for name, loss in half.items():
        assert loss.dtype == torch.float32 and float(loss) == pytest.approx(float(losses[name]), rel=0.05)


@pytest.mark.parametrize("targets", [[EMPTY, EMPTY], [EMPTY, OVERLAPPING[1]]])
def test_all_parameters_get_a_gradient_without_instances(network, images, targets):
    losses = network(images, targets)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    has_instances = any(len(target["labels"]) for target in targets)
    assert (float(losses["loss_mask"].detach()) > 0) == has_instances
    for layer in ("conv_kernel", "kernel_convs.0.conv", "mask_feature_head.conv_pred.conv"):
        assert bool(gradients[f"mask_head.{layer}.weight"].any()) == has_instances
    assert gradients["mask_head.conv_cls.weight"].any()


def test_deformable_convolutions_are_trained(start, images):
    changes = {"deformable_head": "all", "deformable_mask_features": True, "modulated": True}
    network = prepare_for_training(init_model(variant_of(start.config, changes)).network, Recipe())
    sum(network(images, OVERLAPPING).values()).backward()
    offsets = {name: p for name, p in network.named_parameters() if "conv_offset" in name}
    assert len(offsets) == 2 * (1 + 1 + 8)  # class and kernel branch, mask feature head
    for name, parameter in offsets.items():
        assert not parameter.any() and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("size", [(94, 70), (65, 97)])
def test_training_on_unpadded_images(network, images, size):
    target = rectangles_target((1, 4, 4, 60, 60))
    target["masks"] = target["masks"][:, : size[0], : size[1]]
    losses = network(images[:1, :, : size[0], : size[1]], [target])
    sum(losses.values()).backward()
    assert 0 < float(losses["loss_mask"].detach()) < 3
    assert network.mask_head.conv_kernel.weight.grad.any()


def test_crowds_and_unlabeled_classes_are_ignored(network, images):
    target = rectangles_target((2, 10, 20, 70, 90))
    partial = {**target, "labelled": torch.tensor([2])}
    network(images, [partial, partial])["loss_cls"].backward()
    gradient = network.mask_head.conv_cls.bias.grad
    assert not gradient[:2].any() and gradient[2] != 0
    crowd = rectangles_target((0, 0, 0, *SIZE), iscrowd=torch.tensor([True]))
    with torch.no_grad():
        with_crowd, empty = network(images, [crowd, crowd]), network(images, [EMPTY, EMPTY])
    assert float(with_crowd["loss_mask"]) == 0
    assert float(with_crowd["loss_cls"]) < 0.8 * float(empty["loss_cls"])


def test_initial_weights(start):
    head = start.network.mask_head
    assert not head.conv_kernel.bias.any() and head.conv_cls.bias.eq(head.conv_cls.bias[0]).all()
    assert float(head.conv_cls.bias[0].detach().sigmoid()) == pytest.approx(0.01)
    for conv in (head.conv_kernel, head.conv_cls, head.mask_feature_head.conv_pred.conv):
        assert 0.008 < float(conv.weight.detach().std()) < 0.012


def test_run_learns_and_writes_a_model(start, tmp_path):
    recipe = replace(
        QUICK, epochs=3, save_every=100, optimizer="adamw", lr=1e-3, grad_clip_norm=10.0, ema_decay=0.0
    )
    copied = replace_classifier(start, start.config.categories)
    fit(copied, Rectangles(6), tmp_path, recipe, device="cpu")
    values = [float(row["loss"]) for row in read_rows(tmp_path / "training.csv")]
    assert len(values) == 18 and sum(values[-6:]) < 0.9 * sum(values[:6])
    model = SOLO.from_pretrained(tmp_path, device="cpu")
    assert model.config == start.config
    weights = model.network.state_dict()
    for layer in ("conv_kernel", "mask_feature_head.conv_pred.conv"):
        name = f"mask_head.{layer}.weight"
        assert not torch.equal(weights[name], start.network.state_dict()[name])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_nuts_and_bolts(tmp_path_factory.mktemp("data"))


def test_new_classes_keep_the_other_weights(start, data, tmp_path):
    recipe = replace(
        PUBLISHED_SOLOV2_3X, epochs=1, batch_size=4, milestones=(1,), warmup_iters=0, lr=0.0, workers=0
    )
    trained = SOLO.from_pretrained(fine_tune(start, data, tmp_path / "run", recipe, device="cpu"))
    assert set(trained.config.categories.names) == {"nut", "bolt"}
    assert trained.config.architecture == replace(start.config.architecture, num_classes=2)
    before, after = start.network.state_dict(), trained.network.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"mask_head.conv_cls.weight", "mask_head.conv_cls.bias"}
    bolts = keep_classes(trained, ["bolt"])
    label = trained.config.categories.names.index("bolt")
    weight = bolts.network.mask_head.conv_cls.weight
    assert torch.equal(weight[0], after["mask_head.conv_cls.weight"][label])


def test_two_processes_train_and_evaluate_as_one(start, data, tmp_path):
    """One of the images has no instance, so that a process has no positive cell."""
    saved_start = start.save_pretrained(tmp_path / "start")
    recipe = replace(QUICK_FINE_TUNE, epochs=1)
    one = fine_tune(start, data, tmp_path / "one", recipe, validation=data, device="cpu")
    two, _ = train_in_two_processes(saved_start, data, recipe, tmp_path)
    for name, columns in (
        ("training.csv", ["loss_cls", "loss_mask", "grad_norm"]),
        ("evaluation.csv", ["AP"]),
    ):
        rows, expected = read_rows(two / name), read_rows(one / name)
        assert len(rows) == len(expected) > 0
        for row, other in zip(rows, expected, strict=True):
            for column in columns:
                assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-3, abs=1e-6), column
