"""The Hub as a source: huggingface_hub against a loopback server that imitates the Hub.

``huggingface_hub`` reads its environment at import, so each scenario runs in a new process.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.faulty_server import Server, content, hub_error, hub_file
from helpers.paths import ROOT

from solo_infer.errors import ConfigError, DownloadError
from solo_infer.weights import hub
from solo_infer.weights.hub import fetch_from_hub
from solo_infer.weights.manifest import Source

BODY = b"weights " * 5000
SHA256 = hashlib.sha256(BODY).hexdigest()
REPO, FILE = "author/SOLO", "SOLO_R50.pth"
SOURCE = Source("hub", repo=REPO, filename=FILE)

PRELUDE = """
import hashlib, json, logging, socket, sys
from pathlib import Path
from solo_infer.errors import SoloInferError
from solo_infer.weights.manifest import ManifestEntry, Source
from solo_infer.weights import fetch

logging.basicConfig(level=logging.WARNING)
options = json.loads(sys.argv[1])
results = []

def entry(sha256="", size=None, repo="author/SOLO", filename="SOLO_R50.pth"):
    urls = [Source("url", url=url) for url in options["urls"]]
    sources = (Source("hub", repo=repo, filename=filename), *urls)
    return ManifestEntry("solo", "solo", "solo_r50", "solo.pth", sources, sha256, size, "", False, 33.0, "")

def attempt(function, *args, **kwargs):
    try:
        result = function(*args, **kwargs)
    except SoloInferError as error:
        result = f"{type(error).__name__}: {error}"
    results.append([str(p) for p in result] if isinstance(result, list) else
                   result if isinstance(result, bool) else str(result))

def forbid_sockets():
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")
    socket.socket = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture
def hub_home(tmp_path: Path) -> Path:
    return tmp_path / "hf"


def run(
    script: str, endpoint: str, hub_home: Path, urls: tuple[str, ...] = (), **environment: str
) -> tuple[list[Any], str]:
    """Run a scenario in a new process; return the results of its attempts, and its log."""
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(hub_home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        **environment,
    }
    removed = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH")
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}{script}\nprint(json.dumps(results))", json.dumps({"urls": urls})],
        env={**inherited, **variables, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=20,  # much less than huggingface_hub retries an unreachable Hub
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout), process.stderr


def methods(server: Server, path: str) -> list[str]:
    return [request.method for request in server.requests if request.path == path]


def test_hub_file_is_verified_and_then_needs_no_network(server: Server, hub_home: Path) -> None:
    path = hub_file(server, REPO, FILE, BODY)
    script = """
verified = entry(sha256=hashlib.sha256(b"weights " * 5000).hexdigest()[:8], size=40000)
attempt(fetch.is_cached, verified)
attempt(fetch.fetch, verified, progress=False)
forbid_sockets()
attempt(fetch.is_cached, verified)
attempt(fetch.fetch, verified)
attempt(fetch.fetch, entry(), offline=True)
attempt(fetch.hub_file, "author/SOLO", "SOLO_R50.pth", offline=True)
attempt(fetch.bundle, [verified], Path(options["urls"][0]))
"""
    bundle = str(hub_home.parent / "bundle")
    results, _ = run(script, server.base, hub_home, (bundle,))
    before, first, after, second, offline, by_name, bundled = results
    assert (before, after) == (False, True)
    assert Path(first).read_bytes() == BODY
    assert Path(first).is_relative_to(hub_home)
    assert Path(os.readlink(first)).name == SHA256
    assert first == second == offline == by_name
    assert bundled == [str(Path(bundle) / "weights" / "solo.pth")]
    assert Path(bundled[0]).read_bytes() == BODY and not Path(bundled[0]).is_symlink()
    assert [request.method for request in server.requests].count("GET") == 1
    assert set(methods(server, path)) <= {"HEAD", "GET"}


def test_damaged_hub_cache_is_refused_offline_and_repaired_online(server: Server, hub_home: Path) -> None:
    hub_file(server, REPO, FILE, BODY)
    script = """
for model in (entry(), entry(sha256=hashlib.sha256(b"weights " * 5000).hexdigest(), size=40000)):
    attempt(fetch.fetch, model)
    Path(results[-1]).resolve().write_bytes(b"damaged " * 5000)
    attempt(fetch.fetch, model, offline=True)
    attempt(fetch.fetch, model)
"""
    results, log = run(script, server.base, hub_home)
    for path, refusal, repaired in (results[:3], results[3:]):
        assert refusal.startswith("OfflineError") and SHA256 in refusal
        assert repaired == path
    assert Path(results[-1]).read_bytes() == BODY
    assert "is downloaded again" in log


def test_wrong_file_at_the_hub_is_not_downloaded(server: Server, hub_home: Path) -> None:
    path = hub_file(server, REPO, FILE, b"another file")
    url = server.at("/solo.pth", content(BODY))
    script = f"""
attempt(fetch.fetch, entry(sha256={SHA256!r}))
options["urls"], options["empty"] = [], {str(hub_home / "empty")!r}
attempt(fetch.fetch, entry(sha256="{"0" * 8}"), home=Path(options["empty"]))
attempt(fetch.fetch, entry(size=3), home=Path(options["empty"]))
"""
    results, _ = run(script, server.base, hub_home, (url,))
    assert Path(results[0]).read_bytes() == BODY
    assert "expected a SHA-256 that starts with 00000000, the Hub has" in results[1]
    assert "expected 3 bytes, the Hub has 12" in results[2]
    assert "GET" not in methods(server, path)


def test_small_file_under_a_git_hash_is_fetched(server: Server, hub_home: Path) -> None:
    hub_file(server, REPO, "config.json", b"{}", lfs=False)
    results, _ = run('attempt(fetch.hub_file, "author/SOLO", "config.json")', server.base, hub_home)
    assert Path(results[0]).read_bytes() == b"{}"


def test_missing_file_and_missing_repo_are_reported_in_one_line(server: Server, hub_home: Path) -> None:
    server.at(f"/{REPO}/resolve/main/{FILE}", hub_error(404, "EntryNotFound"))
    server.at("/nobody/nothing/resolve/main/x", hub_error(401, "RepoNotFound"))
    script = """
attempt(fetch.fetch, entry())
attempt(fetch.fetch, entry(repo="nobody/nothing", filename="x"))
attempt(fetch.fetch, entry(repo="no/valid/repo"))
attempt(fetch.hub_file, "author/SOLO", "SOLO_R50.pth")
attempt(fetch.hub_file, "author/SOLO", "SOLO_R50.pth", offline=True)
"""
    results, _ = run(script, server.base, hub_home)
    for text, error_name in zip(
        results[:3], ("EntryNotFound", "RepositoryNotFound", "HFValidation"), strict=True
    ):
        (cause,) = [line for line in text.splitlines() if line.startswith("  - Hub file")]
        assert text.startswith("DownloadError") and error_name in cause
    assert results[3].startswith("DownloadError: Hub file author/SOLO/SOLO_R50.pth (main): ")
    assert results[4].startswith("OfflineError: Offline mode is on. Hub file") and str(hub_home) in results[4]


def test_unreachable_hub_is_skipped_quickly(server: Server, hub_home: Path) -> None:
    hub_file(server, REPO, FILE, BODY)
    url = server.at("/solo.pth", content(BODY))
    results, _ = run("attempt(fetch.fetch, entry())", "http://127.0.0.1:9", hub_home, (url,))
    assert results[0].endswith("solo.pth")
    run("attempt(fetch.fetch, entry())", server.base, hub_home, SOLO_INFER_HOME=str(hub_home / "ours"))
    results, log = run(
        'attempt(fetch.fetch, entry()); attempt(fetch.fetch, entry(filename="other.pth"))',
        "http://127.0.0.1:9",
        hub_home,
        SOLO_INFER_HOME=str(hub_home / "ours"),
    )
    assert Path(results[0]).read_bytes() == BODY
    assert "using the cached copy" in log
    assert "http://127.0.0.1:9 cannot be reached (ConnectionRefusedError" in results[1]


def test_broken_hub_cache_fails_only_that_source(server: Server, tmp_path: Path) -> None:
    hub_file(server, REPO, FILE, BODY)
    url = server.at("/solo.pth", content(BODY))
    (tmp_path / "file").write_text("a file")
    results, _ = run("attempt(fetch.fetch, entry())", server.base, tmp_path / "file" / "hf", (url,))
    assert results == [str(tmp_path / "home" / "weights" / "solo.pth")]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("reset by peer"),
        RuntimeError("xet: cannot reconstruct"),
        ImportError("proxy needs a package"),
        ValueError("bad"),
    ],
)
def test_errors_of_the_library_become_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise type(error)("two\nlines") from error

    monkeypatch.setattr(hub, "cached_hub_file", lambda source: None)
    monkeypatch.setattr(hub, "_check_reachable", lambda timeout: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    with pytest.raises(DownloadError) as failure:
        fetch_from_hub(SOURCE)
    name = type(error).__name__
    assert str(failure.value) == f"Hub file {REPO}/{FILE} (main): {name}: two lines ({name}: {error})"


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bars_of_the_hub_are_silenced_and_restored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, progress: bool
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    disabled = []

    def deliver(*args: object, **kwargs: object) -> str:
        disabled.append(are_progress_bars_disabled())
        (tmp_path / FILE).write_bytes(BODY)
        return str(tmp_path / FILE)

    metadata = SimpleNamespace(etag=SHA256, size=len(BODY))
    monkeypatch.setattr(hub, "cached_hub_file", lambda source: None)
    monkeypatch.setattr(hub, "_check_reachable", lambda timeout: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: metadata)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", deliver)
    assert fetch_from_hub(SOURCE, sha256=SHA256, progress=progress) == tmp_path / FILE
    assert disabled == [not progress]
    assert not are_progress_bars_disabled()


def test_programming_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Source) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(hub, "cached_hub_file", fail)
    with pytest.raises(AttributeError, match="a bug"):
        fetch_from_hub(SOURCE)


def test_invalid_timeout_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "-1")
    with pytest.raises(ConfigError, match="SOLO_INFER_TIMEOUT"):
        fetch_from_hub(SOURCE)
