"""Fingerprint of a model: equal for equal weights and settings, on every machine."""

from __future__ import annotations

from solo_infer.segmenters.loaded_model import LoadedModel
from solo_infer.weights.digest import model_digest


def fingerprint(model: LoadedModel) -> str:
    """Return the SHA-256 of the weights and the configuration of a model, 64 hex digits.

    The dtype of the network counts; its device, and the classes that ``only`` has selected, do not.

    Args:
        model: Model.
    """
    return model_digest(model.config, model.network.state_dict())
