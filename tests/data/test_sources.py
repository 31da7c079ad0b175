"""By which roads pictures come in: paths, URLs, folders, glob patterns and iterables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.picture_sources import Server, assert_pixels, encode, picture
from PIL import Image

from solo_infer._version import __version__
from solo_infer.data import images
from solo_infer.data.images import IMAGE_SUFFIXES, is_single_source, iterate_sources, load_image
from solo_infer.errors import ConfigError, ImageError, OfflineError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    for variable in ("SOLO_INFER_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SOLO_INFER_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    running = Server()
    yield running
    running.close()


def test_the_same_picture_by_every_road_gives_the_same_pixels(tmp_path: Path, server: Server) -> None:
    pixels = picture()
    data = encode(pixels)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    chw = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    for source in (
        path,
        str(path),
        server.serve("/picture.png", data),
        data,
        bytearray(data),
        memoryview(data),
        memoryview(np.frombuffer(data, np.uint8).repeat(2))[::2],
        Image.fromarray(pixels),
        pixels,
        (pixels / 255).astype(np.float16),
        (pixels / 255).astype(np.float32),
        pixels / 255,
        chw,
        chw.float() / 255,
        chw.double() / 255,
        (chw.float() / 255).requires_grad_(),
    ):
        assert_pixels(source, pixels)
    assert_pixels(bgr, pixels, color="bgr")
    assert_pixels(torch.from_numpy(bgr).permute(2, 0, 1), pixels, color="bgr")
    assert_pixels(path, pixels, color="bgr")
    assert_pixels(Image.fromarray(pixels), pixels, color="bgr")


def test_the_name_is_the_path_or_url_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture()))
    url = server.serve("/a.png", path.read_bytes())
    assert load_image("~/a.png").name == "~/a.png"
    assert load_image(path).name == str(path)
    assert load_image(url).name == url
    assert load_image(path.read_bytes()).name == ""
    assert load_image(picture()).name == ""
    with Image.open(path) as image:
        assert load_image(image).name == ""


def test_a_missing_file_is_named_with_close_names(tmp_path: Path) -> None:
    (tmp_path / "Street_01.jpg").write_bytes(encode(picture(), "JPEG"))
    with pytest.raises(ImageError, match=r"street_1\.jpg.*Did you mean 'Street_01\.jpg'"):
        load_image(tmp_path / "street_1.jpg")
    with pytest.raises(ImageError, match="no file.*working directory|no file.*relative paths"):
        load_image(tmp_path / "zzzzz")
    with pytest.raises(ImageError, match="no folder"):
        load_image(tmp_path / "nowhere" / "street.jpg")


@pytest.mark.parametrize(
    ("path", "advice"), [("*.nothing", r"stream\(\)"), ("s3://bucket/a.jpg", "https://"), ("", "no file ''")]
)
def test_paths_that_cannot_be_files(path: str, advice: str) -> None:
    with pytest.raises(ImageError, match=advice):
        load_image(path)


def test_texts_that_are_no_path_are_cut_in_the_message() -> None:
    with pytest.raises(ImageError) as found:
        load_image("A" * 100_000)
    assert len(str(found.value)) < 1000
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("a\0b.jpg")


def test_a_folder_belongs_to_stream(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"folder.*stream\(\)"):
        load_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(picture()))
    path.chmod(0)
    with pytest.raises(ImageError, match="secret.png.*ermission"):
        load_image(path)


def test_urls_are_fetched_with_a_name_of_our_own(server: Server) -> None:
    url = server.serve("/a.png", encode(picture()))
    assert_pixels(url, picture())
    assert_pixels(url.replace("http://", "HTTP://"), picture())
    assert server.agents == [f"solo-infer/{__version__}"] * 2


def test_urls_may_hold_blanks_umlauts_and_queries(server: Server) -> None:
    server.serve("/a%20b%C3%A9.png?size=1%2C2&x=%C3%BC", encode(picture()))
    assert_pixels(server.url + "/a b\u00e9.png?size=1%2C2&x=\u00fc#part", picture())


def test_redirects_are_followed(server: Server) -> None:
    server.serve("/new.png", encode(picture()))
    old = server.serve("/old.png", b"", status=302, Location="/new.png")
    assert_pixels(old, picture())


@pytest.mark.parametrize("status", [403, 404, 500])
def test_http_errors_are_told(server: Server, status: int) -> None:
    url = server.serve("/a.png", b"sorry", status=status)
    with pytest.raises(ImageError, match=rf"a\.png.*HTTP {status}"):
        load_image(url)


def test_a_page_instead_of_a_picture_is_told(server: Server) -> None:
    url = server.serve("/a.png", b"<html>log in</html>", **{"Content-Type": "text/html"})
    with pytest.raises(ImageError, match=r"a\.png.*text/html.*not an image"):
        load_image(url)


@pytest.mark.parametrize("announced", [True, False])
def test_downloads_are_limited(server: Server, monkeypatch: pytest.MonkeyPatch, announced: bool) -> None:
    data = encode(picture())
    headers = {} if announced else {"Content-Length": ""}
    url = server.serve("/a.png", data, **headers)
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", len(data) - 1)
    with pytest.raises(ImageError, match="larger than"):
        load_image(url)
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", len(data))
    assert_pixels(url, picture())


def test_downloads_cut_short_are_refused(server: Server) -> None:
    data = encode(picture())
    url = server.serve("/a.png", data[:-40], **{"Content-Length": str(len(data))})
    with pytest.raises(ImageError, match=r"a\.png"):
        load_image(url)


def test_a_silent_server_times_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.1")
    silent = server.serve("/a.png", b"", silent=True)
    with pytest.raises(ImageError, match="cannot be fetched.*timed out"):
        load_image(silent)
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="SOLO_INFER_TIMEOUT"):
        load_image(silent)


@pytest.mark.parametrize("url", ["http://", "http://[::1/a.png", "http://127.0.0.1:port/a", "http://a b/c"])
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match="cannot be fetched"):
        load_image(url)


def test_a_port_nobody_listens_on_is_told(server: Server) -> None:
    server.close()
    with pytest.raises(ImageError, match="cannot be fetched.*refused"):
        load_image(f"{server.url}/a.png")


@pytest.mark.parametrize("variable", ["SOLO_INFER_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode_opens_no_socket(
    server: Server, monkeypatch: pytest.MonkeyPatch, variable: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "1")
    url = server.serve("/a.png", encode(picture()))
    with pytest.raises(OfflineError, match=r"a\.png"):
        load_image(url)
    assert server.agents == []
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture()))
    assert_pixels(path, picture())


@pytest.mark.parametrize(
    "source",
    ["a.jpg", "*.jpg", Path("a"), b"", bytearray(), memoryview(b""), Image.new("L", (1, 1)), picture()]
    + [torch.zeros(1)],
    ids=lambda source: type(source).__name__,
)
def test_single_sources(source: Any) -> None:
    assert is_single_source(source)


@pytest.mark.parametrize("source", [["a.jpg"], ("a.jpg",), iter(["a.jpg"]), None, 3, {"a.jpg"}])
def test_what_is_no_single_source(source: Any) -> None:
    assert not is_single_source(source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "c.webp", "notes.txt", "._a.png", ".hidden.jpg", "sub/d.jpg", "sub/e.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never decoded")
    (tmp_path / "photos" / "folder.png").mkdir()
    return tmp_path / "photos"


def test_a_folder_yields_its_images_sorted(folder: Path) -> None:
    expected = [str(folder / name) for name in ("a.png", "b.JPG", "c.webp")]
    assert list(iterate_sources(folder)) == expected
    assert list(iterate_sources(str(folder))) == expected


def test_a_glob_yields_the_files_that_match_sorted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(iterate_sources(str(folder / "*.png"))) == [str(folder / "a.png")]
    assert list(iterate_sources(folder / "**" / "*.jpg")) == [str(folder / "sub" / "d.jpg")]
    assert list(iterate_sources(str(folder / "**" / "*"))) == [
        str(folder / name) for name in ("a.png", "b.JPG", "c.webp", "notes.txt", "sub/d.jpg", "sub/e.txt")
    ]
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert list(iterate_sources("~/photos/[a-b].*")) == [str(folder / name) for name in ("a.png", "b.JPG")]


def test_an_existing_file_is_no_glob_pattern(tmp_path: Path) -> None:
    path = tmp_path / "img[1].png"
    path.write_bytes(encode(picture()))
    assert list(iterate_sources(path)) == [path]
    assert_pixels(path, picture())


@pytest.mark.parametrize("name", ["sub/*.png", "nowhere/*"])
def test_a_glob_without_a_match_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ImageError, match="No file matches"):
        iterate_sources(str(folder / name))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ImageError, match=r"No image in folder.*\.jpg.*\*\*"):
        iterate_sources(tmp_path)


@pytest.mark.parametrize("source", ["http://x/a?b=[1].jpg", "missing.jpg", b"x", picture(), torch.zeros(1)])
def test_a_single_source_yields_itself(source: Any) -> None:
    found = list(iterate_sources(source))
    assert len(found) == 1 and found[0] is source


def test_iterables_are_passed_through_lazily() -> None:
    taken = []

    def sources() -> Iterator[str]:
        for name in ("b.jpg", "a.jpg", "c.jpg"):
            taken.append(name)
            yield name

    stream = iterate_sources(sources())
    assert taken == []
    assert next(stream) == "b.jpg" and taken == ["b.jpg"]
    assert list(stream) == ["a.jpg", "c.jpg"]
    assert list(iterate_sources(["b.jpg", "a.jpg"])) == ["b.jpg", "a.jpg"]
    assert list(iterate_sources([])) == []


@pytest.mark.parametrize("source", [None, 3, object()])
def test_what_is_no_source_at_all_is_refused(source: Any) -> None:
    with pytest.raises(ImageError, match=type(source).__name__):
        iterate_sources(source)


def test_suffixes_are_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
