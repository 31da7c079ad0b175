"""Videos over the network, and cameras."""

import os
import socket
import threading
import time

import pytest
from helpers.faulty_server import chunked, content, cut_off, redirect, reset, stall, status
from helpers.videos import frame_pixels, frames_of, make_clip, numbers, read_until_error

from solo_infer.data import video as video_module
from solo_infer.data.prefetch import prefetch_images
from solo_infer.data.video_sources import Video
from solo_infer.errors import ImageError, OfflineError
from solo_infer.runtime import environment

av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'solo-infer[video]')")


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Return the bytes of a video that is larger than the buffers of a connection."""
    path = tmp_path_factory.mktemp("big") / "clip.mkv"
    return make_clip(path, 24, size=(320, 240), codec="mpeg4").read_bytes()


def test_stream_over_http(server, big):
    frames = frames_of(server.at("/clip.mkv", content(big)))
    assert numbers(frames) == list(range(24))
    assert server.requests[0].user_agent == environment.USER_AGENT


@pytest.mark.parametrize("kind", ["dropped", "without length", "silent"])
def test_connection_that_fails_in_mid_stream(server, big, monkeypatch, kind):
    monkeypatch.setenv(environment.TIMEOUT, "1")
    half = len(big) * 6 // 10
    behavior = {
        "dropped": cut_off(big, half),
        "without length": chunked(big[:half], complete=False),
        "silent": stall(big, half),
    }[kind]
    start = time.monotonic()
    # Later requests for the rest of the file fail, too.
    frames, message = read_until_error(server.at("/clip.mkv", behavior, reset()))
    assert 5 < len(frames) < 24 and numbers(frames) == list(range(len(frames)))
    assert f"ended after {len(frames)} frames" in message
    assert ("sent nothing for 1 s" in message) == (kind == "silent")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        (status(404), "404"),
        (reset(), "cannot be opened"),
        (redirect("file:///etc/passwd"), "cannot be opened"),
        (content(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n"), "."),
        (stall(b"x" * 10, 0), "sent nothing for 1 s"),
    ],
    ids=["404", "reset", "redirect to a file", "playlist of a file", "silent"],
)
def test_servers_without_a_video(server, monkeypatch, behavior, message):
    monkeypatch.setenv(environment.TIMEOUT, "1")
    frames, error = read_until_error(server.at("/live.m3u8", behavior))
    assert not frames and message in error and "/live.m3u8" in error


def test_network_stream_that_stops(monkeypatch):
    """MPEG-TS over UDP, as some cameras send it; nothing tells the receiver of its end."""
    monkeypatch.setenv(environment.TIMEOUT, "1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{probe.getsockname()[1]}"
    stop = threading.Event()

    def send():
        with av.open(f"{address}?pkt_size=1316", "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.gop_size = 5
            while not stop.wait(0.005):
                frame = av.VideoFrame.from_ndarray(frame_pixels(0), format="rgb24")
                container.mux(stream.encode(frame))

    sender = threading.Thread(target=send)
    sender.start()
    frames = []
    with pytest.raises(ImageError, match="sent nothing for 1 s"):
        for image, _ in prefetch_images(Video(address, options={"analyzeduration": "200000"}), "rgb", None):
            frames.append(image)
            if len(frames) == 5:
                stop.set()
    sender.join()
    assert len(frames) >= 5 and frames[0].pixels.shape == (48, 64, 3) and frames[0].name == address


def test_playlist_of_segments(server, tmp_path):
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.8,\nclip.ts\n#EXT-X-ENDLIST\n"
    server.at("/clip.ts", content(make_clip(tmp_path / "clip.ts").read_bytes()))
    assert numbers(frames_of(server.at("/all.m3u8", content(playlist.encode())))) == list(range(20))


def test_credentials_are_not_shown(monkeypatch):
    monkeypatch.setenv(environment.TIMEOUT, "1")
    _, message = read_until_error("http://me:secret@127.0.0.1:9/clip.mp4")
    assert "secret" not in message and "127.0.0.1:9" in message


def test_offline_mode(monkeypatch):
    monkeypatch.setenv(environment.OFFLINE, "1")
    with pytest.raises(OfflineError, match=r"rtsp://camera/1"):
        next(prefetch_images("rtsp://camera/1", "rgb", None))


def test_address_whose_lookup_hangs(monkeypatch):
    release = threading.Event()
    monkeypatch.setenv(environment.TIMEOUT, "1")
    monkeypatch.setattr("solo_infer.data.prefetch.silence_limit", lambda video: 0.2)
    monkeypatch.setattr(video_module, "_open", lambda *args: release.wait(20))
    _, message = read_until_error("rtsp://camera/1")
    release.set()
    assert "sent nothing" in message


@pytest.fixture
def camera(monkeypatch):
    """Replace the cameras by FFmpeg's virtual one, which is endless and faster than any consumer."""
    monkeypatch.setattr(
        video_module, "_camera_input", lambda *args: ("testsrc=size=64x48:rate=25", "lavfi", {})
    )


def test_camera_gives_the_newest_frame(camera):
    images = prefetch_images(0, "rgb", None)
    seen = [next(images).image]
    for _ in range(3):
        time.sleep(0.1)
        seen.append(next(images).image)
    images.close()
    indices = [image.frame_index for image in seen]
    assert indices == sorted(indices) and indices[-1] > 10  # frames between were dropped
    assert {image.name for image in seen} == {"camera://0"}
    for image in seen:
        assert image.frame_time == pytest.approx(image.frame_index / 25)


def test_camera_whose_frames_must_not_be_dropped(camera):
    images = prefetch_images(Video(0, live=False), "rgb", None, frame_stride=2)
    assert [next(images).image.frame_index for _ in range(4)] == [0, 2, 4, 6]
    images.close()


@pytest.mark.skipif(not os.path.isdir("/dev"), reason="no device files")
def test_missing_camera():
    assert "Cameras of this machine" in read_until_error(98)[1]
    assert "cannot be opened" in read_until_error("/dev/video98")[1]


@pytest.mark.parametrize(
    ("platform", "address", "format_name"),
    [("linux", "/dev/video1", "v4l2"), ("darwin", "1:none", "avfoundation"), ("win32", "video=USB", "dshow")],
)
def test_cameras_of_all_systems(monkeypatch, platform, address, format_name):
    monkeypatch.setattr("sys.platform", platform)
    devices = [("Mic", ["audio"]), ("Front", ["video"]), ("USB", ["video", "audio"])]
    cameras = [type("Device", (), {"name": name, "media_types": types}) for name, types in devices]
    fake = type("av", (), {"enumerate_input_devices": staticmethod(lambda name: cameras)})
    assert video_module._camera_input(fake, 1, "camera://1")[:2] == (address, format_name)
    if platform == "win32":
        with pytest.raises(ImageError, match="has 2 cameras"):
            video_module._camera_input(fake, 2, "camera://2")
