"""mmdet's losses, targets and gradients on procedural weights, input and ground truth."""

import numpy as np
import pytest
import torch
from helpers.paths import DATA

from solo_infer.config import find_preset
from solo_infer.diagnostics import procedural_weights
from solo_infer.diagnostics.verify import SOLO_MODELS
from solo_infer.models import build_network
from solo_infer.models.solo.targets import assign_targets
from solo_infer.models.target import non_crowd_instances
from solo_infer.weights.key_mapping import mmdet_name

CASES = {"both": (14, 9), "second_empty": (14, 0), "both_empty": (0, 0)}
SIZES = ((320, 256), (305, 203))  # of the two images in an input of 320 x 256


def ground_truth(case, image):
    """Return ellipses and rectangles of a loss case of the reference kit, as a target of the network."""
    count, (height, width) = CASES[case][image], SIZES[image]
    u = procedural_weights.uniform(f"ground_truth/{image}", (count, 6))
    half_h, half_w = (0.5 * side * (0.04 + 0.91 * u[:, i] ** 2) for i, side in enumerate((height, width)))
    center_y, center_x = height * (0.08 + 0.84 * u[:, 2]), width * (0.08 + 0.84 * u[:, 3])
    y, x = np.arange(height)[None, :, None] + 0.5, np.arange(width)[None, None, :] + 0.5
    dy = np.abs(y - center_y[:, None, None]) / half_h[:, None, None]
    dx = np.abs(x - center_x[:, None, None]) / half_w[:, None, None]
    masks = np.where(u[:, 4, None, None] < 0.6, dy * dy + dx * dx <= 1.0, (dy <= 1.0) & (dx <= 1.0))
    boxes = np.zeros((count, 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        (rows,), (columns,) = np.nonzero(mask.any(1)), np.nonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    labels = (procedural_weights.uniform(f"ground_truth/{image}/label", (count,)) * 80).astype(np.int64)
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(labels),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
    }


def training_network(model):
    network = build_network(find_preset(model).architecture, device="meta")
    network.load_state_dict(procedural_weights.state_dict(model), assign=True)
    network.requires_grad_(True).train()
    network.backbone.freeze_stem()
    return network


@pytest.mark.parametrize("model", SOLO_MODELS)
def test_mmdets_losses_and_gradients(model):
    network = training_network(model)
    images = torch.from_numpy(
        procedural_weights.input_tensor("tensor_2x320x256", (2, 3, 320, 256), list(SIZES))
    )
    with np.load(DATA / f"losses__{model}.npz") as file:
        golden = dict(file)
    parameters = {mmdet_name(name): p for name, p in network.named_parameters()}
    assert {name for name, p in parameters.items() if not p.requires_grad} == set(golden["frozen"].tolist())
    for case in CASES:
        network.zero_grad(set_to_none=True)
        losses = network(images, [ground_truth(case, image) for image in range(2)])
        assert set(losses) == {"loss_cls", "loss_mask"}
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(float(golden[f"{case}/{name}"]), rel=1e-4, abs=1e-12)
        sum(losses.values()).backward()
        norms = {
            key.split("/")[-1]: float(golden[key]) for key in golden if key.startswith(f"{case}/grad_norm/")
        }
        assert len(norms) >= 8
        for name, norm in norms.items():
            assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-9), (
                case,
                name,
            )
        assert all(p.grad is not None for p in parameters.values() if p.requires_grad)


@pytest.mark.parametrize("model", SOLO_MODELS)
@pytest.mark.parametrize("case", CASES)
def test_mmdets_targets(model, case):
    config = find_preset(model).architecture
    with np.load(DATA / f"losses__{model}.npz") as golden:
        for image in range(2):
            instances = non_crowd_instances(ground_truth(case, image), (320, 256))
            targets = assign_targets(instances, config)
            for level, target in enumerate(targets):
                key = f"{case}/img{image}_level{level}"
                assert np.array_equal(target.labels.numpy(), golden[f"{key}_labels"].ravel())
                assert np.array_equal(target.positive.numpy(), golden[f"{key}_positive"])
                assert target.masks.shape[1:] == tuple(golden[f"{key}_mask_size"])
                bits = np.packbits(target.masks.flatten(1).numpy(), axis=1)
                assert np.array_equal(bits, golden[f"{key}_mask_bits"])
