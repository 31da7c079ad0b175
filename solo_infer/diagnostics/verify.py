"""Numerical parity with mmdet 3.3.0 on this device.

Weights and inputs are procedural, so nothing is downloaded. The goldens in ``solo_infer/assets/goldens`` are
mmdet's outputs for the same weights and inputs, computed on a CPU in float32.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from solo_infer.config import PreprocessConfig, find_preset
from solo_infer.config.families import family_of
from solo_infer.diagnostics import procedural_weights
from solo_infer.diagnostics.parity import Check, Tolerances
from solo_infer.inference.preprocess import Geometry, plan, prepare
from solo_infer.models import build_network
from solo_infer.runtime.device import full_float32, resolve_device
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.segmenters.auto_dtype import resolve_network_dtype
from solo_infer.segmenters.base import Segmenter

__all__ = ["MODELS", "TOLERANCES", "Check", "Tolerances", "procedural_model", "verify"]

SOLO_MODELS = ("solo_r50", "decoupled_r50", "decoupled_light_r50")
SOLOV2_MODELS = ("solov2_r50", "solov2_light_r18", "solov2_light_r50_dcn")
MODELS = (*SOLO_MODELS, *SOLOV2_MODELS, "yolact_r50")
GEOMETRY = Geometry(original=(375, 467), resized=(250, 311), padded=(256, 320))
INPUT_KEY = "tensor_1x256x320"
GOLDENS = Path(__file__).resolve().parents[1] / "assets" / "goldens"

# float32: four to ten times the difference of mmdet from itself between thread counts, memory formats or
# folded BatchNorm. A final score may differ more than the scores it is computed from when a pixel crosses the
# mask threshold. Half precision: about twice the differences measured on a CPU.
TOLERANCES = {
    torch.float32: Tolerances(
        pyramid=1e-4,
        head=2e-4,
        class_scores=1e-4,
        mask_scores=1e-4,
        final_scores=2e-3,
        boxes=0.05,
        iou_loss=1e-3,
        cropped_iou_loss=1e-3,
        unpaired=0.0,
    ),
    torch.float16: Tolerances(
        pyramid=0.03,
        head=0.06,
        class_scores=0.03,
        mask_scores=0.03,
        final_scores=0.02,
        boxes=3.0,
        iou_loss=0.2,
        cropped_iou_loss=0.4,
        unpaired=0.05,
    ),
    torch.bfloat16: Tolerances(
        pyramid=0.25,
        head=0.6,
        class_scores=0.25,
        mask_scores=0.25,
        final_scores=0.2,
        boxes=30.0,
        iou_loss=0.5,
        cropped_iou_loss=0.8,
        unpaired=0.1,
    ),
}


def verify(
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = torch.float32,
    models: Sequence[str] = MODELS,
) -> Iterator[Check]:
    """Compare this device with mmdet, and yield the checks of each model as soon as they are done.

    float32 is full float32: TF32, which PyTorch allows in convolutions on CUDA, is off.

    Args:
        device: Device, as in ``SOLO.from_pretrained``.
        dtype: Dtype of the networks; see ``Segmenter.from_pretrained``.
        models: Names out of ``MODELS``.

    Raises:
        DeviceError: The device or dtype is not available.
        ConfigError: A model is unknown.
    """
    target_device = resolve_device(device)
    network_dtype = resolve_network_dtype(dtype, target_device)
    yield check_preprocessing(target_device)
    for model in models:
        with full_float32():
            checks = list(check_model(model, target_device, network_dtype))
        yield from checks


def check_preprocessing(device: torch.device) -> Check:
    """Compare resizing, normalization and padding with mmdet, bit by bit."""
    golden = np.load(GOLDENS / "preprocessing.npz")
    image = (procedural_weights.uniform("verify/photo", (97, 143, 3)) * 256).astype(np.uint8)
    config = PreprocessConfig()
    network_input = prepare([image], [plan(image, config)], config, device)[0].cpu().numpy()
    is_equal = zlib.crc32(np.ascontiguousarray(network_input).tobytes()) == int(golden["crc32"])
    samples = network_input[:, ::64, ::64]
    difference = (
        float(np.abs(samples - golden["grid"]).max()) if samples.shape == golden["grid"].shape else 1.0
    )
    # The CPU gives the same bits; other devices may round divisions differently.
    limit = 0.0 if device.type == "cpu" else 1e-6
    return Check("all", "network input", 0.0 if is_equal else max(difference, 1e-9), limit)


def check_model(model: str, device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """Compare one model with mmdet, from its network input to its detections.

    Args:
        model: Name out of ``MODELS``.
        device: Device of the network.
        dtype: Dtype of the network.
    """
    segmenter = procedural_model(model).to(device, dtype)
    inputs = torch.from_numpy(
        procedural_weights.input_tensor(INPUT_KEY, (1, 3, *GEOMETRY.padded), [GEOMETRY.resized])
    )
    inputs = inputs.to(device, dtype).contiguous(memory_format=torch.channels_last)
    check_parity = family_of(segmenter.config.architecture).load("parity")
    with np.load(GOLDENS / f"{model}.npz") as golden:
        for check in check_parity(segmenter, inputs, GEOMETRY, golden, TOLERANCES[dtype]):
            yield replace(check, model=model)


def procedural_model(model: str) -> Segmenter:
    """Return a model with procedural weights, on the CPU in float32.

    Args:
        model: Name of a preset that ``procedural_weights.CALIBRATION`` has.
    """
    config = find_preset(model)
    network = build_network(config.architecture, device="meta")
    network.load_state_dict(procedural_weights.state_dict(model), assign=True)
    network.requires_grad_(False)
    return build_segmenter(config, network)
