"""Parity on this device: mmdet 3.3.0's own results on the same weights and input, beside ours.

Weights and inputs are procedural, so that nothing is downloaded; the goldens in ``solo_infer/data`` were
made by mmdet on a CPU in float32.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from solo_infer.config import PostprocessConfig, PreprocessConfig, YOLACTPostprocessConfig, find_preset
from solo_infer.diagnostics import procedural_weights
from solo_infer.inference import solo
from solo_infer.inference.preprocess import Geometry, plan, prepare
from solo_infer.models import build_network
from solo_infer.models.yolact.head import ANCHORS_PER_CELL
from solo_infer.ops import packed_masks, rle
from solo_infer.runtime.device import resolve_device, resolve_dtype
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.segmenters.solo import SOLO
from solo_infer.segmenters.yolact import YOLACT

SOLO_MODELS = ("solo_r50", "decoupled_r50", "decoupled_light_r50")
MODELS = (*SOLO_MODELS, "yolact_r50")
GEOMETRY = Geometry(original=(375, 467), resized=(250, 311), padded=(256, 320))
INPUT_KEY = "tensor_1x256x320"
EDGE_PIXELS = 5  # a mask may differ by this many pixels whatever its IoU
SAME_INSTANCE = 0.5  # IoU from which two detections are taken for one
DATA = Path(__file__).resolve().parents[1] / "assets" / "goldens"


@dataclass(frozen=True)
class Tolerances:
    """Greatest accepted differences from mmdet in float32.

    Attributes:
        pyramid: Feature pyramid values, in standard deviations of their map.
        head: Class logits, box deltas, mask coefficients and prototypes of YOLACT, in standard deviations.
        class_scores: Where both sides kept the local maximum, 0..1.
        mask_scores: 0..1.
        final_scores: Of paired detections, 0..1.
        boxes: Of paired detections of YOLACT, in pixels of the image.
        iou_loss: 1 - IoU of paired masks that differ by more than ``EDGE_PIXELS``.
        cropped_iou_loss: The same of YOLACT, whose masks end at their boxes.
        unpaired: Share of detections without a partner, 0..1.
    """

    pyramid: float
    head: float
    class_scores: float
    mask_scores: float
    final_scores: float
    boxes: float
    iou_loss: float
    cropped_iou_loss: float
    unpaired: float


# float32: four to ten times what mmdet differs from itself by threads, memory format or folded BatchNorm.
# A final score may move further than the scores it is made of when a pixel crosses the mask threshold.
# Half precision: about twice what was measured on a CPU.
TOLERANCES = {
    torch.float32: Tolerances(1e-4, 2e-4, 1e-4, 1e-4, 2e-3, 0.05, 1e-3, 1e-3, 0.0),
    torch.float16: Tolerances(0.03, 0.06, 0.03, 0.03, 0.02, 3.0, 0.2, 0.4, 0.05),
    torch.bfloat16: Tolerances(0.25, 0.6, 0.25, 0.25, 0.2, 30.0, 0.5, 0.8, 0.1),
}


@dataclass(frozen=True)
class Check:
    """One line of the report: it passes if ``found`` is at most ``limit``."""

    model: str
    quantity: str
    found: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance (NaN never is)."""
        return self.found <= self.limit


def verify(
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = torch.float32,
    models: Sequence[str] = MODELS,
) -> Iterator[Check]:
    """Compare this device with mmdet, yielding each check when it is done.

    Args:
        device: As in ``SOLO.from_pretrained``.
        dtype: What the networks compute in.
        models: Some of ``MODELS``.

    Raises:
        DeviceError: The device or dtype is not available.
        ConfigError: A model is unknown.
    """
    where, kind = resolve_device(device), resolve_dtype(dtype)
    yield check_preprocessing(where)
    for model in models:
        yield from check_model(model, where, kind)


def check_preprocessing(device: torch.device) -> Check:
    """Compare resize, normalization and padding with mmdet's, to the last bit."""
    golden = np.load(DATA / "preprocessing.npz")
    image = (procedural_weights.uniform("verify/photo", (97, 143, 3)) * 256).astype(np.uint8)
    config = PreprocessConfig()
    found = prepare(image, plan(image, config), config, device).cpu().numpy()
    equal = zlib.crc32(np.ascontiguousarray(found).tobytes()) == int(golden["crc32"])
    sampled = found[:, ::64, ::64]
    difference = (
        float(np.abs(sampled - golden["grid"]).max()) if sampled.shape == golden["grid"].shape else 1.0
    )
    # The CPU is exact to the last bit; a device may divide with another rounding.
    limit = 0.0 if device.type == "cpu" else 1e-6
    return Check("all", "network input", 0.0 if equal else max(difference, 1e-9), limit)


def check_model(model: str, device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """Compare one network, from its input to its detections."""
    golden = np.load(DATA / f"{model}.npz")
    segmenter = procedural_model(model).to(device, dtype)
    inputs = torch.from_numpy(
        procedural_weights.input_tensor(INPUT_KEY, (1, 3, *GEOMETRY.padded), [GEOMETRY.resized])
    )
    inputs = inputs.to(device, dtype).contiguous(memory_format=torch.channels_last)
    check = partial(Check, model)
    if isinstance(segmenter, YOLACT):
        yield from _check_yolact(segmenter, inputs, golden, TOLERANCES[dtype], check)
    else:
        yield from _check_solo(segmenter, inputs, golden, TOLERANCES[dtype], check)


def _check_solo(
    segmenter: SOLO,
    inputs: Tensor,
    golden: np.lib.npyio.NpzFile,
    limits: Tolerances,
    check: Callable[[str, float, float], Check],
) -> Iterator[Check]:
    thresholds = segmenter.config.thresholds
    assert isinstance(thresholds, PostprocessConfig)
    with torch.no_grad():
        network = segmenter.inference_network
        pyramid = network.neck(network.backbone(inputs))
        levels, scores = network(inputs)
        cells = torch.from_numpy(golden["mask_cells"]).to(inputs.device)
        masks = network.mask_maps(levels, cells).scores(0, cells).flatten(1).cpu()
        (found,) = segmenter._detect(levels, scores, [GEOMETRY], thresholds)
    yield check("pyramid / std", _pyramid_difference(pyramid, golden), limits.pyramid)
    yield check("class scores", _class_difference(scores[0], golden), limits.class_scores)
    expected = torch.from_numpy(golden["mask_value"])
    sampled = masks.gather(1, torch.from_numpy(golden["mask_index"]))
    yield check("mask scores", _worst(sampled - expected), limits.mask_scores)
    pairs = pair_detections(found, golden, GEOMETRY.original, limits.final_scores)
    yield check("final scores", pairs.score_difference, limits.final_scores)
    yield check("1 - mask IoU", pairs.iou_loss, limits.iou_loss)
    yield check("unpaired", pairs.unpaired, limits.unpaired)


def _check_yolact(
    segmenter: YOLACT,
    inputs: Tensor,
    golden: np.lib.npyio.NpzFile,
    limits: Tolerances,
    check: Callable[[str, float, float], Check],
) -> Iterator[Check]:
    thresholds = segmenter.config.thresholds
    assert isinstance(thresholds, YOLACTPostprocessConfig)
    with torch.no_grad():
        pyramid, found, prototypes = segmenter.inference_network(inputs)
        (detections,) = segmenter._detect(pyramid, found, prototypes, [GEOMETRY], thresholds)
    yield check("pyramid / std", _pyramid_difference(pyramid, golden), limits.pyramid)
    for quantity, values in zip(("cls", "box", "coeff"), found, strict=True):
        difference = _head_difference(values[0], quantity, pyramid, golden)
        yield check(f"{quantity} / std", difference, limits.head)
    yield check("prototypes / std", _sampled_difference(prototypes, "proto", golden), limits.head)
    pairs = pair_detections(detections, golden, GEOMETRY.original, limits.final_scores)
    yield check("final scores", pairs.score_difference, limits.final_scores)
    yield check("boxes, px", pairs.box_difference, limits.boxes)
    yield check("1 - mask IoU", pairs.iou_loss, limits.cropped_iou_loss)
    yield check("unpaired", pairs.unpaired, limits.unpaired)


def procedural_model(model: str) -> SOLO | YOLACT:
    """Return a model with procedural weights, on the CPU in float32."""
    config = find_preset(model)
    network = build_network(config.architecture, device="meta")
    network.load_state_dict(procedural_weights.state_dict(model), assign=True)
    network.requires_grad_(False)
    return build_segmenter(config, network)


def _worst(difference: Tensor) -> float:
    return float(difference.abs().max())


def _pyramid_difference(pyramid: list[Tensor], golden: np.lib.npyio.NpzFile) -> float:
    return max(_sampled_difference(feature, f"fpn{level}", golden) for level, feature in enumerate(pyramid))


def _head_difference(
    values: Tensor, quantity: str, pyramid: list[Tensor], golden: np.lib.npyio.NpzFile
) -> float:
    """Return the worst difference of what the heads say of all anchors (A, k), level by level."""
    counts = [ANCHORS_PER_CELL * feature.shape[-2] * feature.shape[-1] for feature in pyramid]
    worst = 0.0
    for level, (feature, part) in enumerate(zip(pyramid, values.split(counts), strict=True)):
        maps = part.reshape(*feature.shape[-2:], -1).permute(2, 0, 1)  # as mmdet's layers give them
        worst = max(worst, _sampled_difference(maps, f"{quantity}{level}", golden))
    return worst


def _sampled_difference(maps: Tensor, name: str, golden: np.lib.npyio.NpzFile) -> float:
    """Return the worst difference at the places that are kept of a map, in its standard deviations."""
    values = maps.float().cpu().flatten()[torch.from_numpy(golden[f"{name}_index"])]
    return _worst(values - torch.from_numpy(golden[f"{name}_value"])) / float(golden[f"{name}_std"])


def _class_difference(scores: Tensor, golden: np.lib.npyio.NpzFile) -> float:
    """Return the worst difference of the scores that both sides hold for a local maximum."""
    values = scores.cpu().flatten()[torch.from_numpy(golden["class_index"])]
    return _worst((values - torch.from_numpy(golden["class_value"]))[values > 0])


@dataclass(frozen=True)
class Pairs:
    """How two lists of detections of one image agree.

    Attributes:
        score_difference: Greatest over the pairs.
        box_difference: Greatest over the pairs, in pixels; 0 of a golden without boxes.
        iou_loss: Greatest 1 - IoU over the pairs whose masks differ by more than ``EDGE_PIXELS``.
        unpaired: Detections of either side without a partner over all, not counting those that a
            rounding error may add or drop at the end of the list.
    """

    score_difference: float
    box_difference: float
    iou_loss: float
    unpaired: float


def pair_detections(
    found: solo.Detections,
    golden: np.lib.npyio.NpzFile,
    size: tuple[int, int],
    tolerance: float,
) -> Pairs:
    """Pair each golden detection with the free one of its label and a near score that overlaps best."""
    scores, labels = found.scores.cpu().numpy(), found.labels.cpu().numpy()
    masks = packed_masks.unpack(found.packed_masks.cpu(), size[1]).numpy()
    true_scores, true_labels = golden["scores"], golden["labels"]
    free = np.ones(len(scores), bool)
    lost = np.ones(len(true_scores), bool)
    worst_score = worst_box = worst_loss = 0.0
    for rank, true_mask in enumerate(golden_masks(golden, size)):
        near = np.abs(scores - true_scores[rank]) <= tolerance
        options = np.flatnonzero(free & near & (labels == true_labels[rank]))
        if len(options) == 0:
            continue
        common = (masks[options] & true_mask).sum(axis=(1, 2))
        union = (masks[options] | true_mask).sum(axis=(1, 2))
        ious = np.where(union > 0, common / np.maximum(union, 1), 1.0)
        best = int(ious.argmax())
        if ious[best] < SAME_INSTANCE:
            continue
        free[options[best]] = lost[rank] = False
        worst_score = max(worst_score, float(np.abs(scores[options[best]] - true_scores[rank])))
        if "boxes" in golden:
            apart = found.boxes[options[best]].cpu().numpy() - golden["boxes"][rank]
            worst_box = max(worst_box, float(np.abs(apart).max()))
        if union[best] - common[best] > EDGE_PIXELS:
            worst_loss = max(worst_loss, 1.0 - float(ious[best]))
    end = float(true_scores[-1]) + tolerance
    unpaired = int((lost & (true_scores > end)).sum() + (free & (scores > end)).sum())
    return Pairs(worst_score, worst_box, worst_loss, unpaired / max(len(true_scores) + len(scores), 1))


def golden_masks(golden: np.lib.npyio.NpzFile, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the golden masks (H, W), bool."""
    text, ends = golden["rle_counts"].tobytes(), golden["rle_offsets"]
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        yield rle.decode({"size": list(size), "counts": text[start:end].decode("ascii")})
