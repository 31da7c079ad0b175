"""mmdet's losses, targets and gradients on procedural weights, input and ground truth."""

import numpy as np
import pytest
import torch
from helpers.golden_io import ALL_GOLDENS
from helpers.loss_cases import CASES, SIZES, ground_truth
from helpers.paths import DATA

from solo_infer.config import find_preset
from solo_infer.diagnostics import procedural_weights
from solo_infer.models import build_network
from solo_infer.models.solo.targets import assign_targets
from solo_infer.models.target import non_crowd_instances
from solo_infer.weights.key_mapping import mmdet_name

MODELS = ("solo_r50", "decoupled_r50", "decoupled_light_r50", "solov2_light_r18", "solov2_r50")
# Backward passes of the other networks take many seconds; their heads have the same losses and layers.
LIGHT = ("decoupled_light_r50", "solov2_light_r18")
GRADIENTS = MODELS if ALL_GOLDENS else LIGHT


def training_network(model):
    network = build_network(find_preset(model).architecture, device="meta")
    network.load_state_dict(procedural_weights.state_dict(model), assign=True)
    network.requires_grad_(True).train()
    network.backbone.freeze_stem()
    return network


@pytest.mark.parametrize("model", MODELS)
def test_mmdets_losses_and_gradients(model):
    network = training_network(model)
    images = torch.from_numpy(
        procedural_weights.input_tensor("tensor_2x320x256", (2, 3, 320, 256), list(SIZES))
    )
    with np.load(DATA / f"losses__{model}.npz") as file:
        golden = dict(file)
    parameters = {mmdet_name(name): p for name, p in network.named_parameters()}
    assert {name for name, p in parameters.items() if not p.requires_grad} == set(golden["frozen"].tolist())
    for case in CASES if model in LIGHT else ["both"]:
        network.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(model in GRADIENTS):
            losses = network(images, [ground_truth(case, image) for image in range(2)])
        assert set(losses) == {"loss_cls", "loss_mask"}
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(float(golden[f"{case}/{name}"]), rel=1e-4, abs=1e-12)
        if model in GRADIENTS:
            sum(losses.values()).backward()
            assert_gradients(golden, case, parameters)


def assert_gradients(golden, case, parameters):
    norms = {key.split("/")[-1]: float(golden[key]) for key in golden if key.startswith(f"{case}/grad_norm/")}
    assert len(norms) >= 8
    for name, norm in norms.items():
        norm = 0.0 if np.isnan(norm) else norm  # mmdet gives no gradient, which DDP would wait for
        assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-9), (case, name)
    assert all(p.grad is not None for p in parameters.values() if p.requires_grad)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_mmdets_targets(model, case):
    config = find_preset(model).architecture
    with np.load(DATA / f"losses__{model}.npz") as golden:
        for image in range(2):
            instances = non_crowd_instances(ground_truth(case, image), (320, 256))
            assigned = assign_targets(instances, config)
            for level, target in enumerate(assigned):
                key = f"{case}/img{image}_level{level}"
                assert np.array_equal(target.labels.numpy(), golden[f"{key}_labels"].ravel())
                assert np.array_equal(target.positive.numpy(), golden[f"{key}_positive"])
                assert target.masks.shape[1:] == tuple(golden[f"{key}_mask_size"])
                bits = np.packbits(target.masks.flatten(1).numpy(), axis=1)
                assert np.array_equal(bits, golden[f"{key}_mask_bits"])
