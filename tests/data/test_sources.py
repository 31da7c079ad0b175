"""Image sources: paths, URLs, folders, glob patterns and iterables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.image_sources import ImageServer, assert_pixels, encode, random_pixels
from PIL import Image

from solo_infer._version import __version__
from solo_infer.data import sources
from solo_infer.data.images import load_image
from solo_infer.data.sources import IMAGE_SUFFIXES, check_source, is_single_source, iterate_sources
from solo_infer.errors import ConfigError, ImageError, OfflineError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    monkeypatch.setenv("no_proxy", "*")
    for variable in ("SOLO_INFER_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SOLO_INFER_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    running = ImageServer()
    yield running
    running.close()


def test_all_source_types_give_identical_pixels(tmp_path: Path, server: ImageServer) -> None:
    pixels = random_pixels()
    data = encode(pixels)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    chw = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    for source in (
        path,
        str(path),
        server.serve("/image.png", data),
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


def test_name_is_path_or_url_as_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ImageServer
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = tmp_path / "a.png"
    path.write_bytes(encode(random_pixels()))
    url = server.serve("/a.png", path.read_bytes())
    assert load_image("~/a.png").name == "~/a.png"
    assert load_image(path).name == str(path)
    assert load_image(url).name == url
    assert load_image(path.read_bytes()).name == ""
    assert load_image(random_pixels()).name == ""
    with Image.open(path) as image:
        assert load_image(image).name == ""


def test_missing_file_raises_error_with_similar_names(tmp_path: Path) -> None:
    (tmp_path / "Street_01.jpg").write_bytes(encode(random_pixels(), "JPEG"))
    with pytest.raises(ImageError, match=r"street_1\.jpg.*Did you mean 'Street_01\.jpg'"):
        load_image(tmp_path / "street_1.jpg")
    with pytest.raises(ImageError, match="does not exist.*working directory|does not exist.*Relative paths"):
        load_image(tmp_path / "zzzzz")
    with pytest.raises(ImageError, match="Folder .*nowhere.* does not exist"):
        load_image(tmp_path / "nowhere" / "street.jpg")


@pytest.mark.parametrize(
    ("path", "advice"),
    [("*.nothing", r"stream\(\)"), ("abc://bucket/a.jpg", "https://"), ("", "File '' does not exist")],
)
def test_path_that_cannot_be_a_file_raises_error_with_advice(path: str, advice: str) -> None:
    with pytest.raises(ImageError, match=advice):
        load_image(path)


def test_long_text_is_shortened_in_message() -> None:
    with pytest.raises(ImageError) as caught:
        load_image("A" * 100_000)
    assert len(str(caught.value)) < 1000
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("a\0b.jpg")


def test_folder_raises_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"folder.*stream\(\)"):
        load_image(tmp_path)


def test_check_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Street_01.jpg").write_bytes(b"never opened")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for source in (tmp_path / "Street_01.jpg", "~/Street_01.jpg", tmp_path, "http://localhost/missing.jpg"):
        check_source(source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("street_1.jpg", r"File .*street_1\.jpg' does not exist\. Did you mean 'Street_01\.jpg'\?$"),
        ("nowhere/street.jpg", "Folder .*nowhere.* does not exist"),
        ("abc://bucket/a.jpg", "https://"),
        ("*.nothing", r"stream\(\)"),
        ("a\0b.jpg", "cannot be opened"),
    ],
)
def test_check_source_raises_the_error_of_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Street_01.jpg").touch()
    for source in (name, os.path.join(tmp_path, name)):
        with pytest.raises(ImageError, match=message) as checked:
            check_source(source)
        with pytest.raises(ImageError) as loaded:
            load_image(source)
        assert str(checked.value) == str(loaded.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_raises_error(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(random_pixels()))
    path.chmod(0)
    with pytest.raises(ImageError, match="secret.png.*ermission"):
        load_image(path)


def test_urls_are_fetched_with_user_agent(server: ImageServer) -> None:
    url = server.serve("/a.png", encode(random_pixels()))
    assert_pixels(url, random_pixels())
    assert_pixels(url.replace("http://", "HTTP://"), random_pixels())
    assert server.user_agents == [f"solo-infer/{__version__}"] * 2


def test_urls_with_spaces_umlauts_and_queries(server: ImageServer) -> None:
    server.serve("/a%20b%C3%A9.png?size=1%2C2&x=%C3%BC", encode(random_pixels()))
    assert_pixels(server.url + "/a b\u00e9.png?size=1%2C2&x=\u00fc#part", random_pixels())


def test_redirects_are_followed(server: ImageServer) -> None:
    server.serve("/new.png", encode(random_pixels()))
    old = server.serve("/old.png", b"", status=302, Location="/new.png")
    assert_pixels(old, random_pixels())


@pytest.mark.parametrize("status", [403, 404, 500])
def test_http_error_raises_error_with_status(server: ImageServer, status: int) -> None:
    url = server.serve("/a.png", b"sorry", status=status)
    with pytest.raises(ImageError, match=rf"a\.png.*HTTP {status}"):
        load_image(url)


def test_html_page_raises_error_with_content_type(server: ImageServer) -> None:
    url = server.serve("/a.png", b"<html>log in</html>", **{"Content-Type": "text/html"})
    with pytest.raises(ImageError, match=r"a\.png.*text/html.*not an image"):
        load_image(url)


@pytest.mark.parametrize("announced", [True, False])
def test_download_size_is_limited(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    data = encode(random_pixels())
    headers = {} if announced else {"Content-Length": ""}
    url = server.serve("/a.png", data, **headers)
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", len(data) - 1)
    with pytest.raises(ImageError, match="larger than"):
        load_image(url)
    monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", len(data))
    assert_pixels(url, random_pixels())


def test_truncated_download_raises_error(server: ImageServer) -> None:
    data = encode(random_pixels())
    url = server.serve("/a.png", data[:-40], **{"Content-Length": str(len(data))})
    with pytest.raises(ImageError, match=r"a\.png"):
        load_image(url)


def test_silent_server_times_out(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.1")
    silent = server.serve("/a.png", b"", silent=True)
    with pytest.raises(ImageError, match="cannot be fetched.*timed out"):
        load_image(silent)
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="SOLO_INFER_TIMEOUT"):
        load_image(silent)


@pytest.mark.parametrize("url", ["http://", "http://[::1/a.png", "http://127.0.0.1:port/a", "http://a b/c"])
def test_invalid_url_raises_error(url: str) -> None:
    with pytest.raises(ImageError, match="cannot be fetched"):
        load_image(url)


def test_refused_connection_raises_error(server: ImageServer) -> None:
    server.close()
    with pytest.raises(ImageError, match="cannot be fetched.*refused"):
        load_image(f"{server.url}/a.png")


@pytest.mark.parametrize("variable", ["SOLO_INFER_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode_opens_no_socket(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch, variable: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "1")
    url = server.serve("/a.png", encode(random_pixels()))
    with pytest.raises(OfflineError, match=r"a\.png"):
        load_image(url)
    assert server.user_agents == []
    path = tmp_path / "a.png"
    path.write_bytes(encode(random_pixels()))
    assert_pixels(path, random_pixels())


@pytest.mark.parametrize(
    "source",
    ["a.jpg", "*.jpg", Path("a"), b"", bytearray(), memoryview(b""), Image.new("L", (1, 1)), random_pixels()]
    + [torch.zeros(1)],
    ids=lambda source: type(source).__name__,
)
def test_single_source_types(source: Any) -> None:
    assert is_single_source(source)


@pytest.mark.parametrize("source", [["a.jpg"], ("a.jpg",), iter(["a.jpg"]), None, 3, {"a.jpg"}])
def test_other_types_are_not_single_sources(source: Any) -> None:
    assert not is_single_source(source)


@pytest.mark.parametrize("content_type", ["video/mp4", "multipart/x-mixed-replace; boundary=frame"])
def test_video_at_the_url_of_an_image(server: ImageServer, content_type: str) -> None:
    url = server.serve("/stream", b"frames", **{"Content-Type": content_type})
    with pytest.raises(ImageError, match=r"is a video .*solo_infer\.Video"):
        load_image(url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "c.webp", "notes.txt", "._a.png", ".hidden.jpg", "sub/d.jpg", "sub/e.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never decoded")
    (tmp_path / "photos" / "folder.png").mkdir()
    return tmp_path / "photos"


def test_folder_yields_its_images_sorted(folder: Path) -> None:
    expected = [str(folder / name) for name in ("a.png", "b.JPG", "c.webp")]
    assert list(iterate_sources(folder)) == expected
    assert list(iterate_sources(str(folder))) == expected


def test_glob_pattern_yields_matching_files_sorted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(iterate_sources(str(folder / "*.png"))) == [str(folder / "a.png")]
    assert list(iterate_sources(folder / "**" / "*.jpg")) == [str(folder / "sub" / "d.jpg")]
    assert list(iterate_sources(str(folder / "**" / "*"))) == [
        str(folder / name) for name in ("a.png", "b.JPG", "c.webp", "notes.txt", "sub/d.jpg", "sub/e.txt")
    ]
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert list(iterate_sources("~/photos/[a-b].*")) == [str(folder / name) for name in ("a.png", "b.JPG")]


def test_existing_file_is_not_a_glob_pattern(tmp_path: Path) -> None:
    path = tmp_path / "img[1].png"
    path.write_bytes(encode(random_pixels()))
    assert list(iterate_sources(path)) == [path]
    assert_pixels(path, random_pixels())


@pytest.mark.parametrize("name", ["sub/*.png", "nowhere/*"])
def test_glob_pattern_without_match_raises_error(folder: Path, name: str) -> None:
    with pytest.raises(ImageError, match="No file matches"):
        iterate_sources(str(folder / name))


def test_folder_without_images_raises_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ImageError, match=r"No image in folder.*\.jpg.*\*\*"):
        iterate_sources(tmp_path)


@pytest.mark.parametrize(
    "source", ["http://x/a?b=[1].jpg", "missing.jpg", b"x", random_pixels(), torch.zeros(1)]
)
def test_single_source_yields_itself(source: Any) -> None:
    items = list(iterate_sources(source))
    assert len(items) == 1 and items[0] is source


def test_iterables_are_consumed_lazily() -> None:
    consumed = []

    def file_names() -> Iterator[str]:
        for name in ("b.jpg", "a.jpg", "c.jpg"):
            consumed.append(name)
            yield name

    stream = iterate_sources(file_names())
    assert consumed == []
    assert next(stream) == "b.jpg" and consumed == ["b.jpg"]
    assert list(stream) == ["a.jpg", "c.jpg"]
    assert list(iterate_sources(["b.jpg", "a.jpg"])) == ["b.jpg", "a.jpg"]
    assert list(iterate_sources([])) == []


@pytest.mark.parametrize("source", [None, 2.5, True, object()])
def test_unknown_source_type_raises_error(source: Any) -> None:
    with pytest.raises(ImageError, match=type(source).__name__):
        iterate_sources(source)


def test_suffixes_are_lower_case_with_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
