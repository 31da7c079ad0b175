"""Downloads from a server that misbehaves in every known way."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest
from misbehaving_server import (
    Behaviour,
    Server,
    chunked,
    content,
    cut_off,
    forbid_sockets,
    held,
    isolate,
    redirect,
    reset,
    running_server,
    slow,
    stall,
    status,
    talkative,
    until_closed,
    wrong_range,
)

from solo_infer._version import __version__
from solo_infer.errors import CacheError, DownloadError, OfflineError
from solo_infer.weights import download
from solo_infer.weights.download import content_problem, download_file, file_sha256, matches

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2
PATH = "/weights.pth"
PART = "weights.pth.part"


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path / "home")


def files_at(directory: Path) -> list[str]:
    """Names in a cache directory, but for the lock directory, which may hold nothing but empty files."""
    locks = directory / ".locks"
    assert all(lock.stat().st_size == 0 for lock in locks.glob("*"))
    return sorted(path.name for path in directory.glob("*") if path != locks)


def half_of_it(target: Path, body: bytes = BODY) -> None:
    """Leave what an interrupted download of an earlier process left."""
    target.parent.mkdir(parents=True)
    (target.parent / PART).write_bytes(body[:HALF])


# --- What comes through


@pytest.mark.parametrize(
    "behaviour",
    [content(BODY), content(BODY, ranges=False), chunked(BODY), until_closed(BODY)],
    ids=["length", "no_ranges", "chunked", "until_closed"],
)
@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8].upper(), ""], ids=["full", "prefix", "none"])
def test_file_arrives_whole_and_alone(
    server: Server, target: Path, behaviour: Behaviour, sha256: str
) -> None:
    url = server.at(PATH, behaviour)
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


def test_says_who_asks(server: Server, target: Path) -> None:
    download_file(server.at(PATH, content(BODY)), target)
    assert server.requests[0].user_agent == f"solo-infer/{__version__}"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_follows_redirects_with_the_range(server: Server, target: Path, code: int) -> None:
    half_of_it(target)
    server.at("/real", content(BODY))
    download_file(server.at(PATH, redirect("/real", code)), target, sha256=SHA256)
    assert server.ranges("/real") == [f"bytes={HALF}-"]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    "trouble",
    [status(500), status(503), status(429), reset(), cut_off(BODY, HALF), chunked(BODY, complete=False)],
    ids=["500", "503", "429", "reset", "cut_off", "chunks_cut_off"],
)
@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["known", "unknown"])
def test_passing_trouble_is_survived(server: Server, target: Path, trouble: Behaviour, sha256: str) -> None:
    url = server.at(PATH, trouble, trouble, content(BODY))
    download_file(url, target, sha256=sha256)
    assert target.read_bytes() == BODY
    assert files_at(target.parent) == ["weights.pth"]


def test_reads_no_more_than_was_announced(server: Server, target: Path) -> None:
    """The rest, and a connection that stays open, are the server's own affair."""
    download_file(server.at(PATH, talkative(BODY, b"and more" * 1000)), target, sha256=SHA256)
    assert target.read_bytes() == BODY
    assert len(server.requests) == 1


# --- Resuming


def test_cut_off_transfer_asks_for_the_rest_only(server: Server, target: Path) -> None:
    url = server.at(PATH, cut_off(BODY, 1000), cut_off(BODY, 500), content(BODY))
    download_file(url, target, sha256=SHA256)
    assert server.ranges(PATH) == ["", "bytes=1000-", "bytes=1500-"]
    assert target.read_bytes() == BODY


def test_stalled_transfer_keeps_all_that_came(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.3")
    download_file(server.at(PATH, stall(BODY, 1001), content(BODY)), target, sha256=SHA256)
    assert server.ranges(PATH) == ["", "bytes=1001-"]
    assert target.read_bytes() == BODY


def test_part_of_an_earlier_process_is_resumed(server: Server, target: Path) -> None:
    half_of_it(target)
    download_file(server.at(PATH, content(BODY)), target, sha256=SHA256[:8])
    assert server.ranges(PATH) == [f"bytes={HALF}-"]
    assert target.read_bytes() == BODY
    assert files_at(target.parent) == ["weights.pth"]


def test_part_is_not_trusted_without_a_hash(server: Server, target: Path) -> None:
    half_of_it(target)
    download_file(server.at(PATH, cut_off(BODY, 1000), content(BODY)), target, size=len(BODY))
    assert server.ranges(PATH) == ["", ""]
    assert target.read_bytes() == BODY


def test_server_without_ranges_sends_all_again(server: Server, target: Path) -> None:
    half_of_it(target)
    download_file(server.at(PATH, content(BODY, ranges=False)), target, sha256=SHA256)
    assert server.ranges(PATH) == [f"bytes={HALF}-"]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    "content_range",
    [f"bytes 0-{len(BODY) - 1}/{len(BODY)}", f"bytes {HALF}-{len(BODY)}/{len(BODY) + 1}", "junk", ""],
    ids=["start", "total", "junk", "none"],
)
def test_wrong_content_range_restarts_without_one(server: Server, target: Path, content_range: str) -> None:
    half_of_it(target)
    url = server.at(PATH, wrong_range(BODY, content_range), content(BODY))
    download_file(url, target, sha256=SHA256, size=len(BODY))
    assert server.ranges(PATH) == [f"bytes={HALF}-", ""]
    assert target.read_bytes() == BODY


def test_complete_part_is_recognised(server: Server, target: Path) -> None:
    target.parent.mkdir()
    for size, requests in ((None, 1), (len(BODY), 1)):  # the second time not even one more
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
    half_of_it(target, body=b"another file" * 100_000)
    download_file(server.at(PATH, content(BODY)), target, sha256=SHA256)
    assert server.ranges(PATH) == [f"bytes={HALF}-", ""]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("cut_offs", [0, 1])
def test_wrong_hash_after_resuming_and_restarting_fails(server: Server, target: Path, cut_offs: int) -> None:
    half_of_it(target)
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

    class Interrupting(download.tqdm):
        def update(self, n: float | None = 1) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(download, "tqdm", Interrupting)
        download_file(url, target, sha256=SHA256)
    assert files_at(target.parent) == [PART]
    kept = (target.parent / PART).stat().st_size
    assert 0 < kept < len(BODY)
    download_file(url, target, sha256=SHA256)
    assert server.ranges(PATH) == ["", f"bytes={kept}-"]


# --- What fails, why, and what is left


@pytest.mark.parametrize(
    ("behaviour", "cause", "requests"),
    [
        (status(404), "HTTP 404 Not Found", 1),
        (status(403), "HTTP 403", 1),
        (status(204), "HTTP status 204", 1),
        (status(500), r"HTTP 500.*\(3 attempts\)", 3),
        (status(429), "HTTP 429", 3),
        (reset(), "RemoteDisconnected", 3),
        (redirect(PATH), "redirect error that would lead to an infinite loop", 5),
        (redirect("ftp://127.0.0.1/x"), "redirect to ftp://127.0.0.1/x, which is not HTTP", 1),
        (redirect("file:///etc/hostname"), "file:///etc/hostname", 1),
        (content(BODY + b"!"), rf"expected {len(BODY)} bytes, the server announces {len(BODY) + 1}", 1),
        (chunked(BODY + b"!"), rf"expected {len(BODY)} bytes, the server sends more", 1),
        (content(BODY[:-1] + b"!"), f"starts with {SHA256[:10]}, got [0-9a-f]{{64}}", 1),
        (cut_off(BODY, 0), "closed after 0 of", 3),
        (wrong_range(BODY, f"bytes 0-{len(BODY) - 1}/{len(BODY)}"), "HTTP status 206", 1),
    ],
)
def test_failure_tells_its_cause_and_leaves_nothing(
    server: Server, target: Path, behaviour: Behaviour, cause: str, requests: int
) -> None:
    url = server.at(PATH, behaviour)
    with pytest.raises(DownloadError, match=cause) as failure:
        download_file(url, target, sha256=SHA256[:10], size=len(BODY))
    assert url in str(failure.value)
    assert "\n" not in str(failure.value)
    assert len(server.requests) == requests
    assert files_at(target.parent) == []


@pytest.mark.parametrize(("sha256", "left"), [(SHA256, [PART]), ("", [])], ids=["known", "unknown"])
def test_lasting_cut_off_leaves_only_what_can_be_resumed(
    server: Server, target: Path, sha256: str, left: list[str]
) -> None:
    url = server.at(PATH, cut_off(BODY, 1000))
    with pytest.raises(DownloadError, match="closed after"):
        download_file(url, target, sha256=sha256)
    assert len(server.requests) == download.ATTEMPTS
    assert files_at(target.parent) == left


@pytest.mark.parametrize("after", [0, 1000])
def test_lasting_silence_is_told_with_its_cure(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.15")
    url = server.at(PATH, stall(BODY, after))
    with pytest.raises(DownloadError, match=r"silent for 0.15 s \(SOLO_INFER_TIMEOUT\)"):
        download_file(url, target)
    assert len(server.requests) == download.ATTEMPTS
    assert files_at(target.parent) == []


def test_html_page_is_refused_where_no_hash_could_unmask_it(server: Server, target: Path) -> None:
    url = server.at(PATH, content(b"<html>Please log in</html>", kind="text/html; charset=utf-8"))
    with pytest.raises(DownloadError, match="HTML page"):
        download_file(url, target)
    with pytest.raises(DownloadError, match="SHA-256"):
        download_file(url, target, sha256=SHA256)
    assert files_at(target.parent) == []


def test_empty_file_is_refused(server: Server, target: Path) -> None:
    with pytest.raises(DownloadError, match="empty file"):
        download_file(server.at(PATH, content(b"")), target)
    assert files_at(target.parent) == []


def test_nobody_listens(target: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        with pytest.raises(DownloadError, match=r"ConnectionRefusedError.*\(3 attempts\)"):
            download_file(url, target, sha256=SHA256)
    assert files_at(target.parent) == []


def test_server_speaks_no_tls(server: Server, target: Path) -> None:
    url = server.at(PATH, content(BODY)).replace("http:", "https:")
    with pytest.raises(DownloadError, match="SSL"):
        download_file(url, target)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (URLError(socket.gaierror(socket.EAI_NONAME, "Name not known")), "gaierror.*Name not known"),
        (URLError(ssl.SSLCertVerificationError(1, "self-signed certificate")), "self-signed"),
        (URLError(TimeoutError("timed out")), "silent for 5 s .* when connecting"),
        (URLError("no host given"), "no host given"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(
    target: Path, monkeypatch: pytest.MonkeyPatch, error: URLError, cause: str
) -> None:
    calls = []

    def fail(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise error

    monkeypatch.setattr("urllib.request.OpenerDirector.open", fail)
    with pytest.raises(DownloadError, match=cause):
        download_file("https://host.invalid/x", target)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "file:///etc/hostname", "weights.pth", "http://host:port/x", "http://", "http://h/é"],
)
def test_what_is_no_web_address_is_refused(target: Path, url: str) -> None:
    with pytest.raises(DownloadError, match=url):
        download_file(url, target)
    assert not target.parent.exists() or files_at(target.parent) == []


@pytest.mark.parametrize("offline", [None, True])
def test_offline_touches_no_socket(
    target: Path, monkeypatch: pytest.MonkeyPatch, offline: bool | None
) -> None:
    if offline is None:
        monkeypatch.setenv("SOLO_INFER_OFFLINE", "1")
    forbid_sockets(monkeypatch)
    with pytest.raises(OfflineError, match="weights.pth"):
        download_file("http://127.0.0.1:9/weights.pth", target, offline=offline)
    assert not target.parent.exists()


# --- The disk


def test_directory_below_a_file_is_a_cache_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="SOLO_INFER_HOME") as failure:
        download_file(server.at(PATH, content(BODY)), tmp_path / "file" / "cache" / "weights.pth")
    assert str(tmp_path / "file" / "cache") in str(failure.value)
    assert server.requests == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_a_cache_error_and_leaves_nothing(server: Server, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / PART).symlink_to("/dev/full")
    with pytest.raises(CacheError, match="No space left.*SOLO_INFER_HOME"):
        download_file(server.at(PATH, content(BODY)), target, sha256=SHA256)
    assert files_at(target.parent) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_error_is_not_taken_for_a_network_error(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    url = server.at(PATH, content(BODY))
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(CacheError, match=os.strerror(code)):
            download_file(url, target, sha256=SHA256)
    assert len(server.requests) == 1
    assert files_at(target.parent) == []


def test_read_only_cache_is_told_before_any_request(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    url = server.at(PATH, content(BODY))
    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(CacheError, match="Read-only.*SOLO_INFER_HOME"):
        download_file(url, target)
    assert server.requests == []


def test_file_system_without_locks_is_told(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(CacheError, match="locks.*SOLO_INFER_HOME"):
        download_file("http://127.0.0.1:9/x", target)


# --- Several at once


def test_threads_make_one_download(server: Server, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=download.__name__)
    url = server.at(PATH, slow(content(BODY), 0.2))
    results: list[bytes] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        results.append(download_file(url, target, sha256=SHA256).read_bytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [BODY] * 4
    assert len(server.requests) == 1
    assert "Waiting for another" in caplog.text


def test_lock_is_exclusive_between_threads(target: Path) -> None:
    inside = most = 0

    def work() -> None:
        nonlocal inside, most
        with download.locked(target):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


PROCESS = """
import logging, sys
from pathlib import Path
from solo_infer.weights.download import download_file
logging.basicConfig(level=logging.INFO, filename=sys.argv[4])
download_file(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], progress=False)
"""


def test_processes_make_one_download(server: Server, target: Path, tmp_path: Path) -> None:
    release = threading.Event()
    url = server.at(PATH, held(content(BODY), release))
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    command = [sys.executable, "-c", PROCESS, url, str(target), SHA256]
    repository = Path(__file__).resolve().parent.parent
    processes = [subprocess.Popen([*command, str(log)], cwd=repository) for log in logs]
    try:
        deadline = time.monotonic() + 20
        while not any(log.exists() and "Waiting for another" in log.read_text() for log in logs):
            assert time.monotonic() < deadline, "no process waited for the other"
            time.sleep(0.02)
        release.set()
        assert [process.wait(20) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert len(server.requests) == 1
    assert target.read_bytes() == BODY
    assert files_at(target.parent) == ["weights.pth"]


# --- Progress and helpers


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_counts_from_what_was_there(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    half_of_it(target)
    bars = []

    class Recording(download.tqdm):
        def __init__(self, **options: object) -> None:
            super().__init__(**options)
            bars.append(options)

    monkeypatch.setattr(download, "tqdm", Recording)
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


def test_hash_and_match_helpers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not matches(path)
    path.write_bytes(BODY)
    assert file_sha256(path) == SHA256
    assert matches(path, SHA256[:8], len(BODY)) and matches(path)
    assert not matches(path, "00000000")
    assert not matches(path, SHA256, len(BODY) - 1)
    assert content_problem(path, size=3) == f"expected 3 bytes, got {len(BODY)}"
    assert not matches(tmp_path)
    path.write_bytes(b"")
    assert not matches(path)
