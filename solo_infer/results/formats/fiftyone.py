"""FiftyOne: ``Detections`` for a field of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solo_infer.results.formats.optional import require_package

if TYPE_CHECKING:
    from solo_infer.results.result import Result


def to_fiftyone(result: Result) -> Any:
    """Return ``Result.to_fiftyone``."""
    fiftyone = require_package("fiftyone", "Result.to_fiftyone")
    height, width = result.image_size
    detections = []
    for instance in result.cpu():
        mask = instance.mask.numpy()
        rows, columns = mask.any(axis=1).nonzero()[0].tolist(), mask.any(axis=0).nonzero()[0].tolist()
        if not rows:
            continue
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        detections.append(
            fiftyone.Detection(
                label=instance.name,
                confidence=instance.score,
                bounding_box=[left / width, top / height, (right - left) / width, (bottom - top) / height],
                mask=mask[top:bottom, left:right].copy(),
            )
        )
    return fiftyone.Detections(detections=detections)
