"""YOLACT in training: mmdet's losses, plain loops beside them, the loop, several processes."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import YOLACT_VARIANTS, small_yolact_config, small_yolact_network
from helpers.original_yolact import iou
from helpers.paths import DATA, ROOT
from helpers.training_sets import instance, rectangle, write_set
from models.solo.test_losses import ground_truth

from solo_infer import YOLACT
from solo_infer.config import find_preset
from solo_infer.config.categories import Categories
from solo_infer.diagnostics import procedural_weights
from solo_infer.errors import ConfigError
from solo_infer.models import build_network
from solo_infer.models.yolact.targets import assign_anchors
from solo_infer.training import CocoFiles, Recipe, fine_tune, fit, init_model
from solo_infer.training.initialization import keep_classes, replace_classifier
from solo_infer.training.metrics_log import read_rows
from solo_infer.training.policies import augmentation
from solo_infer.training.transforms import Crop, Flip, LargeScaleJitter, Stretch
from solo_infer.weights.key_mapping import mmdet_name

SIZE = (320, 256)  # of the input of mmdet's losses
LOSSES = ("loss_cls", "loss_bbox", "loss_mask", "loss_segm")
QUICK = Recipe(
    epochs=2, batch_size=2, optimizer="adamw", lr=1e-3, warmup=2, log_every=1, workers=0, augment="flip"
)
both_kinds = pytest.mark.parametrize("variant", YOLACT_VARIANTS)


def test_mmdets_losses_targets_and_gradients():
    network = build_network(find_preset("yolact_r50").architecture, device="meta")
    network.load_state_dict(procedural_weights.state_dict("yolact_r50"), assign=True)
    network.requires_grad_(True).train()
    sizes = [SIZE, (305, 203)]
    images = torch.from_numpy(procedural_weights.input_tensor("tensor_2x320x256", (2, 3, *SIZE), sizes))
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
        anchors = network.anchors(network.features(images[:1]), SIZE)
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


def covered(mask, row, column, step):
    """Return whether the four middle pixels of a block, whose mean is the bilinear value, are mostly set."""
    start = step // 2 - 1
    rows, columns = (slice(step * place + start, step * place + start + 2) for place in (row, column))
    return float(mask[rows, columns].float().mean()) > 0.5


def plain_mask_loss(soft, mask, box):
    """Return the mean cross entropy of mask scores (24, 24) that count as 0 a pixel beyond the box."""
    total, (left, top, right, bottom) = 0.0, [side / 4 for side in box]
    for row in range(24):
        for column in range(24):
            inside = left - 1 <= column < right + 1 and top - 1 <= row < bottom + 1
            score = soft[row][column] if inside else 0.0
            share = score if covered(mask, row, column, 4) else 1 - score
            total -= max(math.log(share) if share > 0 else -100.0, -100.0)
    return total / 24**2


@both_kinds
@torch.no_grad()
def test_losses_in_plain_loops(variant):
    network = small_yolact_network(small_yolact_config(variant)).train()
    images, targets = two_images()
    found = network(images, targets)
    levels = network.features(images)
    said, prototypes = network.bbox_head(levels), network.mask_head(levels[0])
    semantic = network.mask_head.segm_branch(levels[0]).sigmoid()
    anchors = network.anchors(levels, (96, 96)).tolist()
    sums, anchors_counted = dict.fromkeys(LOSSES, 0.0), 0
    for index, target in enumerate(targets):
        boxes, labels = target["boxes"].tolist(), target["labels"].tolist()
        overlaps = np.array([[iou(box, anchor) for anchor in anchors] for box in boxes])
        owners = [int(o.argmax()) if o.max() >= 0.5 else -1 if o.max() < 0.4 else -2 for o in overlaps.T]
        for box in range(len(boxes)):
            owners[int(overlaps[box].argmax())] = box
        logs = said.logits[index].log_softmax(dim=1)
        positives = [place for place, owner in enumerate(owners) if owner >= 0]
        background = sorted(-float(logs[place, 3]) for place, owner in enumerate(owners) if owner == -1)
        sums["loss_cls"] += sum(background[-3 * len(positives) :])
        anchors_counted += len(positives)
        for place in positives:
            box, (x1, y1, x2, y2) = boxes[owners[place]], anchors[place]
            label = labels[owners[place]]
            sums["loss_cls"] -= float(logs[place, label])
            width, height = box[2] - box[0], box[3] - box[1]
            wanted = (
                (box[0] + box[2] - x1 - x2) / 2 / (x2 - x1) / 0.1,
                (box[1] + box[3] - y1 - y2) / 2 / (y2 - y1) / 0.1,
                math.log(width / (x2 - x1)) / 0.2,
                math.log(height / (y2 - y1)) / 0.2,
            )
            for value, goal in zip(said.deltas[index, place].tolist(), wanted, strict=True):
                apart = abs(value - goal)
                sums["loss_bbox"] += 1.5 * (apart**2 / 2 if apart < 1 else apart - 0.5)
            soft = (said.coefficients[index, place][:, None, None] * prototypes[index]).sum(dim=0).sigmoid()
            loss = plain_mask_loss(soft.tolist(), target["masks"][owners[place]], box)
            sums["loss_mask"] += 6.125 * loss / (width / 96) / (height / 96)
        for label in range(3):
            channel = label if variant == "original" else (label - 1) % 3  # mmdet's shift by one
            masks = [mask for mask, own in zip(target["masks"], labels, strict=True) if own == label]
            for row in range(12):
                for column in range(12):
                    inside = any(covered(mask, row, column, 8) for mask in masks)
                    value = float(semantic[index, channel, row, column])
                    sums["loss_segm"] -= math.log(value if inside else 1 - value)
    averages = {"loss_segm": 2 * 12**2}
    for name in LOSSES:
        assert float(found[name]) == pytest.approx(sums[name] / averages.get(name, anchors_counted), rel=1e-4)


def test_crowds_and_classes_without_labels_teach_nothing():
    network = small_yolact_network(small_yolact_config("yolact")).requires_grad_(True).train()
    images, targets = two_images()
    for target in targets:
        target["labels"] = torch.full_like(target["labels"], 2)
    bias = network.bbox_head.conv_cls.bias
    network(images, targets)["loss_cls"].backward()
    assert bias.grad.view(3, 4)[:, :2].abs().max() > 0
    bias.grad = None
    partly = [{**target, "labelled": torch.tensor([2])} for target in targets]
    losses = network(images, partly)
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


def test_more_positive_anchors_than_masks_are_learned(monkeypatch):
    from solo_infer.models.yolact.network import losses

    network = small_yolact_network(small_yolact_config("yolact")).train()
    every = network(*two_images())["loss_mask"]
    monkeypatch.setattr(losses, "MASKS", 1)
    some = network(*two_images())["loss_mask"]
    assert torch.isfinite(some) and some != every
    assert torch.equal(losses._evenly(torch.arange(10), 4), torch.tensor([0, 2, 5, 7]))


def test_targets_that_do_not_fit():
    network = small_yolact_network(small_yolact_config("yolact")).train()
    images, targets = two_images()
    with pytest.raises(ConfigError, match="a target for each of the 2 images"):
        network(images)
    targets[0]["labels"] += 5
    with pytest.raises(ConfigError, match=r"expected 0\.\.2"):
        network(images, targets)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pictures = {f"{number}.png": (90, 120) for number in range(4)}
    instances = [
        instance(f"{number}.png", kind, rectangle(left, 20, left + 50, 70), bbox=[left, 20, 50, 50], area=1)
        for number, left in ((0, 10), (1, 30), (2, 50))
        for kind in ("nut", "bolt")
    ]
    return CocoFiles(*write_set(tmp_path_factory.mktemp("data"), pictures, {"nut": 7, "bolt": 3}, instances))


class TwoImages:
    """The same two images again and again."""

    def __len__(self):
        return 6

    def epoch(self, epoch, start):
        for _ in range(start, 6):
            yield two_images()


@both_kinds
def test_it_learns_and_leaves_a_model(variant, tmp_path):
    fit(init_model(small_yolact_config(variant)), TwoImages(), tmp_path, QUICK, device="cpu")
    rows = read_rows(tmp_path / "training.csv")
    assert len(rows) == 12 and [name for name in rows[0] if name.startswith("loss")] == [*LOSSES, "loss"]
    values = [float(row["loss"]) for row in rows]
    assert sum(values[-3:]) < 0.7 * sum(values[:3])
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in LOSSES), rel=1e-4)
    assert isinstance(YOLACT.from_pretrained(tmp_path, device="cpu"), YOLACT)


def test_two_processes_train_and_score_as_one(data, tmp_path):
    config = small_yolact_config("yolact")
    begin = YOLACT(config, small_yolact_network(config)).save_pretrained(tmp_path / "begin")
    recipe = replace(QUICK, epochs=1, lr=1e-4)
    start = YOLACT.from_pretrained(begin, device="cpu")
    one = fine_tune(start, data, tmp_path / "one", recipe, validation=data, device="cpu")
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    verb = ["-m", "solo_infer", "train", "--model", begin, "--recipe", tmp_path / "recipe.json"]
    files = ["--images", data.images, "--annotations", data.annotations]
    files += ["--val-annotations", data.annotations, "--output", tmp_path / "two", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, [*command, *verb, *files])), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, columns in (("training.csv", [*LOSSES, "grad_norm"]), ("evaluation.csv", ["AP", "AR100"])):
        rows, expected = read_rows(tmp_path / "two" / name), read_rows(one / name)
        assert len(rows) == len(expected) > 0
        for row, other in zip(rows, expected, strict=True):
            for column in columns:
                assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-3, abs=1e-6), column
    assert float(expected[0]["AR100"]) > 0


def test_augmentation_of_a_model_that_stretches():
    preprocessing = small_yolact_config("yolact").preprocessing
    assert augmentation(QUICK, preprocessing).steps == (Stretch(96), Flip())
    several = augmentation(replace(QUICK, augment="multiscale"), preprocessing).steps
    assert several == (Crop(), Stretch(96), Flip())
    assert augmentation(replace(QUICK, augment="none"), preprocessing).steps == (Stretch(96),)
    *_, stretch, jitter = augmentation(replace(QUICK, augment="jitter"), preprocessing).steps
    assert (stretch, type(jitter), jitter.size) == (Stretch(96), LargeScaleJitter, 96)


@both_kinds
@torch.no_grad()
def test_a_model_of_some_of_its_classes(variant):
    config = small_yolact_config(variant)
    model = YOLACT(config, small_yolact_network(config))
    some = keep_classes(model, ["bird", "cat"])
    assert (some.config.categories.names, some.config.categories.ids) == (("bird", "cat"), (3, 1))
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    given, kept = model.network(images), some.network(images)
    torch.testing.assert_close(kept[1].logits, given[1].logits[..., [2, 0, 3]])
    torch.testing.assert_close(kept[2], given[2])
    old, new = (network.mask_head.segm_branch(given[0][0]) for network in (model.network, some.network))
    for place, label in enumerate((2, 0)):
        channel = some.network.semantic_channel(place)
        torch.testing.assert_close(new[:, channel], old[:, model.network.semantic_channel(label)])


@both_kinds
def test_other_classes_start_anew(variant):
    config = small_yolact_config(variant)
    model = YOLACT(config, small_yolact_network(config))
    other = replace_classifier(model, Categories(("nut", "bolt")))
    before, after = model.network.state_dict(), other.network.state_dict()
    anew = {"bbox_head.conv_cls", "mask_head.segm_branch.segm_conv"}
    for name, tensor in after.items():
        if name.rsplit(".", 1)[0] in anew:
            assert tensor.shape != before[name].shape
        else:
            assert torch.equal(tensor, before[name]), name


def test_anchors_that_a_prediction_has_kept_serve_training():
    """They may have been made in inference mode, whose tensors autograd refuses."""
    network = small_yolact_network(small_yolact_config("yolact_original"))
    images, targets = two_images()
    small = images[..., :80, :88]  # a size of its own
    for target in targets:
        target["masks"], target["boxes"] = target["masks"][:, :80, :88], target["boxes"].clamp(max=80)
    with torch.inference_mode():
        network.anchors(network.features(small), (80, 88))
    losses = network.requires_grad_(True).train()(small, targets)
    sum(losses.values()).backward()
    assert network.bbox_head.conv_reg.weight.grad.abs().sum() > 0
