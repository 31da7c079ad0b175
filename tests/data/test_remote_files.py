"""Images of object stores and other file systems, by fsspec."""

import io

import fsspec
import numpy as np
import pytest
from PIL import Image

from solo_infer import ImageError, OfflineError, load_image
from solo_infer.data import remote_files
from solo_infer.data.remote_files import is_remote, match_remote, read_remote
from solo_infer.data.sources import check_source, iterate_sources
from solo_infer.runtime import environment


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def bucket():
    """Return the URI of a folder in memory with images and other files."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    for number, name in enumerate(("b.png", "a.PNG", ".hidden.png", "notes.txt", "deep/c.png", "deep/d.png")):
        files.pipe_file(f"/bucket/{name}", png(number))
    yield "memory://bucket"
    files.store.clear()


@pytest.mark.parametrize("uri", ["s3://b/a.jpg", "gs://b", "memory://a", "file:///a.jpg", "S3://b/a.jpg"])
def test_uris_of_file_systems(uri):
    assert is_remote(uri)


@pytest.mark.parametrize(
    "text",
    ["a.jpg", "", "http://a/b.jpg", "HTTPS://a", "rtsp://a", "camera://0", "abc://a", r"C:\a", "s3:/a"]
    + ["zip://a.jpg::s3://b/c.zip", "simplecache::s3://b/a.jpg"],
)
def test_paths_and_urls_are_not_remote(text):
    assert not is_remote(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ["a.PNG", "b.png"]),
        ("/", ["a.PNG", "b.png"]),
        ("/*.png", [".hidden.png", "b.png"]),
        ("/**/*.png", [".hidden.png", "b.png", "deep/c.png", "deep/d.png"]),
        ("/deep/[cd].png", ["deep/c.png", "deep/d.png"]),
    ],
)
def test_folders_and_patterns(bucket, name, expected):
    names = [uri.replace("memory:///", "memory://") for uri in iterate_sources(f"{bucket}{name}")]
    assert names == [f"{bucket}/{end}" for end in expected]
    assert np.array_equal(load_image(names[-1]).pixels, load_image(read_remote(names[-1])).pixels)


def test_a_file_needs_no_request(monkeypatch):
    monkeypatch.setattr(remote_files, "file_system", lambda uri: pytest.fail("a request"))
    assert match_remote("s3://bucket/a.jpg", {".jpg"}) == ["s3://bucket/a.jpg"]
    assert check_source("s3://bucket/a.jpg") == 0


def test_image_has_the_name_and_pixels_of_its_file(bucket, tmp_path):
    path = tmp_path / "c.png"
    path.write_bytes(png(4))
    for uri in (f"{bucket}/deep/c.png", path.as_uri()):
        image = load_image(uri)
        assert image.name == uri
        assert np.array_equal(image.pixels, load_image(path).pixels)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/missing.png", "does not exist"),
        ("/notes.txt/*.jpg", "No file matches"),
        ("/nothing/**/*.png", "No file matches"),
        ("/deep/empty*", "No file matches"),
    ],
)
def test_missing_files(bucket, name, message):
    with pytest.raises(ImageError, match=message):
        load_image(next(iterate_sources(f"{bucket}{name}")))


def test_folder_without_images(bucket):
    fsspec.filesystem("memory").pipe_file("/bucket/texts/a.txt", b"a")
    with pytest.raises(ImageError, match="No file with a suffix of an image is in the folder"):
        iterate_sources(f"{bucket}/texts")


def test_large_file_is_refused(bucket, monkeypatch):
    monkeypatch.setattr(remote_files, "MAX_BYTES", 20)
    with pytest.raises(ImageError, match="larger than the limit of 20 bytes"):
        read_remote(f"{bucket}/b.png")


def test_offline_mode_refuses_the_network_only(bucket, monkeypatch):
    monkeypatch.setenv(environment.OFFLINE, "1")
    assert load_image(f"{bucket}/b.png").pixels.shape == (6, 8, 3)
    for call in (load_image, lambda uri: iterate_sources(f"{uri}*")):
        with pytest.raises(OfflineError, match="offline mode is on"):
            call("s3://bucket/a.jpg")


def test_package_that_is_missing_is_named(monkeypatch):
    def missing(uri):
        raise ImportError("Please install s3fs")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ImageError, match="needs a package that is not installed: Please install s3fs"):
        load_image("s3://bucket/a.jpg")


@pytest.mark.parametrize("error", [PermissionError("denied"), RuntimeError("\x1b[31mred"), TimeoutError()])
def test_errors_of_file_systems_are_image_errors(monkeypatch, error):
    def fail(uri):
        raise error

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(ImageError, match="cannot be read") as caught:
        load_image("gs://user:secret@bucket/a.jpg")
    assert "\x1b" not in str(caught.value) and "secret" not in str(caught.value)
