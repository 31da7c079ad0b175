"""Environment variables of solo_infer.

Each variable is read when it is needed, so that a program can set it after the import.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from solo_infer._version import __version__
from solo_infer.errors import ConfigError

HOME = "SOLO_INFER_HOME"
MIRROR = "SOLO_INFER_MIRROR"
OFFLINE = "SOLO_INFER_OFFLINE"
TIMEOUT = "SOLO_INFER_TIMEOUT"

_OFFLINE_VARIABLES = (OFFLINE, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
OFFLINE_NAMES = ", ".join(_OFFLINE_VARIABLES[:-1]) + f" and {_OFFLINE_VARIABLES[-1]}"  # for messages

USER_AGENT = f"solo-infer/{__version__}"  # header of every HTTP request

_FALSE = {"", "0", "false", "no", "off"}


def cache_home() -> Path:
    """Return the cache directory: ``SOLO_INFER_HOME``, or ``solo_infer`` in the XDG cache."""
    if home := os.environ.get(HOME):
        return Path(home).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "solo_infer"


def is_offline() -> bool:
    """Return whether ``SOLO_INFER_OFFLINE``, or a variable that does the same for the Hub, is set."""
    return any(os.environ.get(name, "").strip().lower() not in _FALSE for name in _OFFLINE_VARIABLES)


def mirror() -> str | None:
    """Return the mirror of the weights (``SOLO_INFER_MIRROR``: a URL or a directory), None if unset."""
    return os.environ.get(MIRROR) or None


def mirror_directory(mirror: str) -> Path | None:
    """Return the directory that a mirror names by its path or a file URL, None for other URLs."""
    if mirror.startswith("file:"):
        return Path(url2pathname(urlsplit(mirror).path))
    return None if "://" in mirror else Path(mirror).expanduser()


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
