"""Base classes of the configurations of every model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from solo_infer.config.preprocess import PreprocessConfig

if TYPE_CHECKING:
    from typing_extensions import Self


class ArchitectureConfig(ABC):
    """Base class of the configuration of a network.

    Attributes:
        family: Key of the family in ``solo_infer.config.families.FAMILIES``.
        backbone: Name of the backbone.
        num_classes: Number of object classes, without a background class.
    """

    family: ClassVar[str]
    backbone: str
    num_classes: int

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the architecture without its backbone, e.g. "decoupled_light"."""

    def with_num_classes(self, num_classes: int) -> Self:
        """Return this architecture with another number of classes."""
        return replace(cast(Any, self), num_classes=num_classes)


@dataclass(frozen=True)
class BasePostprocessConfig:
    """Base class of the post-processing settings of a family; the fields that every family has.

    Attributes:
        score_thr: Score that a candidate must exceed, 0..1.
        mask_thr: Mask score that a pixel of a mask must exceed, 0..1.
        filter_thr: Score that a detection must reach after NMS, 0..1.
        nms_pre: Greatest number of candidates that enter NMS.
        max_per_image: Greatest number of detections per image.
        across_classes: Whether NMS also compares detections of different classes. By default, one object may
            be detected as several classes.
    """

    score_thr: float
    mask_thr: float
    filter_thr: float
    nms_pre: int
    max_per_image: int
    across_classes: bool = field(default=False, kw_only=True)

    def with_min_score(self, min_score: float) -> Self:
        """Return these settings without detections of a score below ``min_score``."""
        return replace(self, filter_thr=max(self.filter_thr, min_score))


@dataclass(frozen=True)
class Preset:
    """Published settings of a model, without class names."""

    architecture: ArchitectureConfig
    preprocess: PreprocessConfig
    postprocess: BasePostprocessConfig
