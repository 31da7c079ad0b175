"""``torch.export`` of the networks."""

import inspect
from dataclasses import replace

import pytest
import torch
from helpers.models import small_config

from solo_infer import SOLO
from solo_infer.models import build_network


def logits_of(output):
    """Return all tensors of a ``HeadOutput``."""
    return [*output.class_logits, *(logits for maps in output.mask_logits for logits in maps)]


@torch.no_grad()
@pytest.mark.skipif(
    "strict" not in inspect.signature(torch.export.export).parameters,
    reason="the first torch.export could not trace zip(strict=True)",
)
@pytest.mark.parametrize("attribute", ["network", "inference_network"])
def test_torch_export_equals_the_plain_network(attribute):
    """Export also the optimized network, and run it afterwards."""
    config = small_config("decoupled")
    wide = replace(config.architecture, pyramid_channels=256, stacked_convs=1)
    model = SOLO(replace(config, architecture=wide), build_network(wide))
    model.network.init_weights()
    network = getattr(model, attribute)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    exported = torch.export.export(network, (images,), strict=False).module()
    levels, expected_levels = network.features(images), model.network.features(images)
    expected = logits_of(model.network(images))
    assert len(expected) == 15
    pairs = [*zip(logits_of(exported(images)), expected, strict=True)]
    pairs += zip(logits_of(network(images)), expected, strict=True)
    pairs += zip(levels, expected_levels, strict=True)
    for output, expected_output in pairs:
        tolerance = 1e-4 * float(expected_output.abs().max())
        torch.testing.assert_close(output, expected_output, rtol=1e-4, atol=tolerance)
