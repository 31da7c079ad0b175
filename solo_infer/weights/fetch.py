"""A published file from wherever it can be had: cache, Hub, the publisher's host, the user's mirror.

What ``fetch`` returns has been verified against the manifest's SHA-256 and size, as far as published.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from solo_infer.errors import CacheError, DownloadError, OfflineError
from solo_infer.runtime import environment
from solo_infer.weights.download import content_problem, download_file, locked, matches, writing
from solo_infer.weights.hub import cached_hub_file, fetch_from_hub
from solo_infer.weights.manifest import ManifestEntry, Source

logger = logging.getLogger(__name__)


def fetch(
    entry: ManifestEntry, *, home: Path | None = None, offline: bool | None = None, progress: bool = True
) -> Path:
    """Return a verified local file of exactly this checkpoint.

    Tried in this order: the cache ``<home>/weights/<filename>``, the Hub, plain URLs, the user's mirror
    (``SOLO_INFER_MIRROR``, a URL or a directory). Files from the Hub stay in the Hub's cache; all others
    go into ours. Of a model that came with the package this is its directory there.

    Args:
        entry: What to fetch.
        home: The cache directory; None for ``SOLO_INFER_HOME`` or its default.
        offline: Whether to touch no network; None lets the environment decide.
        progress: Whether to show progress bars on stderr, if that is a terminal.

    Raises:
        DownloadError: No source could deliver the file; the message names each with its cause, and how to
            bring the file by hand.
        OfflineError: In offline mode the file is nowhere on this machine.
        CacheError: The cache cannot be written.
        ConfigError: ``SOLO_INFER_TIMEOUT`` is not a positive number.
    """
    if entry.folder is not None:
        return entry.folder
    if offline is None:
        offline = environment.is_offline()
    target = cache_path(entry, home)
    problem = _cache_problem(entry, target, offline)
    if not problem:
        return target
    causes = [f"Cache {target}: {problem}."]
    for attempt in _attempts(entry, target, offline, progress):
        try:
            return attempt()
        except DownloadError as error:
            causes.append(str(error))
        except CacheError as error:
            raise CacheError("\n".join([str(error), "Tried before:", *_listed(causes)])) from error
    if offline:
        raise OfflineError(
            f"Offline mode is on and {entry.name} is not on this machine. Looked in:\n"
            + "\n".join([*_listed(causes), _by_hand(entry, target)])
        )
    raise DownloadError(
        f"No source could deliver {entry.name}:\n" + "\n".join([*_listed(causes), _by_hand(entry, target)])
    )


def hub_file(
    repo: str, filename: str, revision: str = "main", *, offline: bool | None = None, progress: bool = True
) -> Path:
    """Return the path of any Hub file in the Hub's cache, downloading it if need be.

    Args:
        repo: Repo id, owner/name.
        filename: The file's path in the repo.
        revision: Branch, tag or commit.
        offline: Whether to touch no network; None lets the environment decide.
        progress: Whether to let ``huggingface_hub`` show its progress bar.

    Raises:
        DownloadError: The Hub cannot deliver the file.
        OfflineError: In offline mode the Hub's cache does not hold it.
    """
    if offline is None:
        offline = environment.is_offline()
    source = Source("hub", repo=repo, filename=filename, revision=revision)
    try:
        return fetch_from_hub(source, offline=offline, progress=progress)
    except DownloadError as error:
        if offline:
            raise OfflineError(f"Offline mode is on. {error}") from error
        raise


def cache_path(entry: ManifestEntry, home: Path | None = None) -> Path:
    """Return where the cache keeps the file of ``entry`` (whether it is there or not)."""
    return (environment.cache_home() if home is None else home) / "weights" / entry.filename


def is_cached(entry: ManifestEntry, home: Path | None = None) -> bool:
    """Return whether ``fetch`` would probably need no network: a file of the right name and size is here.

    Cheap: nothing is hashed, no network is touched.

    Raises:
        CacheError: The cache cannot be read.
    """
    if entry.folder is not None:
        return True
    target = cache_path(entry, home)
    with writing(target):
        if _has_size(target, entry.size):
            return True
    hub_files = (_cached_hub_file_or_none(source) for source in entry.sources if source.kind == "hub")
    return any(path is not None and _has_size(path, entry.size) for path in hub_files)


def bundle(entries: Iterable[ManifestEntry], directory: Path, *, progress: bool = True) -> list[Path]:
    """Collect checkpoints for a machine without network.

    Each verified file is copied to ``<directory>/weights/<filename>``: on the other machine, set
    ``SOLO_INFER_HOME`` to the copied directory. A model that comes with the package is there already.

    Args:
        entries: What to collect.
        directory: Where; it is made if missing.
        progress: Whether to show progress bars on stderr, if that is a terminal.

    Returns:
        The paths of the copies, in the order of ``entries``; of a model of the package its directory there.

    Raises:
        DownloadError: A file cannot be had.
        OfflineError: A file would have to be downloaded in offline mode.
        CacheError: ``directory`` (or the cache) cannot be written.
    """
    return [
        entry.folder or _copy_verified(fetch(entry, progress=progress), cache_path(entry, directory), entry)
        for entry in entries
    ]


def _cache_problem(entry: ManifestEntry, target: Path, offline: bool) -> str:
    """Say what keeps the cached file from being used, "" for nothing; online, remove a damaged one."""
    with writing(target):
        if not target.is_file():
            return "there is no such file"
        problem = content_problem(target, entry.sha256, entry.size)
    if not problem:
        return ""
    problem = f"the file is damaged ({problem})"
    if offline:
        return problem
    logger.warning("Cache %s: %s; fetching it again.", target, problem)
    try:
        with locked(target), writing(target):
            if matches(target, entry.sha256, entry.size):
                return ""  # meanwhile another process has put the right one there
            target.unlink(missing_ok=True)
    except CacheError as error:
        problem += f" and cannot be removed: {error}"
    return problem


def _attempts(
    entry: ManifestEntry, target: Path, offline: bool, progress: bool
) -> Iterator[Callable[[], Path]]:
    """Give the ways to the file in their order; each returns its path or raises DownloadError."""
    known: dict[str, Any] = {
        "sha256": entry.sha256,
        "size": entry.size,
        "offline": offline,
        "progress": progress,
    }
    for source in entry.sources:
        if source.kind == "hub":
            yield partial(fetch_from_hub, source, **known)
    for source in entry.sources:
        if source.kind == "url" and not offline:
            yield partial(download_file, source.url, target, **known)
    if mirror := environment.mirror():
        yield partial(_fetch_from_mirror, mirror, entry, target, offline, progress)


def _fetch_from_mirror(
    mirror: str, entry: ManifestEntry, target: Path, offline: bool, progress: bool
) -> Path:
    name = f"Mirror {mirror} ({environment.MIRROR})"
    directory = _mirror_directory(mirror)
    if directory is not None:
        if not (directory / entry.filename).is_file():
            raise DownloadError(f"{name}: there is no file {directory / entry.filename}.")
        return _copy_verified(directory / entry.filename, target, entry)
    if offline:
        raise DownloadError(f"{name}: not asked, as it needs the network.")
    url = f"{mirror.rstrip('/')}/{quote(entry.filename)}"
    try:
        download_file(url, target, sha256=entry.sha256, size=entry.size, progress=progress, offline=False)
    except DownloadError as error:
        raise DownloadError(f"{name}: {error}") from error
    if not entry.sha256:
        logger.warning(
            "%s came from %s and could not be verified: no SHA-256 was published for it.", target, url
        )
    return target


def _mirror_directory(mirror: str) -> Path | None:
    if mirror.startswith("file:"):
        return Path(url2pathname(urlsplit(mirror).path))
    return None if "://" in mirror else Path(mirror).expanduser()


def _copy_verified(source: Path, target: Path, entry: ManifestEntry) -> Path:
    """Copy ``source`` to ``target`` atomically, if it is what ``entry`` says."""
    staged = target.with_name(f"{target.name}.copy")
    with locked(target), writing(target):
        if target.is_file() and (
            os.path.samefile(source, target) or (entry.sha256 and matches(target, entry.sha256, entry.size))
        ):
            return target
        try:
            with open(staged, "wb") as copy:
                for block in _blocks(source):
                    copy.write(block)
                copy.flush()
                os.fsync(copy.fileno())
            if problem := content_problem(staged, entry.sha256, entry.size):
                raise DownloadError(f"{source}: {problem}.")
            os.replace(staged, target)
        finally:
            staged.unlink(missing_ok=True)
    return target


def _blocks(source: Path) -> Iterator[bytes]:
    # Its own translation of errors: a mirror that fails is one source's failure, not the cache's.
    try:
        with open(source, "rb") as file:
            while block := file.read(1 << 20):
                yield block
    except OSError as error:
        raise DownloadError(f"Cannot read {source}: {error}.") from error


def _has_size(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


def _cached_hub_file_or_none(source: Source) -> Path | None:
    try:
        return cached_hub_file(source)
    except (OSError, ValueError) as error:
        logger.debug("The Hub's cache cannot be asked for %s: %s", source, error)
        return None


def _listed(causes: Iterable[str]) -> list[str]:
    return [f"  - {' '.join(cause.split())}" for cause in causes]


def _by_hand(entry: ManifestEntry, target: Path) -> str:
    by_kind = sorted(entry.sources, key=lambda source: source.kind != "url")
    origin = f" from {by_kind[0].address}" if by_kind else ""
    check = f"check that its SHA-256 starts with {entry.sha256}, " if entry.sha256 else ""
    return (
        f"By hand: on a machine with network, download {entry.filename}{origin}, {check}"
        f"and put it on this machine as {target}, or give its path to from_pretrained. Or set "
        f"{environment.MIRROR} to a URL or directory that has {entry.filename}."
    )
