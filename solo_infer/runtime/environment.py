"""Environment variables of solo_infer.

Each variable is read when it is needed, so that a program can set it after the import.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from solo_infer._version import __version__
from solo_infer.errors import ConfigError
from solo_infer.runtime.messages import quoted

HOME = "SOLO_INFER_HOME"
MIRROR = "SOLO_INFER_MIRROR"
OFFLINE = "SOLO_INFER_OFFLINE"
TIMEOUT = "SOLO_INFER_TIMEOUT"
ADAPT_THREADS = "SOLO_INFER_ADAPT_THREADS"

_OFFLINE_VARIABLES = (OFFLINE, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
OFFLINE_NAMES = ", ".join(_OFFLINE_VARIABLES[:-1]) + f" and {_OFFLINE_VARIABLES[-1]}"  # for messages

USER_AGENT = f"solo-infer/{__version__}"  # header of every HTTP request

_FALSE = {"", "0", "false", "no", "off"}
_MAX_TIMEOUT = (
    86_400.0  # seconds; the system calls refuse numbers that do not fit into 32 bits of milliseconds
)


def adapts_threads() -> bool:
    """Return whether predictions may use fewer threads on a busy machine; ``SOLO_INFER_ADAPT_THREADS``."""
    return os.environ.get(ADAPT_THREADS, "1").strip().lower() not in _FALSE


def cache_home() -> Path:
    """Return the cache directory.

    It is ``SOLO_INFER_HOME``, or ``solo_infer`` in the XDG cache. A user without a home directory, as in
    containers with an arbitrary user id, has a private directory in that for temporary files.
    """
    if home := os.environ.get(HOME):
        return Path(os.path.expanduser(home))
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(os.path.expanduser(xdg)) / "solo_infer"
    return Path(os.path.expanduser("~/.cache/solo_infer")) if has_home() else temporary_home()


def has_home() -> bool:
    """Return whether the user has a home directory: ``HOME`` or an entry in the password database."""
    return os.path.expanduser("~") != "~"


def temporary_home() -> Path:
    """Return the cache directory of a user without a home directory, which only that user can write to.

    Without a directory for temporary files, the path cannot be created.
    """
    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError:
        return Path(os.devnull) / "solo_infer"
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    path = Path(parent) / f"solo_infer-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError:
        return path
    is_private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o022
    is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return path if is_private and is_own else _process_home()


@functools.cache
def _process_home() -> Path:
    """Return a new private directory; another user has taken the name of the usual one."""
    return Path(tempfile.mkdtemp(prefix="solo_infer-"))


def is_offline() -> bool:
    """Return whether ``SOLO_INFER_OFFLINE``, or a variable that does the same for the Hub, is set."""
    return any(os.environ.get(name, "").strip().lower() not in _FALSE for name in _OFFLINE_VARIABLES)


def mirror() -> str | None:
    """Return the mirror of the weights (``SOLO_INFER_MIRROR``: a URL or a directory), None if unset."""
    return os.environ.get(MIRROR) or None


def mirror_directory(mirror: str) -> Path | None:
    """Return the directory that a mirror names by its path or a file URL, None for other URLs.

    Raises:
        ConfigError: The file URL is not valid.
    """
    if mirror.startswith("file:"):
        try:
            return Path(url2pathname(urlsplit(mirror).path))
        except ValueError as error:
            raise ConfigError(
                f"{MIRROR}={quoted(mirror)} is not a valid URL ({error}): expected a URL or a directory."
            ) from error
    return None if "://" in mirror else Path(os.path.expanduser(mirror))


def network_timeout() -> float:
    """Return the network timeout in seconds (``SOLO_INFER_TIMEOUT``). Defaults to 30.

    Raises:
        ConfigError: The value of the variable is not a positive number of at most a day.
    """
    text = os.environ.get(TIMEOUT, "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= _MAX_TIMEOUT:
        raise ConfigError(
            f"{TIMEOUT}={quoted(text)}: expected a positive number of seconds, at most {_MAX_TIMEOUT:g}."
        )
    return seconds


@contextmanager
def set_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables and restore their previous values at the end."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
