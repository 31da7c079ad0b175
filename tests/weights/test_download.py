"""Downloads from a faulty server: whole, resumed and verified."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tqdm
from helpers.faulty_server import (
    Behavior,
    Server,
    chunked,
    content,
    cut_off,
    files_at,
    forbid_sockets,
    redirect,
    reset,
    stall,
    status,
    talkative,
    until_closed,
    wrong_range,
)

from solo_infer.errors import DownloadError
from solo_infer.runtime import environment
from solo_infer.weights.cache_files import checksum_error, file_sha256, matches
from solo_infer.weights.download import download_file

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2
PATH = "/weights.pth"
PART = "weights.pth.part"


def write_half_part(target: Path, body: bytes = BODY) -> None:
    """Write the part file that an interrupted process leaves."""
    target.parent.mkdir(parents=True)
    (target.parent / PART).write_bytes(body[:HALF])


# --- Complete transfers


@pytest.mark.parametrize(
    "behavior",
    [content(BODY), content(BODY, ranges=False), chunked(BODY), until_closed(BODY)],
    ids=["length", "no_ranges", "chunked", "until_closed"],
)
@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8].upper(), ""], ids=["full", "prefix", "none"])
def test_file_is_complete_and_nothing_else_is_left(
    server: Server, target: Path, behavior: Behavior, sha256: str
) -> None:
    url = server.at(PATH, behavior)
    assert download_file(url, target, sha256=sha256, size=len(BODY)) == target
    assert target.read_bytes() == BODY
    assert files_at(target.parent) == ["weights.pth"]
    assert server.ranges(PATH) == [""]


def test_right_file_is_not_requested_again(server: Server, target: Path) -> None:
    url = server.at(PATH, content(BODY))
    for _ in range(2):
        download_file(url, target, sha256=SHA256[:8])
    assert len(server.requests) == 1


def test_wrong_file_at_the_target_is_replaced(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"damaged")
    download_file(server.at(PATH, content(BODY)), target, sha256=SHA256)
    assert target.read_bytes() == BODY


def test_present_file_needs_neither_lock_nor_network(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target.parent.mkdir()
    target.write_bytes(BODY)
    forbid_sockets(monkeypatch)
    assert download_file("http://host.invalid/x", target, sha256=SHA256, offline=True) == target
    assert not (target.parent / ".locks").exists()


def test_user_agent_is_sent(server: Server, target: Path) -> None:
    download_file(server.at(PATH, content(BODY)), target)
    assert server.requests[0].user_agent == environment.USER_AGENT


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_keep_the_range(server: Server, target: Path, code: int) -> None:
    write_half_part(target)
    server.at("/real", content(BODY))
    download_file(server.at(PATH, redirect("/real", code)), target, sha256=SHA256)
    assert server.ranges("/real") == [f"bytes={HALF}-"]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    "failure",
    [status(500), status(503), status(429), reset(), cut_off(BODY, HALF), chunked(BODY, complete=False)],
    ids=["500", "503", "429", "reset", "cut_off", "chunks_cut_off"],
)
@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["known", "unknown"])
def test_temporary_failures_are_retried(server: Server, target: Path, failure: Behavior, sha256: str) -> None:
    url = server.at(PATH, failure, failure, content(BODY))
    download_file(url, target, sha256=sha256)
    assert target.read_bytes() == BODY
    assert files_at(target.parent) == ["weights.pth"]


def test_bytes_beyond_the_announced_length_are_ignored(server: Server, target: Path) -> None:
    """The connection also stays open after the last byte."""
    download_file(server.at(PATH, talkative(BODY, b"and more" * 1000)), target, sha256=SHA256)
    assert target.read_bytes() == BODY
    assert len(server.requests) == 1


# --- Resuming


def test_interrupted_transfer_requests_only_the_rest(server: Server, target: Path) -> None:
    url = server.at(PATH, cut_off(BODY, 1000), cut_off(BODY, 500), content(BODY))
    download_file(url, target, sha256=SHA256)
    assert server.ranges(PATH) == ["", "bytes=1000-", "bytes=1500-"]
    assert target.read_bytes() == BODY


def test_stalled_transfer_keeps_all_received_bytes(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.3")
    download_file(server.at(PATH, stall(BODY, 1001), content(BODY)), target, sha256=SHA256)
    assert server.ranges(PATH) == ["", "bytes=1001-"]
    assert target.read_bytes() == BODY


def test_part_of_an_earlier_process_is_resumed(server: Server, target: Path) -> None:
    write_half_part(target)
    download_file(server.at(PATH, content(BODY)), target, sha256=SHA256[:8])
    assert server.ranges(PATH) == [f"bytes={HALF}-"]
    assert target.read_bytes() == BODY
    assert files_at(target.parent) == ["weights.pth"]


def test_part_is_not_trusted_without_a_hash(server: Server, target: Path) -> None:
    write_half_part(target)
    download_file(server.at(PATH, cut_off(BODY, 1000), content(BODY)), target, size=len(BODY))
    assert server.ranges(PATH) == ["", ""]
    assert target.read_bytes() == BODY


def test_server_without_ranges_sends_everything_again(server: Server, target: Path) -> None:
    write_half_part(target)
    download_file(server.at(PATH, content(BODY, ranges=False)), target, sha256=SHA256)
    assert server.ranges(PATH) == [f"bytes={HALF}-"]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    "content_range",
    [f"bytes 0-{len(BODY) - 1}/{len(BODY)}", f"bytes {HALF}-{len(BODY)}/{len(BODY) + 1}", "junk", ""],
    ids=["start", "total", "junk", "none"],
)
def test_wrong_content_range_restarts_without_one(server: Server, target: Path, content_range: str) -> None:
    write_half_part(target)
    url = server.at(PATH, wrong_range(BODY, content_range), content(BODY))
    download_file(url, target, sha256=SHA256, size=len(BODY))
    assert server.ranges(PATH) == [f"bytes={HALF}-", ""]
    assert target.read_bytes() == BODY


def test_complete_part_is_recognized(server: Server, target: Path) -> None:
    target.parent.mkdir()
    for size, requests in ((None, 1), (len(BODY), 1)):  # the second time without a request to the server
        (target.parent / PART).write_bytes(BODY)
        url = server.at(PATH, content(BODY))
        download_file(url, target, sha256=SHA256, size=size)
        assert server.ranges(PATH) == [f"bytes={len(BODY)}-"] * requests
        assert target.read_bytes() == BODY
        target.unlink()


@pytest.mark.parametrize(
    ("size", "ranges"), [(None, [f"bytes={len(BODY) + 2}-", ""]), (len(BODY), [""])], ids=["unknown", "known"]
)
def test_overlong_part_restarts(server: Server, target: Path, size: int | None, ranges: list[str]) -> None:
    target.parent.mkdir()
    (target.parent / PART).write_bytes(BODY[:-1] + b"xyz")
    download_file(server.at(PATH, content(BODY)), target, sha256=SHA256, size=size)
    assert server.ranges(PATH) == ranges
    assert target.read_bytes() == BODY


def test_wrong_hash_after_resuming_restarts_once(server: Server, target: Path) -> None:
    write_half_part(target, body=b"another file" * 100_000)
    download_file(server.at(PATH, content(BODY)), target, sha256=SHA256)
    assert server.ranges(PATH) == [f"bytes={HALF}-", ""]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("cut_offs", [0, 1])
def test_wrong_hash_after_resuming_and_restarting_fails(server: Server, target: Path, cut_offs: int) -> None:
    write_half_part(target)
    other = b"other" * 300_000
    url = server.at(PATH, content(other), *[cut_off(other, 1000)] * cut_offs, content(other))
    with pytest.raises(DownloadError, match="SHA-256"):
        download_file(url, target, sha256=SHA256)
    assert server.ranges(PATH) == [f"bytes={HALF}-", "", *[""] * cut_offs]
    assert files_at(target.parent) == []


def test_interrupt_keeps_a_part_that_can_be_resumed(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.at(PATH, content(BODY))

    class Interrupting(tqdm.tqdm):
        def update(self, n: float | None = 1) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tqdm, "tqdm", Interrupting)
        download_file(url, target, sha256=SHA256)
    assert files_at(target.parent) == [PART]
    part_size = (target.parent / PART).stat().st_size
    assert 0 < part_size < len(BODY)
    download_file(url, target, sha256=SHA256)
    assert server.ranges(PATH) == ["", f"bytes={part_size}-"]


# --- Progress and helpers


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_starts_at_the_resumed_offset(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    write_half_part(target)
    bars = []

    class Recording(tqdm.tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            bars.append(options)

    monkeypatch.setattr(tqdm, "tqdm", Recording)
    download_file(server.at(PATH, content(BODY)), target, sha256=SHA256, progress=progress)
    (bar,) = bars
    assert (bar["initial"], bar["total"], bar["unit"]) == (HALF, len(BODY), "B")
    assert (bar["desc"], bar["unit_scale"]) == ("weights.pth", True)
    assert bar["disable"] is (None if progress else True)


def test_no_output_without_a_terminal(
    server: Server, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download_file(server.at(PATH, content(BODY)), target)
    assert capsys.readouterr() == ("", "")


def test_checksum_helpers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not matches(path)
    path.write_bytes(BODY)
    assert file_sha256(path) == SHA256
    assert matches(path, SHA256[:8], len(BODY)) and matches(path)
    assert not matches(path, "00000000")
    assert not matches(path, SHA256, len(BODY) - 1)
    assert checksum_error(path, size=3) == f"expected 3 bytes, got {len(BODY)}"
    assert not matches(tmp_path)
    path.write_bytes(b"")
    assert not matches(path)
