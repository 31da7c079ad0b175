"""Exceptions of solo_infer, all derived from ``SoloInferError``.

Each message states what was given, what was expected and how to fix it.
"""

from __future__ import annotations


class SoloInferError(Exception):
    """Base class of all errors that solo_infer raises deliberately."""


class ConfigError(SoloInferError, ValueError):
    """A configuration value is unknown, of the wrong type or out of range."""


class KeywordError(ConfigError, TypeError):
    """A keyword argument is unknown; the message names the one to use."""


class ImageError(SoloInferError, ValueError):
    """An image source cannot be found, fetched, decoded or understood."""


class ResultError(SoloInferError, ValueError):
    """An operation on a result is invalid, or a result cannot be written."""


class DataError(SoloInferError, ValueError):
    """A data set cannot be read or is inconsistent."""


class DeviceError(SoloInferError, RuntimeError):
    """A device or dtype is not available on this machine."""


class ExportError(SoloInferError, RuntimeError):
    """A network cannot be exported, or an exported network cannot be used."""


class ClusterError(SoloInferError, RuntimeError):
    """A Ray cluster cannot be used, is too small, or its workers failed."""


class TrainingError(SoloInferError):
    """Training cannot start or cannot go on."""


class OfflineError(SoloInferError):
    """Network access would be needed, but offline mode forbids it."""


class WeightsError(SoloInferError):
    """Weights cannot be found, fetched, read or matched with a model."""


class UnknownModelError(WeightsError):
    """A model name is neither a path, nor in the manifest, nor a Hub repo id."""


class CheckpointError(WeightsError):
    """A checkpoint file is damaged, has an unknown layout or matches no known model."""


class DownloadError(WeightsError):
    """No source could deliver a checkpoint, or its content was wrong."""


class CacheError(WeightsError):
    """The weights cache cannot be written (read-only, full, not a directory)."""
