"""Variants of the published SOLO networks: biases, another extra level, deformable convolutions."""

from dataclasses import replace

import pytest
import torch
from helpers.dense_outputs import dense_class_scores, dense_mask_scores
from helpers.models import (
    CONVOLVED,
    DEFORMABLE,
    SOLO_VARIANTS,
    randomize,
    small_config,
    small_network,
    variant_of,
)
from helpers.reference_postprocess import detect

from solo_infer import SOLO
from solo_infer.config import SOLOConfig
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.models import build_network
from solo_infer.models.optimized.optimize import optimize_for_inference


def test_number_of_parameters_with_biases_and_an_extra_convolution():
    network = build_network(SOLOConfig(head="solo", num_classes=79, **CONVOLVED), device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == 36_892_591


@pytest.mark.parametrize("extra_level", ["max_pool", "conv"])
def test_shapes_of_an_unpadded_input(extra_level):
    """An image 800 pixels wide and 1333 high, which is not a multiple of 32."""
    is_pooled = extra_level == "max_pool"
    config = SOLOConfig(head="solo", num_classes=79, head_bias=not is_pooled, extra_level=extra_level)
    network = build_network(config, device="meta")
    images = torch.empty(1, 3, 1333, 800, device="meta")
    branch_shapes = []
    network.mask_head.mask_convs.register_forward_hook(
        lambda _module, _inputs, maps: branch_shapes.extend(tuple(x.shape) for x in maps)
    )
    assert [tuple(maps.shape[1:]) for maps in network.backbone(images)] == [
        (256, 334, 200),
        (512, 167, 100),
        (1024, 84, 50),
        (2048, 42, 25),
    ]
    sizes = [(167, 100), (167, 100), (84, 50), (42, 25), (42, 25)]
    assert [tuple(level.shape[1:]) for level in network.features(images)] == [(256, *size) for size in sizes]
    output = network(images)
    assert branch_shapes == [(1, 256, *size) for size in sizes]
    (mask_logits,) = output.mask_logits
    assert [tuple(maps.shape[1:]) for maps in mask_logits] == [
        (1600, 334, 200),
        (1296, 334, 200),
        (576, 168, 100),
        (256, 84, 50),
        (144, 84, 50),
    ]
    assert [tuple(maps.shape[1:]) for maps in output.class_logits] == [
        (79, grid, grid) for grid in (40, 36, 24, 16, 12)
    ]
    optimized = optimize_for_inference(network)
    assert [level.shape for level in optimized.features(images)] == [
        level.shape for level in network.features(images)
    ]


@pytest.mark.parametrize("variant", ["bias", "all"])
def test_predictions_on_unpadded_images_equal_the_reference(variant, photo):
    config = variant_of(small_config("decoupled"), SOLO_VARIANTS[variant])
    preprocessing = replace(config.preprocessing, short_side=94, long_side=157, size_divisor=1)
    model = SOLO(replace(config, preprocessing=preprocessing), randomize(small_network(config)))
    geometry = plan(photo, preprocessing)
    assert geometry.padded == geometry.resized and geometry.resized[1] % 4
    inputs = prepare([photo], [geometry], preprocessing, torch.device("cpu"))
    with torch.no_grad():
        output = model.network(inputs)
    strides = model.network.mask_head.cells.stride
    class_scores, masks = dense_class_scores(output)[0], dense_mask_scores(output)[0]
    scores, labels, masks = detect(class_scores, masks, strides, geometry, config.thresholds)
    result = model(photo)
    assert result.labels.tolist() == labels.tolist() and len(result) > 5
    torch.testing.assert_close(result.scores, scores, rtol=0, atol=2e-3)
    limit = 0.002 * photo[..., 0].size
    for index, mask in enumerate(masks):
        ties = (result.scores - scores[index]).abs() < 2e-3  # may change places
        assert (result.masks[ties] != mask).flatten(1).sum(1).min() < limit


def test_deformable_network_in_bfloat16_predicts(photo):
    config = variant_of(small_config("decoupled_light"), DEFORMABLE)
    model = SOLO(config, randomize(small_network(config)))
    assert len(model(photo)) > 0
    assert model.to(dtype="bfloat16")(photo).masks.dtype == torch.bool
