"""Networks of all families: their sizes, their heads, and what they import."""

import ast
from pathlib import Path

import pytest
import torch
from helpers.models import (
    HEADS,
    YOLACT_VARIANTS,
    small_config,
    small_network,
    small_yolact_config,
    small_yolact_network,
)
from helpers.nested_tensors import flatten_tensors, random_maps
from torch import nn

import solo_infer.models
from solo_infer.config import PRESETS
from solo_infer.models import build_network
from solo_infer.models.base import SegmentationNetwork
from solo_infer.models.solo.head import HeadOutput
from solo_infer.models.solo.solov2_head import SOLOv2Output
from solo_infer.models.yolact.head import Predictions, YOLACTOutput

PARAMETERS = {
    "solo_r50": 36_301_232,
    "decoupled_r50": 40_028_560,
    "decoupled_light_r50": 32_354_192,
    "solov2_r50": 46_592_912,
    "solov2_r101": 65_585_040,
    "solov2_r101_dcn": 68_729_118,
    "solov2_x101_dcn": 113_420_574,
    "solov2_light_r18": 18_271_760,
    "solov2_light_r34": 28_379_920,
    "solov2_light_r50": 31_340_560,
    "solov2_light_r50_dcn": 33_516_965,
    "solov2_light_512_dcn_r50": 33_185_054,
    "yolact_r50": 35_293_711,
    "yolact_r101": 54_285_839,
    "yolact_original_r50": 31_164_943,
    "yolact_original_r101": 50_157_071,
    "yolact_original_r101_700": 50_157_071,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_mmdets_parameter_counts(name):
    network = build_network(PRESETS[name].architecture, device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


def test_resnet101_adds_the_blocks_of_its_third_stage():
    shallow = build_network(PRESETS["solo_r50"].architecture, device="meta").state_dict()
    deep = build_network(PRESETS["solo_r101"].architecture, device="meta").state_dict()
    extra = {name.split(".")[2] for name in set(deep) - set(shallow)}
    assert extra == {str(block) for block in range(6, 23)}
    assert set(shallow) < set(deep)


@pytest.mark.parametrize("name", PRESETS)
def test_networks_are_built_in_eval_mode(name):
    network = build_network(PRESETS[name].architecture, device="meta")
    assert isinstance(network, SegmentationNetwork) and not network.training
    assert network.config == PRESETS[name].architecture
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_solo_heads_are_modules(head):
    network = small_network(small_config(head))
    images = random_maps((3, 64, 96), count=2)
    output = network(images)
    output_type = SOLOv2Output if head == "solov2" else HeadOutput
    assert isinstance(output, output_type)
    assert isinstance(network.mask_head, nn.Module)
    head_output, from_hook = call_with_hook(network.mask_head, network.features(images))
    assert from_hook is head_output and isinstance(head_output, output_type)
    outputs = flatten_tensors(output), flatten_tensors(head_output)
    assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    assert [tuple(logits.shape) for logits in output.class_logits] == [
        (2, 3, grid, grid) for grid in (10, 8, 6, 4, 3)
    ]
    if head == "solov2":
        assert [kernels.shape for kernels in output.kernels] == [(2, 32, g, g) for g in (10, 8, 6, 4, 3)]
        assert output.mask_features.shape == (2, 32, 16, 24)
        return
    assert len(output.mask_logits) == (1 if head == "solo" else 2)
    for maps in output.mask_logits:
        sizes = [(16, 24), (16, 24), (8, 12), (4, 6), (4, 6)]
        channels = [grid**2 if head == "solo" else grid for grid in (10, 8, 6, 4, 3)]
        assert [tuple(logits.shape) for logits in maps] == [
            (2, count, *size) for count, size in zip(channels, sizes, strict=True)
        ]


@pytest.mark.parametrize("variant", YOLACT_VARIANTS)
@torch.no_grad()
def test_yolact_heads_are_modules(variant):
    network = small_yolact_network(small_yolact_config(variant))
    images = random_maps((3, 96, 96), count=2)
    output, levels = network(images), network.features(images)
    assert isinstance(output, YOLACTOutput)
    predictions, from_hook = call_with_hook(network.bbox_head, levels)
    assert from_hook is predictions and isinstance(predictions, Predictions)
    prototypes, from_hook = call_with_hook(network.mask_head, levels[0])
    assert from_hook is prototypes
    semantic, from_hook = call_with_hook(network.mask_head.segm_branch, levels[0])
    assert from_hook is semantic and semantic.shape == (2, 3, *levels[0].shape[-2:])
    outputs = flatten_tensors(output[:2]), flatten_tensors([predictions, prototypes])
    assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    assert output.sizes == tuple(tuple(level.shape[-2:]) for level in levels)


def call_with_hook(module, *inputs):
    """Return the output of a module, and the output that its forward hook receives."""
    outputs = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    output = module(*inputs)
    handle.remove()
    return output, *outputs


def test_every_submodule_of_a_plain_network_is_run(small_models, small_yolacts):
    """Forward hooks, layer tables and exporters see every layer with parameters."""
    for model in (*small_models.values(), *small_yolacts.values()):
        skipped = layers_not_run(model.network, torch.zeros(1, 3, 96, 96))
        assert skipped <= {"mask_head.segm_branch.segm_conv"}  # of YOLACT, for training only


def layers_not_run(network, images):
    """Return the names of the layers with parameters whose forward a network does not call."""
    layers = {name: module for name, module in network.named_modules() if list(module.parameters(False))}
    called = set()
    handles = [
        module.register_forward_hook(lambda _module, _inputs, _output, name=name: called.add(name))
        for name, module in layers.items()
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return set(layers) - called


def test_plain_networks_do_not_import_optimized_modules():
    folder = Path(solo_infer.models.__file__).parent
    files = [path for path in folder.rglob("*.py") if "optimized" not in path.relative_to(folder).parts]
    assert len(files) > 15
    for path in files:
        imported = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
        assert not [name for name in imported if "optimized" in name], path


def imported_modules(tree):
    """Return the names of the modules, and of the members of modules, that a file imports."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names
