"""The two files of a saved model, which must belong together.

``config.json`` and ``model.safetensors`` replace earlier ones by two renames, between which a process can be
killed, and files can be copied one by one. So both carry an identifier of the pair, and the metadata of the
weights the configuration that they were saved with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from solo_infer.config import ModelConfig
from solo_infer.config.model import WEIGHTS_ID
from solo_infer.errors import ConfigError
from solo_infer.runtime.messages import shortened
from solo_infer.weights.digest import model_digest

logger = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 1 << 20
# The entry of the metadata of model.safetensors: identifier, line break, configuration. It is the only one,
# because safetensors writes several in random order.
_METADATA_KEY = "solo_infer"


def files_of_pair(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Return the text of ``config.json`` and the metadata of ``model.safetensors``.

    Args:
        config: Configuration of the model.
        tensors: Weights, contiguous and on the CPU.
    """
    text, identifier = json.dumps(config.to_dict(), indent=2), model_digest(config, tensors)[:16]
    values = {**config.to_dict(), WEIGHTS_ID: identifier}
    return json.dumps(values, indent=2) + "\n", {_METADATA_KEY: f"{identifier}\n{text}"}


def config_of_weights(metadata: Mapping[str, str], config_id: object, weights: Path) -> ModelConfig | None:
    """Return the configuration that weights were saved with, if the ``config.json`` beside them is another.

    Args:
        metadata: Metadata of ``model.safetensors``.
        config_id: Identifier in ``config.json``, None without one.
        weights: Path of ``model.safetensors``, for messages.

    Returns:
        None if the two files belong together, or if the weights carry no identifier, as those of earlier
        versions and those that another program has rewritten.

    Raises:
        ConfigError: The configuration in the weights is damaged.
    """
    identifier, _, text = metadata.get(_METADATA_KEY, "").partition("\n")
    if identifier in ("", config_id):
        return None
    try:
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        config = ModelConfig.from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{weights} was saved with another config.json than the one beside it, and the configuration in "
            f"its header is damaged: {shortened(error, 1000)}. Save the model again, or pass config=."
        ) from error
    logger.warning(
        "%s was saved with another config.json than the one beside it: a save was interrupted, or one of the "
        "files was replaced. The configuration in the header of the weights is used. To mend the directory, "
        "save the model to it; to use another configuration, pass config=.",
        weights,
    )
    return config
