"""Order of the sources, verification, mirrors, bundles, and errors if no source has a file."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from helpers.faulty_server import Server, content, cut_off, forbid_sockets, status

from solo_infer.errors import CacheError, ConfigError, DownloadError, OfflineError
from solo_infer.weights import fetch as fetching
from solo_infer.weights.fetch import cache_path, fetch, is_cached
from solo_infer.weights.manifest import ManifestEntry, Source

BODY = b"weights " * 5000
SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = "solo-abc.pth"
HUB = Source("hub", repo="author/SOLO", filename="SOLO_R50.pth")


@pytest.fixture
def hub_calls(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """Make the Hub fail, and return the requested sources (test_hub tests the library)."""
    calls: list[Source] = []

    def refuse(source: Source, **options: object) -> Path:
        calls.append(source)
        raise DownloadError(f"Hub file {source.repo}/{source.filename} (main): no such file.")

    monkeypatch.setattr(fetching, "fetch_from_hub", refuse)
    monkeypatch.setattr(fetching, "cached_hub_file", lambda source: None)
    return calls


def entry_of(
    *sources: Source, sha256: str = SHA256[:8], size: int | None = None, filename: str = NAME
) -> ManifestEntry:
    return ManifestEntry(
        name="solo_r50_1x",
        family="solo",
        preset="solo_r50",
        filename=filename,
        sources=sources,
        sha256_prefix=sha256,
        size=size,
        license="Apache-2.0",
        commercial_use=True,
        mask_ap=33.1,
        origin="a test",
    )


def write(path: Path, body: bytes = BODY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*") if path.name != ".locks")


# --- Order of the sources


def test_cache_comes_first(home: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    cached = write(home / "weights" / NAME)
    forbid_sockets(monkeypatch)
    entry = entry_of(HUB, Source("url", url="http://127.0.0.1:9/x"), size=len(BODY))
    assert fetch(entry) == cached
    assert hub_calls == []


def test_home_argument_overrides_the_default(tmp_path: Path) -> None:
    cached = write(tmp_path / "elsewhere" / "weights" / NAME)
    entry = entry_of()
    assert fetch(entry, home=tmp_path / "elsewhere") == cached == cache_path(entry, tmp_path / "elsewhere")


def test_hub_then_urls_then_mirror(
    server: Server, home: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = server.at("/first", status(404)), server.at("/second", status(404))
    server.at(f"/mirror/{NAME}", content(BODY))
    monkeypatch.setenv("SOLO_INFER_MIRROR", f"{server.base}/mirror/")
    path = fetch(entry_of(Source("url", url=first), HUB, Source("url", url=second)))
    assert path == home / "weights" / NAME
    assert path.read_bytes() == BODY
    assert hub_calls == [HUB]
    assert [request.path for request in server.requests] == ["/first", "/second", f"/mirror/{NAME}"]


def test_first_source_that_delivers_ends_the_search(
    server: Server, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.at("/first", content(BODY))
    monkeypatch.setenv("SOLO_INFER_MIRROR", f"{server.base}/mirror")
    fetch(entry_of(Source("url", url=url), Source("url", url=f"{server.base}/second")))
    assert [request.path for request in server.requests] == ["/first"]


def test_transfer_is_resumed_at_another_source(server: Server) -> None:
    failing, good = server.at("/failing", cut_off(BODY, 1000)), server.at("/good", content(BODY))
    path = fetch(entry_of(Source("url", url=failing), Source("url", url=good)))
    assert path.read_bytes() == BODY
    assert server.ranges("/good") == ["bytes=3000-"]


def test_hub_file_stays_in_the_cache_of_the_hub(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = write(tmp_path / "hub" / "SOLO_R50.pth")
    arguments = {}

    def deliver(source: Source, **options: object) -> Path:
        arguments.update(options, source=source)
        return cached

    monkeypatch.setattr(fetching, "fetch_from_hub", deliver)
    assert fetch(entry_of(HUB, size=7), offline=False, progress=False) == cached
    assert arguments == {"source": HUB, "sha256": SHA256[:8], "size": 7, "offline": False, "progress": False}
    assert not (home / "weights").exists()


# --- A damaged cache


@pytest.mark.parametrize("damaged", [b"x" * len(BODY), BODY[:-1]], ids=["content", "size"])
def test_damaged_cached_file_is_fetched_again(
    server: Server, home: Path, caplog: pytest.LogCaptureFixture, damaged: bytes
) -> None:
    cached = write(home / "weights" / NAME, damaged)
    url = server.at("/x", content(BODY))
    assert fetch(entry_of(Source("url", url=url), size=len(BODY))).read_bytes() == BODY
    assert "the file is damaged (expected" in caplog.text and str(cached) in caplog.text
    assert files_in(home / "weights") == [NAME]


def test_damaged_cached_file_is_reported_offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = write(home / "weights" / NAME, b"junk")
    monkeypatch.setenv("SOLO_INFER_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"the file is damaged \(expected a SHA-256") as failure:
        fetch(entry_of(Source("url", url="http://127.0.0.1:9/x")))
    assert str(cached) in str(failure.value)
    assert cached.read_bytes() == b"junk"


def test_damaged_file_in_a_read_only_cache_is_reported(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home / "weights" / NAME, b"junk")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    url = server.at("/x", content(BODY))
    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(CacheError, match="Read-only") as failure:
        fetch(entry_of(Source("url", url=url)))
    assert "the file is damaged (expected a SHA-256" in str(failure.value)
    assert "SOLO_INFER_HOME" in str(failure.value)
    assert server.requests == []


def test_file_replaced_by_another_process_is_not_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = write(home / "weights" / NAME, b"junk")
    checksum_error = fetching.checksum_error

    def replaced_after_the_check(path: Path, *expected: object) -> str:
        problem = checksum_error(path, *expected)
        write(cached)
        return problem

    monkeypatch.setattr(fetching, "checksum_error", replaced_after_the_check)
    assert fetch(entry_of()) == cached
    assert cached.read_bytes() == BODY


# --- Mirrors


@pytest.mark.parametrize("form", ["{}", "file://{}"])
@pytest.mark.parametrize("offline", [False, True])
def test_directory_mirror_is_copied_without_network(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, offline: bool
) -> None:
    original = write(tmp_path / "my mirror" / NAME)
    directory = str(original.parent)
    monkeypatch.setenv(
        "SOLO_INFER_MIRROR", form.format(directory.replace(" ", "%20") if "://" in form else directory)
    )
    forbid_sockets(monkeypatch)
    path = fetch(entry_of(size=len(BODY)), offline=offline)
    assert path == home / "weights" / NAME
    assert path.read_bytes() == BODY
    assert files_in(home / "weights") == [NAME]
    assert original.exists()


@pytest.mark.parametrize("offline", [False, True])
def test_wrong_file_in_a_directory_mirror_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    write(tmp_path / "mirror" / NAME, b"another file")
    monkeypatch.setenv("SOLO_INFER_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises((DownloadError, OfflineError), match="expected a SHA-256"):
        fetch(entry_of(), offline=offline)
    assert files_in(home / "weights") == []


def test_directory_mirror_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(DownloadError, match="there is no file .*mirror/solo-abc.pth"):
        fetch(entry_of())


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_unreadable_mirror_is_not_a_cache_error(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / NAME).symlink_to("/proc/self/mem")
    monkeypatch.setenv("SOLO_INFER_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(DownloadError, match="Cannot read .*mirror"):
        fetch(entry_of())
    assert files_in(home / "weights") == []


def test_url_mirror_is_verified(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.at(f"/{NAME}", content(b"another file"))
    monkeypatch.setenv("SOLO_INFER_MIRROR", server.base)
    with pytest.raises(DownloadError, match="SOLO_INFER_MIRROR.*expected a SHA-256"):
        fetch(entry_of())
    assert files_in(home / "weights") == []


@pytest.mark.parametrize("sha256", ["", SHA256])
def test_unverifiable_file_from_a_url_mirror_is_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sha256: str
) -> None:
    server.at("/weights%20of%20mine.pth", content(BODY))
    monkeypatch.setenv("SOLO_INFER_MIRROR", server.base)
    fetch(entry_of(sha256=sha256, filename="weights of mine.pth"))
    assert ("cannot be verified" in caplog.text) == (not sha256)


def test_mirror_with_an_unknown_scheme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_MIRROR", "s3://bucket/weights")
    with pytest.raises(DownloadError, match="Mirror s3://bucket/weights .*expected an http"):
        fetch(entry_of())


# --- Failures of all sources


def test_error_lists_every_source_with_its_cause_and_a_manual_way(
    server: Server, home: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, broken = server.at("/gone.pth", status(404)), server.at("/broken.pth", status(500))
    monkeypatch.setenv("SOLO_INFER_MIRROR", server.base)
    entry = entry_of(HUB, Source("url", url=gone), Source("url", url=broken))
    with pytest.raises(DownloadError) as failure:
        fetch(entry)
    lines = str(failure.value).splitlines()
    causes = [line for line in lines if line.startswith("  - ")]
    assert "solo_r50_1x" in lines[0]
    assert len(causes) == 5
    assert str(home) in causes[0] and "author/SOLO" in causes[1]
    assert f"{gone}: the server answered HTTP 404" in causes[2]
    assert f"{broken}: the server answered HTTP 500" in causes[3]
    assert f"{server.base}/{NAME}: the server answered HTTP 404" in causes[4]
    hint = lines[-1]
    for text in (gone, SHA256[:8], str(home / "weights" / NAME), "from_pretrained", "SOLO_INFER_MIRROR"):
        assert text in hint
    assert files_in(home / "weights") == []


def test_hint_names_the_address_at_the_hub(hub_calls: list[Source]) -> None:
    with pytest.raises(DownloadError) as failure:
        fetch(entry_of(HUB, sha256=""))
    assert "https://huggingface.co/author/SOLO/resolve/main/SOLO_R50.pth" in str(failure.value)
    assert "check that its SHA-256" not in str(failure.value)


@pytest.mark.parametrize("setting", ["argument", "SOLO_INFER_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode_opens_no_socket_and_lists_the_sources(
    home: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    if setting != "argument":
        monkeypatch.setenv(setting, "1")
    monkeypatch.setenv("SOLO_INFER_MIRROR", "http://mirror.invalid/weights")
    forbid_sockets(monkeypatch)
    with pytest.raises(OfflineError) as failure:
        fetch(
            entry_of(HUB, Source("url", url="http://host.invalid/x")),
            offline=True if setting == "argument" else None,
        )
    text = str(failure.value)
    assert f"Cache {home / 'weights' / NAME}: there is no such file" in text
    assert "Hub file author/SOLO" in text
    assert "Mirror http://mirror.invalid/weights" in text
    assert (
        "To download it manually: on a machine with network, download solo-abc.pth from http://host.invalid/x"
        in text
    )
    assert not (home / "weights").exists()


def test_offline_false_overrides_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_OFFLINE", "1")
    url = server.at("/x", content(BODY))
    assert fetch(entry_of(Source("url", url=url)), offline=False).read_bytes() == BODY


def test_unusable_cache_ends_the_search(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    urls = [server.at("/a", content(BODY)), server.at("/b", content(BODY))]
    with pytest.raises(CacheError, match="SOLO_INFER_HOME"):
        fetch(entry_of(*(Source("url", url=url) for url in urls)), home=tmp_path / "file")
    assert server.requests == []


def test_invalid_timeout_is_a_config_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="SOLO_INFER_TIMEOUT"):
        fetch(entry_of(Source("url", url=server.at("/x", content(BODY)))))


# --- is_cached


def test_is_cached_checks_only_the_size(
    home: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_sockets(monkeypatch)
    entry = entry_of(HUB, size=len(BODY))
    assert not is_cached(entry)
    write(home / "weights" / NAME, b"short")
    assert not is_cached(entry)
    write(home / "weights" / NAME, b"x" * len(BODY))
    assert is_cached(entry)
    assert is_cached(entry_of(size=None))
    assert not is_cached(entry, home=home / "other")


def test_is_cached_includes_the_hub_cache(
    tmp_path: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = write(tmp_path / "hub" / "SOLO_R50.pth")
    monkeypatch.setattr(fetching, "cached_hub_file", lambda source: cached)
    assert is_cached(entry_of(HUB, size=len(BODY)))
    assert not is_cached(entry_of(HUB, size=len(BODY) + 1))
    assert hub_calls == []


def test_is_cached_is_false_for_an_unreadable_hub_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "SOLO_R50.pth")

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fetching, "cached_hub_file", lambda source: path)
    monkeypatch.setattr(fetching, "_has_size", lambda found, size: found == path and refuse())
    assert not is_cached(entry_of(HUB, size=len(BODY)))


def test_is_cached_is_false_for_an_invalid_repo() -> None:
    assert not is_cached(entry_of(Source("hub", repo="no/valid/repo", filename="x")))
