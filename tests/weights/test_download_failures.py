"""Failures of downloads and disks, and concurrent downloads."""

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
from pathlib import Path
from urllib.error import URLError

import pytest
from helpers.faulty_server import (
    Behavior,
    Server,
    chunked,
    content,
    cut_off,
    files_at,
    forbid_sockets,
    held,
    redirect,
    reset,
    slow,
    stall,
    status,
    wrong_range,
)
from helpers.paths import ROOT

from solo_infer.errors import CacheError, DownloadError, OfflineError
from solo_infer.weights import cache_files, download
from solo_infer.weights.download import download_file

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()
PATH = "/weights.pth"
PART = "weights.pth.part"


# --- Causes of failures, and the files that are left


@pytest.mark.parametrize(
    ("behavior", "cause", "requests"),
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
        (content(BODY + b"!"), rf"expected {len(BODY)} bytes, the server announced {len(BODY) + 1}", 1),
        (chunked(BODY + b"!"), rf"expected {len(BODY)} bytes, the server sent more", 1),
        (content(BODY[:-1] + b"!"), f"starts with {SHA256[:10]}, got [0-9a-f]{{64}}", 1),
        (cut_off(BODY, 0), "closed after 0 of", 3),
        (wrong_range(BODY, f"bytes 0-{len(BODY) - 1}/{len(BODY)}"), "HTTP status 206", 1),
    ],
)
def test_failure_names_its_cause_and_leaves_nothing(
    server: Server, target: Path, behavior: Behavior, cause: str, requests: int
) -> None:
    url = server.at(PATH, behavior)
    with pytest.raises(DownloadError, match=cause) as failure:
        download_file(url, target, sha256=SHA256[:10], size=len(BODY))
    assert url in str(failure.value)
    assert "\n" not in str(failure.value)
    assert len(server.requests) == requests
    assert files_at(target.parent) == []


@pytest.mark.parametrize(("sha256", "remaining"), [(SHA256, [PART]), ("", [])], ids=["known", "unknown"])
def test_repeated_interruption_leaves_only_a_part_that_can_be_resumed(
    server: Server, target: Path, sha256: str, remaining: list[str]
) -> None:
    url = server.at(PATH, cut_off(BODY, 1000))
    with pytest.raises(DownloadError, match="closed after"):
        download_file(url, target, sha256=sha256)
    assert len(server.requests) == download.ATTEMPTS
    assert files_at(target.parent) == remaining


@pytest.mark.parametrize("after", [0, 1000])
def test_silent_server_is_reported_with_the_timeout_variable(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.15")
    url = server.at(PATH, stall(BODY, after))
    with pytest.raises(DownloadError, match=r"silent for 0.15 s \(SOLO_INFER_TIMEOUT\)"):
        download_file(url, target)
    assert len(server.requests) == download.ATTEMPTS
    assert files_at(target.parent) == []


def test_html_page_is_refused_without_a_hash(server: Server, target: Path) -> None:
    url = server.at(PATH, content(b"<html>Please log in</html>", content_type="text/html; charset=utf-8"))
    with pytest.raises(DownloadError, match="HTML page"):
        download_file(url, target)
    with pytest.raises(DownloadError, match="SHA-256"):
        download_file(url, target, sha256=SHA256)
    assert files_at(target.parent) == []


def test_empty_file_is_refused(server: Server, target: Path) -> None:
    with pytest.raises(DownloadError, match="empty file"):
        download_file(server.at(PATH, content(b"")), target)
    assert files_at(target.parent) == []


def test_refused_connection(target: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        with pytest.raises(DownloadError, match=r"ConnectionRefusedError.*\(3 attempts\)"):
            download_file(url, target, sha256=SHA256)
    assert files_at(target.parent) == []


def test_server_without_tls(server: Server, target: Path) -> None:
    url = server.at(PATH, content(BODY)).replace("http:", "https:")
    with pytest.raises(DownloadError, match="SSL"):
        download_file(url, target)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (URLError(socket.gaierror(socket.EAI_NONAME, "Name not known")), "gaierror.*Name not known"),
        (URLError(ssl.SSLCertVerificationError(1, "self-signed certificate")), "self-signed"),
        (URLError(TimeoutError("timed out")), "silent for 5 s .* when connecting"),
        (URLError("no host"), "no host"),
    ],
)
def test_permanent_failures_are_not_retried(
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
def test_other_addresses_are_refused(target: Path, url: str) -> None:
    with pytest.raises(DownloadError, match=url):
        download_file(url, target)
    assert not target.parent.exists() or files_at(target.parent) == []


@pytest.mark.parametrize("offline", [None, True])
def test_offline_mode_opens_no_socket(
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
    (tmp_path / "file").write_text("a file")
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
def test_disk_error_is_not_reported_as_network_error(
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


def test_read_only_cache_is_reported_before_any_request(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    url = server.at(PATH, content(BODY))
    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(CacheError, match="Read-only.*SOLO_INFER_HOME"):
        download_file(url, target)
    assert server.requests == []


def test_file_system_without_locks_is_reported(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(CacheError, match="locks.*SOLO_INFER_HOME"):
        download_file("http://127.0.0.1:9/x", target)


# --- Concurrent downloads


def test_threads_make_one_download(server: Server, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=cache_files.__name__)
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
    active = max_active = 0

    def work() -> None:
        nonlocal active, max_active
        with cache_files.locked(target):
            active += 1
            max_active = max(max_active, active)
            time.sleep(0.02)
            active -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max_active == 1


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
    processes = [subprocess.Popen([*command, str(log)], cwd=ROOT) for log in logs]
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
