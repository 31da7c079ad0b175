"""Checkpoints of SOLO variants: biases, another extra level, deformable convolutions."""

from dataclasses import replace

import pytest
import torch
from helpers.checkpoint_files import check_same_model, in_authors_names, in_mmdet_names, narrow_backbones
from helpers.models import CONVOLVED, HEADS, SOLO_VARIANTS, randomize, small_config, small_network, variant_of

from solo_infer import SOLO
from solo_infer.config import PRESETS, SOLOConfig
from solo_infer.config.presets import config_from_preset
from solo_infer.config.solo import solo_preset
from solo_infer.models import build_network
from solo_infer.weights.infer_config import infer_config
from solo_infer.weights.named_tensors import NamedTensors


@pytest.mark.parametrize("variant", SOLO_VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_variants_are_recognized_from_their_tensors(head, variant):
    expected = variant_of(config_from_preset(solo_preset(head)), SOLO_VARIANTS[variant])
    state_dict = build_network(expected.architecture, device="meta").state_dict()
    assert infer_config(NamedTensors(state_dict)).architecture == expected.architecture
    reversed_order = NamedTensors(dict(reversed(state_dict.items())))
    assert infer_config(reversed_order).architecture == expected.architecture


@pytest.mark.parametrize("variant", SOLO_VARIANTS)
def test_files_of_variants_load_without_a_configuration(variant, tmp_path):
    with narrow_backbones():
        config = variant_of(small_config("decoupled_light"), SOLO_VARIANTS[variant])
        model = SOLO(config, randomize(small_network(config)))
        for rename in (dict, in_mmdet_names, in_authors_names):
            file = tmp_path / "model.pth"
            names = config.categories.names
            torch.save({"meta": {"CLASSES": names}, "state_dict": rename(model.network.state_dict())}, file)
            loaded = SOLO.from_pretrained(file, device="cpu")
            assert loaded.config.architecture == replace(
                config.architecture, scale_ranges=PRESETS["decoupled_light_r50"].architecture.scale_ranges
            )
            weights, expected = loaded.network.state_dict(), model.network.state_dict()
            assert all(torch.equal(weights[name], expected[name]) for name in expected)
        folder = model.save_pretrained(tmp_path / "saved")
        check_same_model(SOLO.from_pretrained(folder, device="cpu"), model)


def test_tensors_of_variants_have_mmdets_names():
    """The authors' light DCN file: ``bbox_head`` with ``use_dcn_in_tower``, ``stage_with_dcn`` 2 to 4."""
    light = build_network(PRESETS["decoupled_light_dcn_r50"].architecture, device="meta").state_dict()
    names = in_authors_names(light)
    offsets = {name: tuple(tensor.shape) for name, tensor in names.items() if "offset.weight" in name}
    assert {name: shape for name, shape in offsets.items() if "bbox" in name} == {
        "bbox_head.ins_convs.3.conv.conv_offset.weight": (18, 256, 3, 3),
        "bbox_head.cate_convs.3.conv.conv_offset.weight": (18, 256, 3, 3),
    }
    assert sum("backbone" in name for name in offsets) == 4 + 6 + 3
    assert offsets["backbone.layer2.0.conv2.conv_offset.weight"] == (18, 128, 3, 3)
    convolved = build_network(SOLOConfig(head="solo", **CONVOLVED), device="meta").state_dict()
    assert in_mmdet_names(convolved)["neck.fpn_convs.4.conv.weight"].shape == (256, 256, 3, 3)
    assert in_mmdet_names(convolved)["mask_head.mask_convs.0.conv.bias"].shape == (256,)
