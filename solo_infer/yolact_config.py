"""YOLACT as settings: two kinds of networks, their thresholds, their published presets.

OpenMMLab's are those of mmdet 3.3.0 (``configs/yolact``), the author's those of his ``data/config.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from solo_infer._checks import fix_tuple, is_finite, require, require_parts, require_whole

YOLACT, AUTHORS_YOLACT = "yolact", "yolact_author"
YOLACT_HEADS = (YOLACT, AUTHORS_YOLACT)
YOLACT_BACKBONES = ("resnet50", "resnet101")
LEVELS = 5  # of the feature pyramid, P3 to P7
ALL_ANCHORS = 1 << 20  # more than any network input has on a level
_ANCHORS = (24, 48, 96, 192, 384)
_AUTHORS_SIDE = 550  # pixels: the input that the author's anchor sizes are given for


@dataclass(frozen=True)
class YolactArchitecture:
    """The shape of a YOLACT network.

    Attributes:
        head: "yolact" (OpenMMLab's: anchors of three ratios and equal area at fixed strides, levels P6 and P7
            from C5) or "yolact_author" (the author's: square anchors of three areas in the middle of the
            cells, which he keeps as "a bug where I made everything square by accident", ReLU after P3..P5,
            levels P6 and P7 from P5).
        backbone: "resnet50" or "resnet101".
        num_classes: Number of object classes, without the background.
        anchor_sizes: Side of the middle anchor of each level in pixels of the network input, finest first.
        strides: Of the anchors of "yolact" in pixels, one for each level.
        num_protos: Prototype masks, and mask coefficients of an anchor.
        pyramid_channels: Width of the feature pyramid and of the heads.
    """

    head: str = YOLACT
    backbone: str = "resnet50"
    num_classes: int = 80
    anchor_sizes: tuple[float, ...] = _ANCHORS
    strides: tuple[float, ...] = (550 / 69, 550 / 35, 550 / 18, 550 / 9, 550 / 5)
    num_protos: int = 32
    pyramid_channels: int = 256

    def __post_init__(self) -> None:
        require(self.head in YOLACT_HEADS, f"head={self.head!r}: expected one of {YOLACT_HEADS}.")
        known = self.backbone in YOLACT_BACKBONES
        require(known, f"backbone={self.backbone!r}: expected one of {YOLACT_BACKBONES}.")
        names = ("num_classes", "num_protos", "pyramid_channels")
        require_whole({name: getattr(self, name) for name in names})
        for name in ("anchor_sizes", "strides"):
            fix_tuple(self, name, LEVELS)
            positive = all(is_finite(value) and value > 0 for value in getattr(self, name))
            require(positive, f"{name}={getattr(self, name)}: expected positive finite numbers.")

    @property
    def is_authors(self) -> bool:
        """Whether this is the author's kind."""
        return self.head == AUTHORS_YOLACT


@dataclass(frozen=True)
class YolactThresholds:
    """The settings of YOLACT's post-processing (mmdet's ``test_cfg``).

    Attributes:
        score_thr: An anchor is a candidate if the score of its best class is greater, 0..1.
        mask_thr: A pixel belongs to a mask if its mask score is greater, 0..1.
        filter_thr: A detection is kept if its score is greater, 0..1. The author keeps all.
        nms_pre: Anchors of each level that enter Fast NMS, by their best class.
        iou_thr: A box goes if it overlaps a better one of its class by more (IoU), 0..1.
        top_k: Boxes of each class that Fast NMS compares, best first.
        max_per_image: Detections kept per image, best first.
    """

    score_thr: float = 0.05
    mask_thr: float = 0.5
    filter_thr: float = 0.05
    nms_pre: int = 1000
    iou_thr: float = 0.5
    top_k: int = 200
    max_per_image: int = 100

    def __post_init__(self) -> None:
        names = ("score_thr", "mask_thr", "filter_thr", "iou_thr")
        require_parts({name: getattr(self, name) for name in names})
        require_whole({name: getattr(self, name) for name in ("nms_pre", "top_k", "max_per_image")})


AUTHORS_THRESHOLDS = YolactThresholds(filter_thr=0.0, nms_pre=ALL_ANCHORS)


def authors_anchors(side: int) -> tuple[float, ...]:
    """Return the author's anchor sizes for network inputs of so many pixels a side."""
    return tuple(float(size * side // _AUTHORS_SIDE) for size in _ANCHORS)
