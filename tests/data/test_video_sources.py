"""Names of videos, streams and cameras."""

from pathlib import Path

import numpy as np
import pytest

from solo_infer import Video, load_image
from solo_infer.data.sources import as_sources, check_source, iterate_sources
from solo_infer.data.video_sources import as_video, is_video
from solo_infer.errors import ImageError


@pytest.mark.parametrize(
    "source",
    [
        0,
        3,
        "clip.mp4",
        "CLIP.MOV",
        Path("folder/clip.mkv"),
        "https://example.com/clip.mp4?token=1#t=3",
        "http://example.com/live/index.m3u8",
        "http://camera/video.mjpg",
        "rtsp://user:secret@10.0.0.1:554/stream?channel=1",
        "RTSPS://camera/stream",
        "udp://239.0.0.1:1234",
        "srt://host:1",
        "camera://0",
        "/dev/video0",
        Video("http://camera/cgi-bin/mjpg"),
    ],
    ids=str,
)
def test_videos(source):
    assert is_video(source)
    assert list(iterate_sources(source)) == [source]


@pytest.mark.parametrize(
    "source",
    [
        "photo.jpg",
        "animation.gif",
        "mp4",
        "list.m3u8",
        "http://example.com/photo.jpg?name=clip.mp4",
        "http://[",
        "camera://front",
        "/dev/stdin",
        "0",
        True,
        1.0,
        None,
        b"clip.mp4",
        np.zeros((4, 4, 3), np.uint8),
        ["clip.mp4"],
    ],
    ids=str,
)
def test_other_sources(source):
    assert as_video(source) is None


@pytest.mark.parametrize(
    ("source", "live"),
    [
        (0, True),
        ("camera://1", True),
        ("/dev/video2", True),
        ("rtsp://camera/1", True),
        ("http://camera/1.mjpg", True),
        ("http://example.com/clip.mp4", False),
        ("clip.mp4", False),
        (Video("http://camera/video", live=True), True),
        (Video(0, live=False), False),
    ],
    ids=str,
)
def test_live_sources(source, live):
    assert as_video(source).is_live is live


def test_names_have_no_credentials():
    assert as_video("rtsp://me:secret@camera/1").name == "rtsp://***@camera/1"
    assert as_video("rtsp://me:secret@camera/1").address == "rtsp://me:secret@camera/1"
    assert (as_video(2).name, as_video(2).camera, as_video("camera://2").camera) == ("camera://2", 2, 2)
    assert as_video("strange@/name@.mp4").name == "strange@/name@.mp4"


@pytest.mark.parametrize(
    "attributes",
    [
        {"source": None},
        {"source": -1},
        {"source": True},
        {"source": b"clip.mp4"},
        {"source": "a", "live": 1},
        {"source": "a", "format": 3},
        {"source": "a", "options": {"video_size": 3}},
        {"source": "a", "options": [("a", "b")]},
    ],
    ids=str,
)
def test_attributes_of_wrong_types(attributes):
    with pytest.raises(ImageError, match="expected|is not a video"):
        Video(**attributes)


@pytest.mark.parametrize("source", ["clip.mp4", Path("clip.mp4"), 0, "rtsp://camera/1", Video("clip.mp4")])
@pytest.mark.parametrize("in_list", [False, True])
def test_call_refuses_a_video(source, in_list):
    with pytest.raises(ImageError, match=r"pass it to stream\(\)"):
        as_sources(["photo.jpg", source] if in_list else source)


@pytest.mark.parametrize("source", ["clip.mp4", Path("clip.mp4"), "rtsp://camera/1", Video(0)])
def test_load_image_refuses_a_video(source):
    with pytest.raises(ImageError, match=r"pass it to stream\(\)"):
        load_image(source)


def test_folders_and_patterns(tmp_path):
    for name in ("b.jpg", "a.mp4"):
        (tmp_path / name).touch()
    assert list(iterate_sources(tmp_path)) == [str(tmp_path / "b.jpg")]  # images only, as ever
    assert list(iterate_sources(str(tmp_path / "*"))) == [str(tmp_path / name) for name in ("a.mp4", "b.jpg")]


@pytest.mark.parametrize("source", ["camera://0", "/dev/video99", "rtsp://nowhere.invalid/1"])
def test_streams_are_not_looked_for_among_files(source):
    assert check_source(source) == 0
