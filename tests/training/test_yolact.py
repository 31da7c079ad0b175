"""Training of YOLACT: losses and gradients of mmdet, losses in plain loops, runs, several processes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.loss_cases import SIZES, ground_truth
from helpers.models import YOLACT_VARIANTS, small_yolact_config, small_yolact_network
from helpers.original_yolact import iou
from helpers.paths import DATA
from helpers.training_runs import train_in_two_processes
from helpers.training_sets import instance, rectangle, write_set

from solo_infer import YOLACT
from solo_infer.config import find_preset
from solo_infer.diagnostics import procedural_weights
from solo_infer.errors import ConfigError
from solo_infer.models import build_network
from solo_infer.models.yolact import losses as yolact_losses
from solo_infer.models.yolact.anchors import level_sizes
from solo_infer.models.yolact.targets import assign_anchors
from solo_infer.training import CocoFiles, Recipe, fine_tune, fit, init_model
from solo_infer.training.metrics_log import read_rows
from solo_infer.weights.key_mapping import mmdet_name

SIZE = SIZES[0]  # network input of mmdet's losses
LOSSES = ("loss_cls", "loss_bbox", "loss_mask", "loss_segm")
QUICK = Recipe(
    epochs=2, batch_size=2, optimizer="adamw", lr=1e-3, warmup_iters=2, log_every=1, workers=0, augment="flip"
)
both_variants = pytest.mark.parametrize("variant", YOLACT_VARIANTS)


def test_losses_targets_and_gradients_equal_mmdets():
    network = build_network(find_preset("yolact_r50").architecture, device="meta")
    network.load_state_dict(procedural_weights.state_dict("yolact_r50"), assign=True)
    network.requires_grad_(True).train()
    images = torch.from_numpy(procedural_weights.input_tensor("tensor_2x320x256", (2, 3, *SIZE), list(SIZES)))
    parameters = {mmdet_name(name): parameter for name, parameter in network.named_parameters()}
    with np.load(DATA / "losses__yolact_r50.npz") as file:
        golden = dict(file)
    for case in ("both", "second_empty", "both_empty"):
        network.zero_grad(set_to_none=True)
        targets = [ground_truth(case, image) for image in range(2)]
        losses = network(images, targets)
        assert tuple(losses) == LOSSES
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(float(golden[f"{case}/{name}"]), rel=1e-4, abs=1e-9)
        sum(losses.values()).backward()
        assert all(parameter.grad is not None for parameter in parameters.values())
        norms = [key for key in golden if key.startswith(f"{case}/grad_norm/")]
        assert len(norms) >= 12
        for key in norms:
            norm = float(parameters[key.split("/")[-1]].grad.norm())
            assert norm == pytest.approx(float(golden[key]), rel=1e-3, abs=1e-9), key
        anchors = network.anchors(level_sizes(network.features(images[:1])), SIZE, images.device)
        for index, target in enumerate(targets):
            owners = assign_anchors(anchors, target["boxes"], torch.zeros(0, 4))
            positive = torch.nonzero(owners >= 0).flatten()
            assert positive.tolist() == golden[f"{case}/img{index}_positive"].tolist()
            assert owners[positive].tolist() == golden[f"{case}/img{index}_owner"].tolist()


def two_images(seed=0):
    """Return two images (2, 3, 96, 96) and rectangles of three classes on them."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = torch.randn(2, 3, 96, 96, generator=generator), []
    for boxes in ([[5, 8, 50, 60], [40, 30, 90, 90]], [[10, 50, 70, 92]]):
        masks = torch.zeros(len(boxes), 96, 96, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[top:bottom, left:right] = 1
        labels = torch.arange(len(boxes)) + 1
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": labels, "masks": masks})
    return images, targets


def is_covered(mask, row, column, step):
    """Return whether most of the four middle pixels of a block are set; their mean is the bilinear value."""
    start = step // 2 - 1
    rows, columns = (slice(step * index + start, step * index + start + 2) for index in (row, column))
    return float(mask[rows, columns].float().mean()) > 0.5


def plain_mask_loss(soft, mask, box):
    """Return the mean cross entropy of mask scores (24, 24), taken as 0 beyond the box."""
    total, (left, top, right, bottom) = 0.0, [side / 4 for side in box]
    for row in range(24):
        for column in range(24):
            inside = left - 1 <= column < right + 1 and top - 1 <= row < bottom + 1
            score = soft[row][column] if inside else 0.0
            probability = score if is_covered(mask, row, column, 4) else 1 - score
            total -= max(math.log(probability) if probability > 0 else -100.0, -100.0)
    return total / 24**2


@both_variants
@torch.no_grad()
def test_losses_in_plain_loops(variant):
    network = small_yolact_network(small_yolact_config(variant)).train()
    images, targets = two_images()
    losses = network(images, targets)
    levels = network.features(images)
    predictions, prototypes = network.bbox_head(levels), network.mask_head(levels[0])
    semantic = network.mask_head.segm_branch(levels[0]).sigmoid()
    anchors = network.anchors(level_sizes(levels), (96, 96), images.device).tolist()
    sums, anchors_counted = dict.fromkeys(LOSSES, 0.0), 0
    for index, target in enumerate(targets):
        boxes, labels = target["boxes"].tolist(), target["labels"].tolist()
        overlaps = np.array([[iou(box, anchor) for anchor in anchors] for box in boxes])
        owners = [int(o.argmax()) if o.max() >= 0.5 else -1 if o.max() < 0.4 else -2 for o in overlaps.T]
        for box in range(len(boxes)):
            owners[int(overlaps[box].argmax())] = box
        logs = predictions.logits[index].log_softmax(dim=1)
        positives = [anchor for anchor, owner in enumerate(owners) if owner >= 0]
        background = sorted(-float(logs[anchor, 3]) for anchor, owner in enumerate(owners) if owner == -1)
        sums["loss_cls"] += sum(background[-3 * len(positives) :])
        anchors_counted += len(positives)
        for anchor in positives:
            box, (x1, y1, x2, y2) = boxes[owners[anchor]], anchors[anchor]
            label = labels[owners[anchor]]
            sums["loss_cls"] -= float(logs[anchor, label])
            width, height = box[2] - box[0], box[3] - box[1]
            deltas = (
                (box[0] + box[2] - x1 - x2) / 2 / (x2 - x1) / 0.1,
                (box[1] + box[3] - y1 - y2) / 2 / (y2 - y1) / 0.1,
                math.log(width / (x2 - x1)) / 0.2,
                math.log(height / (y2 - y1)) / 0.2,
            )
            for value, expected in zip(predictions.deltas[index, anchor].tolist(), deltas, strict=True):
                difference = abs(value - expected)
                sums["loss_bbox"] += 1.5 * (difference**2 / 2 if difference < 1 else difference - 0.5)
            soft = (
                (predictions.coefficients[index, anchor][:, None, None] * prototypes[index])
                .sum(dim=0)
                .sigmoid()
            )
            loss = plain_mask_loss(soft.tolist(), target["masks"][owners[anchor]], box)
            sums["loss_mask"] += 6.125 * loss / (width / 96) / (height / 96)
        for label in range(3):
            channel = label if variant == "original" else (label - 1) % 3  # mmdet's shift by one
            masks = [mask for mask, other in zip(target["masks"], labels, strict=True) if other == label]
            for row in range(12):
                for column in range(12):
                    is_inside = any(is_covered(mask, row, column, 8) for mask in masks)
                    value = float(semantic[index, channel, row, column])
                    sums["loss_segm"] -= math.log(value if is_inside else 1 - value)
    averages = {"loss_segm": 2 * 12**2}
    for name in LOSSES:
        assert float(losses[name]) == pytest.approx(
            sums[name] / averages.get(name, anchors_counted), rel=1e-4
        )


def test_crowds_and_unlabeled_classes_are_ignored():
    network = small_yolact_network(small_yolact_config("mmdet")).requires_grad_(True).train()
    images, targets = two_images()
    for target in targets:
        target["labels"] = torch.full_like(target["labels"], 2)
    bias = network.bbox_head.conv_cls.bias
    network(images, targets)["loss_cls"].backward()
    assert bias.grad.view(3, 4)[:, :2].abs().max() > 0
    bias.grad = None
    partial = [{**target, "labelled": torch.tensor([2])} for target in targets]
    losses = network(images, partial)
    (losses["loss_cls"] + losses["loss_segm"]).backward()
    assert bias.grad.view(3, 4)[:, :2].abs().max() == 0 < bias.grad.view(3, 4)[:, 2].abs().max()
    maps = network.mask_head.segm_branch.segm_conv.bias.grad
    assert maps[0] == maps[2] == 0 != maps[1]  # class 2 has map 1
    crowd = {
        "boxes": torch.tensor([[0.0, 0, 96, 96]]),
        "labels": torch.tensor([0]),
        "masks": torch.ones(1, 96, 96, dtype=torch.uint8),
        "iscrowd": torch.tensor([True]),
    }
    assert network(images, [crowd, crowd])["loss_cls"] < 0.5 * network(images, [empty(), empty()])["loss_cls"]


def empty():
    masks = torch.zeros(0, 96, 96, dtype=torch.uint8)
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": masks}


def test_masks_are_sampled_if_there_are_more_than_the_limit(monkeypatch):
    network = small_yolact_network(small_yolact_config("mmdet")).train()
    all_masks = network(*two_images())["loss_mask"]
    monkeypatch.setattr(yolact_losses, "MAX_MASKS_PER_IMAGE", 1)
    sampled = network(*two_images())["loss_mask"]
    assert torch.isfinite(sampled) and sampled != all_masks
    assert torch.equal(yolact_losses._evenly_spaced(torch.arange(10), 4), torch.tensor([0, 2, 5, 7]))


def test_wrong_targets_are_rejected():
    network = small_yolact_network(small_yolact_config("mmdet")).train()
    images, targets = two_images()
    with pytest.raises(ConfigError, match="one target for each of 2 images"):
        network(images)
    targets[0]["labels"] += 5
    with pytest.raises(ConfigError, match=r"expected 0\.\.2"):
        network(images, targets)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    sizes = {f"{number}.png": (90, 120) for number in range(4)}
    instances = [
        instance(f"{number}.png", name, rectangle(left, 20, left + 50, 70), bbox=[left, 20, 50, 50], area=1)
        for number, left in ((0, 10), (1, 30), (2, 50))
        for name in ("nut", "bolt")
    ]
    return CocoFiles(*write_set(tmp_path_factory.mktemp("data"), sizes, {"nut": 7, "bolt": 3}, instances))


class TwoImages:
    """Batches of the same two images."""

    def __len__(self):
        return 6

    def epoch(self, epoch, start):
        for _ in range(start, 6):
            yield two_images()


@both_variants
def test_run_learns_and_writes_a_model(variant, tmp_path):
    fit(init_model(small_yolact_config(variant)), TwoImages(), tmp_path, QUICK, device="cpu")
    rows = read_rows(tmp_path / "training.csv")
    assert len(rows) == 12 and [name for name in rows[0] if name.startswith("loss")] == [*LOSSES, "loss"]
    values = [float(row["loss"]) for row in rows]
    assert sum(values[-3:]) < 0.7 * sum(values[:3])
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in LOSSES), rel=1e-4)
    assert isinstance(YOLACT.from_pretrained(tmp_path, device="cpu"), YOLACT)


def test_two_processes_train_and_evaluate_as_one(data, tmp_path):
    config = small_yolact_config("mmdet")
    saved_start = YOLACT(config, small_yolact_network(config)).save_pretrained(tmp_path / "start")
    recipe = replace(QUICK, epochs=1, lr=1e-4, seed=1)  # a seed with which some detections are right
    start = YOLACT.from_pretrained(saved_start, device="cpu")
    one = fine_tune(start, data, tmp_path / "one", recipe, validation=data, device="cpu")
    two, _ = train_in_two_processes(saved_start, data, recipe, tmp_path)
    for name, columns in (("training.csv", [*LOSSES, "grad_norm"]), ("evaluation.csv", ["AP", "AR100"])):
        rows, expected = read_rows(two / name), read_rows(one / name)
        assert len(rows) == len(expected) > 0
        for row, other in zip(rows, expected, strict=True):
            for column in columns:
                assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-3, abs=1e-6), column
    assert float(expected[0]["AR100"]) > 0


def test_anchors_cached_by_a_prediction_can_be_used_in_training():
    """Autograd rejects tensors that were created in inference mode."""
    network = small_yolact_network(small_yolact_config("original"))
    images, targets = two_images()
    small = images[..., :80, :88]  # a size that no other test uses
    for target in targets:
        target["masks"], target["boxes"] = target["masks"][:, :80, :88], target["boxes"].clamp(max=80)
    with torch.inference_mode():
        network.anchors(level_sizes(network.features(small)), (80, 88), small.device)
    losses = network.requires_grad_(True).train()(small, targets)
    sum(losses.values()).backward()
    assert network.bbox_head.conv_reg.weight.grad.abs().sum() > 0
