"""Table of layers: shapes, parameters and multiply-adds, compared with published numbers."""

import pytest
import torch
from helpers.models import HEADS, small_config
from torch import nn
from torchvision import models

from solo_infer.diagnostics.layer_table import tabulate
from solo_infer.models import build_network
from solo_infer.models.layers.deform_conv import DeformableConv


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1, bias=False)])


class Outer(nn.Module):
    """Network that never calls ``inner`` itself and calls ``norm`` twice."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.norm = nn.GroupNorm(2, 4)
        self.free = nn.Parameter(torch.zeros(5), requires_grad=False)

    def forward(self, images):
        x = self.norm(self.inner.convs[1](self.inner.convs[0](images)))
        return {"maps": self.norm(x), "product": x.flatten(2) @ x.flatten(2).transpose(1, 2)}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_all_values_of_a_small_network(device):
    table = tabulate(Outer().to(device), (10, 14))
    first, second = 3 * 8 * 9 * 5 * 7, 8 * 4 * 5 * 7
    assert [(row.name, row.label, row.depth, row.shapes) for row in table.layers] == [
        ("inner", "inner", 1, []),
        ("inner.convs.0", "convs.0", 2, [(1, 8, 5, 7)]),
        ("inner.convs.1", "convs.1", 2, [(1, 4, 5, 7)]),
        ("norm", "norm", 1, [(1, 4, 5, 7)]),
        ("norm", "norm", 1, [(1, 4, 5, 7)]),
    ]
    assert [row.parameters for row in table.layers] == [224 + 32, 224, 32, 8, 8]
    assert [row.shared for row in table.layers] == [False, False, False, False, True]
    assert [row.multiply_adds for row in table.layers] == [first + second, first, second, 0, 0]
    assert table.multiply_adds == first + second + 4 * 4 * 35
    assert (table.parameters, table.trainable) == (269, 264)
    assert table.input_mb == pytest.approx(3 * 10 * 14 * 4e-6)
    assert table.parameters_mb == pytest.approx(269 * 4e-6)
    assert table.forward_backward_mb == pytest.approx(2 * 35 * (8 + 4 + 4 + 4) * 4e-6)


def test_hooks_are_removed_even_after_an_error():
    network = Outer()
    tabulate(network, (8, 8))
    with pytest.raises(RuntimeError):
        tabulate(network, (8, 8), lambda images: network.inner.convs[1](images))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "mobilenet_v2", "efficientnet_b0"])
def test_multiply_adds_of_classifiers_equal_torchvision(name):
    """Published in G at 224 x 224."""
    published = models.get_model_weights(name).DEFAULT.meta["_ops"]
    with torch.device("meta"):
        network = models.get_model(name, weights=None).eval()
    assert tabulate(network, (224, 224)).multiply_adds / 1e9 == pytest.approx(published, abs=6e-3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_deformable_convolutions_and_their_offsets_are_counted(device):
    table = tabulate(nn.Sequential(DeformableConv(3, 16, stride=2)).to(device), (20, 30))
    deformable, offsets = table.layers
    assert offsets.multiply_adds == 3 * 18 * 9 * 10 * 15
    assert deformable.multiply_adds == table.multiply_adds == offsets.multiply_adds + 3 * 16 * 9 * 10 * 15
    assert table.forward_backward_mb == pytest.approx(2 * 4e-6 * 150 * (16 + 18))


@pytest.mark.parametrize("head", HEADS)
def test_all_layers_are_listed_and_add_up(head):
    network = build_network(small_config(head).architecture, device="meta")
    table = tabulate(network, (65, 97))
    called = {row.name for row in table.layers}
    with_parameters = {
        name
        for name, module in network.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    assert with_parameters <= called
    top = [row for row in table.layers if row.depth == 1]
    assert [row.label for row in top] == ["backbone", "neck", "mask_head"]
    assert sum(row.parameters for row in top) == table.parameters
    assert sum(row.multiply_adds for row in top) == table.multiply_adds
    text = table.format(3).splitlines()
    assert len({len(line.rstrip()) for line in text if "├─" in line}) == 1  # numbers end in one column
    assert table.format(0).splitlines()[0] == "Input: [1, 3, 65, 97]"
