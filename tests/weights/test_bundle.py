"""Bundles of checkpoints for a machine without network."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from pathlib import Path

import pytest
from helpers.faulty_server import Server, content, forbid_sockets
from weights.test_fetch import BODY, HUB, NAME, entry_of, files_in, write

from solo_infer.errors import CacheError
from solo_infer.weights import fetch as fetching
from solo_infer.weights.fetch import bundle, fetch
from solo_infer.weights.manifest import Source


def test_bundle_serves_as_a_home_on_another_machine(
    server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_body = b"other " * 100
    from_hub = write(tmp_path / "hub" / "SOLO_R50.pth", hub_body)
    monkeypatch.setattr(fetching, "fetch_from_hub", lambda source, **options: from_hub)
    entries = [
        entry_of(Source("url", url=server.at("/x", content(BODY)))),
        entry_of(HUB, sha256=hashlib.sha256(hub_body).hexdigest(), filename="hub.pth"),
    ]
    directory = tmp_path / "usb stick"
    paths = bundle(entries, directory)
    assert paths == [directory / "weights" / NAME, directory / "weights" / "hub.pth"]
    assert [path.read_bytes() for path in paths] == [BODY, hub_body]
    assert not any(path.is_symlink() for path in paths)
    assert files_in(directory / "weights") == ["hub.pth", NAME]
    assert bundle(entries, directory) == paths

    monkeypatch.setenv("SOLO_INFER_HOME", str(directory))
    forbid_sockets(monkeypatch)
    assert [fetch(entry, offline=True) for entry in entries] == paths


def test_bundle_into_the_cache_itself_changes_nothing(home: Path) -> None:
    cached = write(home / "weights" / NAME)
    inode = cached.stat().st_ino
    assert bundle([entry_of(sha256="")], home) == [cached]
    assert cached.stat().st_ino == inode
    assert cached.read_bytes() == BODY


def test_bundle_replaces_a_damaged_copy(home: Path, tmp_path: Path) -> None:
    write(home / "weights" / NAME)
    write(tmp_path / "stick" / "weights" / NAME, b"an interrupted copy")
    (path,) = bundle([entry_of()], tmp_path / "stick")
    assert path.read_bytes() == BODY


def test_bundle_onto_a_full_disk_leaves_no_partial_file(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write(home / "weights" / NAME)

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CacheError, match="No space left.*stick|stick.*No space left"):
        bundle([entry_of()], tmp_path / "stick")
    assert files_in(tmp_path / "stick" / "weights") == []
