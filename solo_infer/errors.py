"""The errors of solo_infer: a small public hierarchy below ``SoloInferError``.

Every message says what was given, what was expected and what to do about it.
"""

from __future__ import annotations


class SoloInferError(Exception):
    """Base of every error that solo_infer raises on purpose."""


class ConfigError(SoloInferError, ValueError):
    """A configuration value is unknown, of the wrong type or out of range."""


class ImageError(SoloInferError, ValueError):
    """An image source cannot be found, fetched, decoded or understood."""


class ResultError(SoloInferError, ValueError):
    """A result is asked for something it cannot give."""


class DataError(SoloInferError, ValueError):
    """A data set cannot be read, is inconsistent, or lacks what is asked of it."""


class DeviceError(SoloInferError, RuntimeError):
    """A device or dtype is not available on this machine."""


class ExportError(SoloInferError, RuntimeError):
    """A network cannot be exported, or what was exported cannot be used."""


class OfflineError(SoloInferError):
    """The network would be needed, but offline mode forbids it."""


class WeightsError(SoloInferError):
    """Weights cannot be found, fetched, read or fitted to a model."""


class UnknownModelError(WeightsError):
    """A model name is neither a path, nor in the manifest, nor a Hub repo id."""


class CheckpointError(WeightsError):
    """A checkpoint file is damaged, of an unknown layout or fits no known model."""


class DownloadError(WeightsError):
    """No source could deliver a checkpoint, or what it delivered was wrong."""


class CacheError(WeightsError):
    """The weights cache cannot be written (read-only, full, not a directory)."""
