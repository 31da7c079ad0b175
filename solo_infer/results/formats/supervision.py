"""supervision: ``Detections``, for its annotators, trackers and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from solo_infer.results.formats.optional import require_package

if TYPE_CHECKING:
    from solo_infer.results.result import Result


def to_supervision(result: Result) -> Any:
    """Return ``Result.to_supervision``."""
    supervision = require_package("supervision", "Result.to_supervision")
    arrays = result.numpy()
    return supervision.Detections(
        xyxy=arrays["boxes"],
        mask=arrays["masks"],
        confidence=arrays["scores"],
        class_id=arrays["labels"],
        data={"class_name": np.array(result.names, dtype=str)},
    )
