"""Which source a file comes from, and what is said when none has it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.faulty_server import Server, content, cut_off, forbid_sockets, isolate, running_server, status

from solo_infer.errors import CacheError, ConfigError, DownloadError, OfflineError
from solo_infer.weights import fetch as fetching
from solo_infer.weights.fetch import bundle, cache_path, fetch, is_cached
from solo_infer.weights.manifest import ManifestEntry, Source

BODY = b"weights " * 5000
SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = "solo-abc.pth"
HUB = Source("hub", repo="author/SOLO", filename="SOLO_R50.pth")


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    isolate(monkeypatch, home)


@pytest.fixture
def hub_calls(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """Let the Hub have nothing; return what it was asked for (the real one is tested in test_hub)."""
    calls: list[Source] = []

    def refuse(source: Source, **known: object) -> Path:
        calls.append(source)
        raise DownloadError(f"Hub file {source.repo}/{source.filename} (main): no such file.")

    monkeypatch.setattr(fetching, "fetch_from_hub", refuse)
    monkeypatch.setattr(fetching, "cached_hub_file", lambda source: None)
    return calls


def entry_of(
    *places: Source, sha256: str = SHA256[:8], size: int | None = None, filename: str = NAME
) -> ManifestEntry:
    return ManifestEntry(
        name="solo_r50_1x",
        family="solo",
        preset="solo_r50",
        filename=filename,
        sources=places,
        sha256=sha256,
        size=size,
        license="Apache-2.0",
        commercial_use=True,
        mask_ap=33.1,
        origin="a test",
    )


def put(path: Path, body: bytes = BODY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*") if path.name != ".locks")


# --- The order of trust


def test_cache_comes_first(home: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    cached = put(home / "weights" / NAME)
    forbid_sockets(monkeypatch)
    entry = entry_of(HUB, Source("url", url="http://127.0.0.1:9/x"), size=len(BODY))
    assert fetch(entry) == cached
    assert hub_calls == []


def test_home_can_be_given(tmp_path: Path) -> None:
    cached = put(tmp_path / "elsewhere" / "weights" / NAME)
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


def test_transfer_goes_on_at_another_source(server: Server) -> None:
    lame, good = server.at("/lame", cut_off(BODY, 1000)), server.at("/good", content(BODY))
    path = fetch(entry_of(Source("url", url=lame), Source("url", url=good)))
    assert path.read_bytes() == BODY
    assert server.ranges("/good") == ["bytes=3000-"]


def test_hub_file_stays_in_the_cache_of_the_hub(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(tmp_path / "hub" / "SOLO_R50.pth")
    known = {}

    def deliver(source: Source, **options: object) -> Path:
        known.update(options, source=source)
        return there

    monkeypatch.setattr(fetching, "fetch_from_hub", deliver)
    assert fetch(entry_of(HUB, size=7), offline=False, progress=False) == there
    assert known == {"source": HUB, "sha256": SHA256[:8], "size": 7, "offline": False, "progress": False}
    assert not (home / "weights").exists()


# --- A damaged cache


@pytest.mark.parametrize("damaged", [b"x" * len(BODY), BODY[:-1]], ids=["content", "size"])
def test_damaged_cached_file_is_fetched_again(
    server: Server, home: Path, caplog: pytest.LogCaptureFixture, damaged: bytes
) -> None:
    cached = put(home / "weights" / NAME, damaged)
    url = server.at("/x", content(BODY))
    assert fetch(entry_of(Source("url", url=url), size=len(BODY))).read_bytes() == BODY
    assert "the file is damaged (expected" in caplog.text and str(cached) in caplog.text
    assert files_in(home / "weights") == [NAME]


def test_damaged_cached_file_is_reported_offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = put(home / "weights" / NAME, b"junk")
    monkeypatch.setenv("SOLO_INFER_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"the file is damaged \(expected a SHA-256") as failure:
        fetch(entry_of(Source("url", url="http://127.0.0.1:9/x")))
    assert str(cached) in str(failure.value)
    assert cached.read_bytes() == b"junk"


def test_damaged_file_in_a_read_only_cache_is_reported(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(home / "weights" / NAME, b"junk")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    url = server.at("/x", content(BODY))
    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(CacheError, match="Read-only") as failure:
        fetch(entry_of(Source("url", url=url)))
    assert "the file is damaged (expected a SHA-256" in str(failure.value)
    assert "SOLO_INFER_HOME" in str(failure.value)
    assert server.requests == []


def test_file_that_another_process_repaired_is_not_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = put(home / "weights" / NAME, b"junk")
    real = fetching.content_problem

    def repaired_after_the_look(path: Path, *known: object) -> str:
        problem = real(path, *known)
        put(cached)
        return problem

    monkeypatch.setattr(fetching, "content_problem", repaired_after_the_look)
    assert fetch(entry_of()) == cached
    assert cached.read_bytes() == BODY


# --- Mirrors


@pytest.mark.parametrize("form", ["{}", "file://{}"])
@pytest.mark.parametrize("offline", [False, True])
def test_directory_mirror_is_copied_without_network(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, offline: bool
) -> None:
    original = put(tmp_path / "my mirror" / NAME)
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
    put(tmp_path / "mirror" / NAME, b"another file")
    monkeypatch.setenv("SOLO_INFER_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises((DownloadError, OfflineError), match="expected a SHA-256"):
        fetch(entry_of(), offline=offline)
    assert files_in(home / "weights") == []


def test_directory_mirror_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(DownloadError, match="there is no file .*mirror/solo-abc.pth"):
        fetch(entry_of())


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_unreadable_mirror_is_not_taken_for_a_sick_cache(
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
def test_unverifiable_file_from_a_url_mirror_is_warned_about(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, sha256: str
) -> None:
    server.at("/weights%20of%20mine.pth", content(BODY))
    monkeypatch.setenv("SOLO_INFER_MIRROR", server.base)
    fetch(entry_of(sha256=sha256, filename="weights of mine.pth"))
    assert ("could not be verified" in caplog.text) == (not sha256)


def test_mirror_of_an_unknown_scheme_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_MIRROR", "s3://bucket/weights")
    with pytest.raises(DownloadError, match="Mirror s3://bucket/weights .*expected an http"):
        fetch(entry_of())


# --- Nothing helps


def test_error_names_each_source_with_its_cause_and_the_way_by_hand(
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
    recipe = lines[-1]
    for part in (gone, SHA256[:8], str(home / "weights" / NAME), "from_pretrained", "SOLO_INFER_MIRROR"):
        assert part in recipe
    assert files_in(home / "weights") == []


def test_recipe_gives_the_address_at_the_hub(hub_calls: list[Source]) -> None:
    with pytest.raises(DownloadError) as failure:
        fetch(entry_of(HUB, sha256=""))
    assert "https://huggingface.co/author/SOLO/resolve/main/SOLO_R50.pth" in str(failure.value)
    assert "check that its SHA-256" not in str(failure.value)


@pytest.mark.parametrize("how", ["argument", "SOLO_INFER_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_touches_no_socket_and_lists_where_it_looked(
    home: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how != "argument":
        monkeypatch.setenv(how, "1")
    monkeypatch.setenv("SOLO_INFER_MIRROR", "http://mirror.invalid/weights")
    forbid_sockets(monkeypatch)
    with pytest.raises(OfflineError) as failure:
        fetch(
            entry_of(HUB, Source("url", url="http://host.invalid/x")),
            offline=True if how == "argument" else None,
        )
    text = str(failure.value)
    assert f"Cache {home / 'weights' / NAME}: there is no such file" in text
    assert "Hub file author/SOLO" in text
    assert "Mirror http://mirror.invalid/weights" in text
    assert "By hand: on a machine with network, download solo-abc.pth from http://host.invalid/x" in text
    assert not (home / "weights").exists()


def test_offline_false_overrules_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_OFFLINE", "1")
    url = server.at("/x", content(BODY))
    assert fetch(entry_of(Source("url", url=url)), offline=False).read_bytes() == BODY


def test_sick_cache_ends_the_search_at_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    urls = [server.at("/a", content(BODY)), server.at("/b", content(BODY))]
    with pytest.raises(CacheError, match="SOLO_INFER_HOME"):
        fetch(entry_of(*(Source("url", url=url) for url in urls)), home=tmp_path / "file")
    assert server.requests == []


def test_wrong_timeout_is_told_as_such(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="SOLO_INFER_TIMEOUT"):
        fetch(entry_of(Source("url", url=server.at("/x", content(BODY)))))


# --- is_cached


def test_is_cached_looks_at_size_only(
    home: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_sockets(monkeypatch)
    entry = entry_of(HUB, size=len(BODY))
    assert not is_cached(entry)
    put(home / "weights" / NAME, b"short")
    assert not is_cached(entry)
    put(home / "weights" / NAME, b"x" * len(BODY))
    assert is_cached(entry)
    assert is_cached(entry_of(size=None))
    assert not is_cached(entry, home=home / "other")


def test_is_cached_knows_the_cache_of_the_hub(
    tmp_path: Path, hub_calls: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(tmp_path / "hub" / "SOLO_R50.pth")
    monkeypatch.setattr(fetching, "cached_hub_file", lambda source: there)
    assert is_cached(entry_of(HUB, size=len(BODY)))
    assert not is_cached(entry_of(HUB, size=len(BODY) + 1))
    assert hub_calls == []


def test_is_cached_of_an_impossible_repo_is_false() -> None:
    assert not is_cached(entry_of(Source("hub", repo="no/valid/repo", filename="x")))


# --- bundle


def test_bundle_serves_as_a_home_elsewhere(
    server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = b"other " * 100
    from_hub = put(tmp_path / "hub" / "SOLO_R50.pth", other)
    monkeypatch.setattr(fetching, "fetch_from_hub", lambda source, **known: from_hub)
    entries = [
        entry_of(Source("url", url=server.at("/x", content(BODY)))),
        entry_of(HUB, sha256=hashlib.sha256(other).hexdigest(), filename="hub.pth"),
    ]
    directory = tmp_path / "usb stick"
    paths = bundle(entries, directory)
    assert paths == [directory / "weights" / NAME, directory / "weights" / "hub.pth"]
    assert [path.read_bytes() for path in paths] == [BODY, other]
    assert not any(path.is_symlink() for path in paths)
    assert files_in(directory / "weights") == ["hub.pth", NAME]
    assert bundle(entries, directory) == paths

    monkeypatch.setenv("SOLO_INFER_HOME", str(directory))
    forbid_sockets(monkeypatch)
    assert [fetch(entry, offline=True) for entry in entries] == paths


def test_bundle_into_the_cache_itself_changes_nothing(home: Path) -> None:
    cached = put(home / "weights" / NAME)
    inode = cached.stat().st_ino
    assert bundle([entry_of(sha256="")], home) == [cached]
    assert cached.stat().st_ino == inode
    assert cached.read_bytes() == BODY


def test_bundle_replaces_what_is_wrong(home: Path, tmp_path: Path) -> None:
    put(home / "weights" / NAME)
    put(tmp_path / "stick" / "weights" / NAME, b"an interrupted copy")
    (path,) = bundle([entry_of()], tmp_path / "stick")
    assert path.read_bytes() == BODY


def test_bundle_onto_a_full_disk_leaves_no_half(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    put(home / "weights" / NAME)

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CacheError, match="No space left.*stick|stick.*No space left"):
        bundle([entry_of()], tmp_path / "stick")
    assert files_in(tmp_path / "stick" / "weights") == []
