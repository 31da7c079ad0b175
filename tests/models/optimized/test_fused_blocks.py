"""ResNet blocks with fused additions and ReLUs equal torchvision's blocks."""

import pytest
import torch
from helpers.models import randomize, small_config
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from solo_infer.models import build_network
from solo_infer.models.layers.deform_conv import DeformableConv
from solo_infer.models.optimized import fused_operators
from solo_infer.models.optimized.fused_blocks import FusedBlock
from solo_infer.models.optimized.fused_operators import operators_work
from solo_infer.models.optimized.optimize import fold_batch_norm, optimize_for_inference
from solo_infer.models.optimized.winograd_conv import WinogradConv2d
from solo_infer.runtime.device import full_float32, is_nvidia_card

CPU = torch.device("cpu")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]
DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(1, 1), (2, 3), (7, 9), (16, 24)]


def small_backbone():
    return build_network(small_config("solo").architecture).backbone.eval().requires_grad_(False)


def random_block(block_type):
    torch.manual_seed(2)
    if block_type == "projected":
        downsample = nn.Sequential(nn.Conv2d(32, 64, 1, stride=2, bias=False), nn.BatchNorm2d(64))
        block = Bottleneck(32, 16, stride=2, downsample=downsample)
    elif block_type == "basic":
        block = BasicBlock(32, 32)
    elif block_type == "basic wide":
        block = BasicBlock(256, 256)
    else:
        block = Bottleneck(64, 16)
    if block_type == "deformable":
        block.conv2 = DeformableConv(16, 16)
    block = fold_batch_norm(randomize(block.eval().requires_grad_(False)))
    if block_type == "basic wide":
        block.conv1, block.conv2 = WinogradConv2d(block.conv1), WinogradConv2d(block.conv2)
    return block


@pytest.mark.parametrize("block_type", ["identity", "projected", "deformable", "basic", "basic wide"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_fused_block_equals_the_plain_block(device, dtype, block_type):
    if not operators_work(torch.device(device), dtype):
        pytest.skip(f"no fused convolutions in {dtype} on this processor or card")
    block = random_block(block_type).to(device, dtype)
    fused = FusedBlock(block)
    for size in SIZES:
        x = random_maps((block.conv1.weight.shape[1], *size), count=2, dtype=dtype).relu().to(device)
        with full_float32():
            expected = block(x.clone())
            for layout in (torch.contiguous_format, torch.channels_last):
                out = fused(x.clone(memory_format=layout))  # the block may overwrite its input
                assert_close_outputs(out, expected, 1e-5 if dtype == torch.float32 else 0.03)


@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cards_fuse_unless_cudnn_is_off(dtype, monkeypatch):
    """Speed would silently be missing if they did not."""
    assert operators_work(torch.device("cuda"), dtype) == is_nvidia_card()
    block = random_block("identity").to("cuda", dtype)
    x = random_maps((64, 8, 8), dtype=dtype).relu().to("cuda")
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    with torch.no_grad():
        assert torch.equal(FusedBlock(block)(x.clone()), block(x.clone()))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_backbone_with_fused_blocks(dtype):
    """Holds with and without oneDNN's fused operators. The input of the backbone is not changed."""
    backbone = small_backbone().to(dtype)
    images = random_maps((3, 64, 96), dtype=dtype)
    before = images.clone()
    optimized = optimize_for_inference(backbone)
    expected_type = FusedBlock if operators_work(CPU, dtype) else Bottleneck
    assert {type(module) for module in optimized.layer1} == {expected_type}
    for _ in range(2):
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        assert_close_outputs(optimized(images), backbone(images), tolerance)
    assert torch.equal(images, before)


def test_blocks_are_not_fused_without_the_operators(monkeypatch):
    def missing(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise_'")

    monkeypatch.setattr(fused_operators, "add_convolution_relu", missing)
    fused_operators._give_expected_results.cache_clear()
    try:
        assert not operators_work(CPU, torch.float32)
        optimized = optimize_for_inference(small_backbone())
        assert not any(isinstance(module, FusedBlock) for module in optimized.modules())
    finally:
        fused_operators._give_expected_results.cache_clear()


def test_blocks_are_not_fused_if_the_operators_give_other_results(monkeypatch):
    monkeypatch.setattr(fused_operators, "convolution_relu", lambda conv, x: conv(x))  # without the ReLU
    fused_operators._give_expected_results.cache_clear()
    try:
        assert not operators_work(CPU, torch.float32)
    finally:
        fused_operators._give_expected_results.cache_clear()


@torch.no_grad()
def test_separate_operations_after_cudnn_has_failed(monkeypatch, caplog):
    """As on a card whose cuDNN lacks the operation: here it fails because the tensors are on the CPU."""
    monkeypatch.setattr(fused_operators, "_cudnn_failures", {})
    conv = random_block("identity").conv1
    x, other = random_maps((64, 8, 8)), random_maps((16, 8, 8), seed=2)
    for _ in range(2):
        assert torch.equal(fused_operators._on_card(conv, x, None), conv(x).relu())
        assert torch.equal(fused_operators._on_card(conv, x, other), (conv(x) + other).relu())
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "cuDNN cannot apply a ReLU" in record.getMessage()


def test_fused_blocks_are_differentiable():
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    backbone = small_backbone()
    gradients = []
    for candidate in (optimize_for_inference(backbone), backbone):
        images.grad = None
        candidate(images)[-1].sum().backward()
        gradients.append(images.grad)
    assert gradients[0].abs().sum() > 0
    assert_close_outputs(*gradients, 1e-3)
