"""Environment variables of solo_infer.

Each variable is read when it is needed, so that a program can set it after the import.
"""

from __future__ import annotations

import os
from pathlib import Path

from solo_infer._version import __version__
from solo_infer.errors import ConfigError

HOME = "SOLO_INFER_HOME"
MIRROR = "SOLO_INFER_MIRROR"
OFFLINE = "SOLO_INFER_OFFLINE"
TIMEOUT = "SOLO_INFER_TIMEOUT"

USER_AGENT = f"solo-infer/{__version__}"  # header of every HTTP request

_FALSE = {"", "0", "false", "no", "off"}


def cache_home() -> Path:
    """Return the cache directory: ``SOLO_INFER_HOME``, or ``solo_infer`` in the XDG cache."""
    if home := os.environ.get(HOME):
        return Path(home).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "solo_infer"


def is_offline() -> bool:
    """Return whether ``SOLO_INFER_OFFLINE`` or the Hub's ``HF_HUB_OFFLINE`` is set."""
    names = (OFFLINE, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").strip().lower() not in _FALSE for name in names)


def mirror() -> str | None:
    """Return the mirror of the weights (``SOLO_INFER_MIRROR``: a URL or a directory), None if unset."""
    return os.environ.get(MIRROR) or None


def network_timeout() -> float:
    """Return the network timeout in seconds (``SOLO_INFER_TIMEOUT``). Defaults to 30.

    Raises:
        ConfigError: The value of the variable is not a positive number.
    """
    text = os.environ.get(TIMEOUT, "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise ConfigError(f"{TIMEOUT}={text!r}: expected a positive number of seconds, e.g. 30.")
    return seconds
