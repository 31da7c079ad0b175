"""Metadata of exported models, as strings that ONNX and OpenVINO files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from solo_infer.config import ModelConfig
from solo_infer.config.validation import is_int
from solo_infer.errors import ConfigError, ExportError
from solo_infer.runtime.messages import quoted, shortened

CONFIG_KEY, SIZE_KEY, VERSION_KEY = "solo_infer.config", "solo_infer.size", "solo_infer.version"
OUTPUTS_KEY, INPUT_KEY, SOURCE_KEY = "solo_infer.outputs", "solo_infer.input", "solo_infer.source"
PHOTO_KEY = "solo_infer.photo_size"
KEYS = (CONFIG_KEY, SIZE_KEY, VERSION_KEY, OUTPUTS_KEY, INPUT_KEY, SOURCE_KEY, PHOTO_KEY)

DETECTIONS, HEADS = "detections", "heads"  # what a file computes
NORMALIZED, PIXELS, PHOTOS = "normalized", "pixels", "photos"  # what it takes
INPUT_NAME = "images"
OUTPUT_NAMES = ("scores", "labels", "boxes", "masks", "counts")  # of DETECTIONS
MAX_VALUE_CHARACTERS = 1 << 20
MAX_SIDE = 1 << 14  # pixels


@dataclass(frozen=True)
class ExportedConfig:
    """Metadata of an exported model.

    Attributes:
        config: Configuration of the model; its thresholds are part of the graph.
        size: (height, width) of the network input in pixels. None for any multiples of 32.
        takes_pixels: Whether the network input is uint8 RGB pixels instead of normalized values.
        source: Name or path of the model that was exported, "" if it has none.
        photo_size: (height, width) in pixels of the photos that the file takes instead of network inputs;
            ``size`` follows from it. None for a file that takes network inputs.
    """

    config: ModelConfig
    size: tuple[int, int] | None
    takes_pixels: bool = False
    source: str = ""
    photo_size: tuple[int, int] | None = None

    def to_metadata(self, version: str) -> dict[str, str]:
        """Return the metadata of a file that returns detections.

        Args:
            version: Version of this library.
        """
        takes = PHOTOS if self.photo_size else PIXELS if self.takes_pixels else NORMALIZED
        return {
            CONFIG_KEY: json.dumps(self.config.to_dict()),
            SIZE_KEY: json.dumps(self.size),
            VERSION_KEY: version,
            OUTPUTS_KEY: DETECTIONS,
            INPUT_KEY: takes,
            SOURCE_KEY: self.source,
            PHOTO_KEY: json.dumps(self.photo_size),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ExportedConfig:
        """Read the metadata of a file that returns detections.

        Raises:
            ExportError: The metadata are missing, too long or wrong, or belong to a file of raw outputs.
        """
        for key in KEYS:
            if len(metadata.get(key, "")) > MAX_VALUE_CHARACTERS:
                raise ExportError(f"{key} has more than {MAX_VALUE_CHARACTERS} characters.")
        if CONFIG_KEY not in metadata:
            raise ExportError(
                f"it was not written by 'solo-infer export': expected the metadata {CONFIG_KEY!r}, found "
                f"{shortened(', '.join(sorted(metadata)) or 'none')}."
            )
        outputs = metadata.get(OUTPUTS_KEY, HEADS)
        if outputs != DETECTIONS:
            raise ExportError(
                f"it returns {quoted(outputs)}, not {DETECTIONS}. Use solo_infer.export.engine.ExportedModel "
                "for the raw outputs of the heads, or export the model without --format onnx-heads."
            )
        try:
            config = ModelConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
        except (ConfigError, ValueError, RecursionError) as error:
            raise ExportError(f"{CONFIG_KEY} is wrong: {shortened(error)}") from error
        takes = metadata.get(INPUT_KEY, NORMALIZED)
        if takes not in (NORMALIZED, PIXELS, PHOTOS):
            raise ExportError(
                f"{INPUT_KEY}={quoted(takes)}: expected {NORMALIZED!r}, {PIXELS!r} or {PHOTOS!r}."
            )
        size, photo_size = (_read_size(key, metadata.get(key, "null")) for key in (SIZE_KEY, PHOTO_KEY))
        if takes == PHOTOS and size != (photo_size and _input_size(config, photo_size)):
            raise ExportError(f"{PHOTO_KEY}={photo_size} does not belong to {SIZE_KEY}={size}.")
        return cls(
            config,
            size,
            takes == PIXELS,
            metadata.get(SOURCE_KEY, ""),
            photo_size if takes == PHOTOS else None,
        )

    @classmethod
    def of_photos(cls, config: ModelConfig, photo_size: tuple[int, int], source: str = "") -> ExportedConfig:
        """Return the metadata of a file that takes photos of (height, width)."""
        return cls(config, _input_size(config, photo_size), source=source, photo_size=photo_size)


def _input_size(config: ModelConfig, photo_size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of the network input for a photo of (height, width)."""
    return config.preprocessing.padded_shape(*config.preprocessing.resized_shape(*photo_size))


def _read_size(key: str, text: str) -> tuple[int, int] | None:
    """Return the (height, width) of the metadata, None for any size."""
    try:
        size = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{key}={quoted(text)}: expected [height, width] or null.") from error
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(is_int(side) for side in size)):
        raise ExportError(f"{key}={quoted(text)}: expected [height, width] or null.")
    if not all(0 < side <= MAX_SIDE for side in size):
        raise ExportError(f"{key}={quoted(text)}: expected 1 to {MAX_SIDE} pixels.")
    return size[0], size[1]
