"""Decoding of video files, which the tests make."""

import builtins
import itertools
import os
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from helpers.videos import MATRICES, cut, frames_of, make_clip, numbers, read_until_error, rotate

from solo_infer.data import video as video_module
from solo_infer.data.exif import upright
from solo_infer.data.prefetch import MAX_PREFETCHED, in_batches, prefetch_images
from solo_infer.data.video import count_frames, read_frames
from solo_infer.data.video_sources import Video
from solo_infer.errors import ImageError

pytest.importorskip("av", reason="PyAV is not installed (pip install 'solo-infer[video]')")
import av  # noqa: E402

FORMATS = {
    "mp4": "libx264",
    "mkv": "libx264",
    "mov": "mpeg4",
    "avi": "mpeg4",
    "ts": "libx264",
    "webm": "libvpx",
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {ext: make_clip(folder / f"clip.{ext}", codec=codec) for ext, codec in FORMATS.items()}


@pytest.mark.parametrize("extension", FORMATS)
def test_frames_of_all_formats(clips, extension):
    frames = frames_of(clips[extension])
    assert numbers(frames) == list(range(20)) == [frame.frame_index for frame in frames]
    assert [frame.frame_time for frame in frames] == pytest.approx(
        [index / 25 for index in range(20)], abs=1e-3
    )
    assert {frame.name for frame in frames} == {str(clips[extension])}
    for pixels in (frames[0].pixels, frames[-1].pixels):
        assert pixels.shape == (48, 64, 3) and pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous and pixels.flags.writeable


@pytest.mark.parametrize("stride", [1, 2, 7, 20, 100])
def test_frame_stride(clips, stride):
    frames = frames_of(clips["mp4"], frame_stride=stride)
    assert numbers(frames) == list(range(0, 20, stride)) == [frame.frame_index for frame in frames]
    assert frames[-1].frame_time == pytest.approx(frames[-1].frame_index / 25)
    assert count_frames(Video(clips["mp4"]), stride) == len(frames)


@pytest.mark.parametrize("extension", ["mp4", "avi", "mkv", "webm"])
def test_count_of_frames(clips, extension):
    assert count_frames(Video(clips[extension])) == 20


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_variable_rate(tmp_path, codec):
    times = [0, 0.1, 0.15, 0.5, 2.0, 2.1, 5.0]
    frames = frames_of(make_clip(tmp_path / "a.mp4", times=times, codec=codec))
    assert [frame.frame_time for frame in frames] == pytest.approx(times, abs=1e-3)
    assert numbers(frames) == list(range(7))


@pytest.mark.parametrize("orientation", MATRICES)
def test_orientation_of_phones(tmp_path, orientation):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32] = 255, (255, 0, 0), (0, 255, 0)
    path = make_clip(tmp_path / "a.mp4", size=(64, 48), frames=[pixels] * 3)
    rotate(path, orientation)
    for frame in frames_of(path):
        expected = upright(pixels, orientation)
        assert frame.pixels.shape == expected.shape
        assert np.abs(frame.pixels.astype(int) - expected).max() < 60


@pytest.mark.parametrize(
    ("matrix", "color_range", "yuv"),
    [(1, 1, (63, 102, 240)), (5, 1, (81, 90, 240)), (2, 1, (81, 90, 240)), (6, 2, (76, 84, 255))],
    ids=["HD", "SD", "unknown", "JPEG"],
)
def test_red_in_all_color_spaces(matrix, color_range, yuv):
    frame = av.VideoFrame(32, 16, "yuv420p")
    for plane, value in zip(frame.planes, yuv, strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, color_range
    pixels = video_module._pixels(frame, Video("clip.mp4"))
    assert pixels.shape == (16, 32, 3) and np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {}], ids=["faststart", "mkv"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_truncated_video_gives_the_frames_before(tmp_path, options, share):
    path = make_clip(tmp_path / ("a.mp4" if options else "a.mkv"), 40, **options)
    frames, message = read_until_error(cut(path, share))
    assert [frame.frame_index for frame in frames] == list(range(len(frames)))
    assert numbers(frames)[:-1] == [index % 28 for index in range(len(frames) - 1)]  # not a damaged last one
    assert 40 * share - 10 < len(frames) < 40 * share + 3
    assert f"ended after {len(frames)} frames" in message and "truncated" in message


@pytest.mark.parametrize("extension", ["avi", "webm", "mov"])
def test_truncated_video_of_other_formats(tmp_path, extension):
    options = {"movflags": "faststart"} if extension == "mov" else {}
    path = make_clip(tmp_path / f"a.{extension}", 40, codec=FORMATS[extension], **options)
    frames, message = read_until_error(cut(path))
    assert 10 < len(frames) < 30 and "truncated" in message


def test_index_is_cut_off(clips, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(clips["mp4"].read_bytes())
    frames, message = read_until_error(cut(path))
    assert not frames and "damaged or truncated" in message


def test_damage_in_the_middle_is_logged(tmp_path, caplog):
    path = make_clip(tmp_path / "a.mp4", 40)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1500] = bytes(1500)
    path.write_bytes(data)
    frames = frames_of(path)
    assert 35 < len(frames) <= 40 and frames[-1].frame_time == pytest.approx(39 / 25)
    assert "damaged packets left out" in caplog.text or len(frames) == 40


def test_batch_before_the_damage_is_complete(tmp_path):
    path = cut(make_clip(tmp_path / "a.mkv", 40))
    whole, _ = read_until_error(path)
    seen = []
    with pytest.raises(ImageError):
        for batch in in_batches(prefetch_images(path, "rgb", None), len(whole) - 1):
            seen += batch
    assert len(seen) == len(whole)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.mp4", b"", "not a video"),
        ("text.mp4", b"not a video" * 100, "not a video"),
        ("missing.mp4", None, "does not exist"),
        ("ftp://example.com/clip.mp4", None, "unknown scheme"),
    ],
)
def test_files_that_are_not_videos(tmp_path, monkeypatch, name, data, message):
    monkeypatch.chdir(tmp_path)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    frames, error = read_until_error(name)
    assert not frames and message in error and name in error


def test_sound_without_a_picture(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "no video stream" in read_until_error(str(path))[1]


def test_unknown_codec(clips, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(clips["mp4"].read_bytes().replace(b"avc1", b"zzzz"))
    assert "cannot decode" in read_until_error(path)[1]


def test_pipes_and_folders(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is a pipe" in read_until_error(str(tmp_path / "pipe.mp4"))[1]
    (tmp_path / "folder.mp4").mkdir()
    assert "is a folder" in read_until_error(Video(tmp_path / "folder.mp4"))[1]


def test_file_names_are_not_protocols(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pipe:0.mp4", "concat:a|b.mp4", "%03d.mp4", "-i.mp4", "ünï ☃.mp4"):
        (tmp_path / name).write_bytes(clips["mp4"].read_bytes())
        assert len(frames_of(name)) == 20, name


def test_frames_that_are_too_large(clips, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 64 * 48 // 2 - 1)
    assert "suspiciously large" in read_until_error(clips["mp4"])[1]


def test_without_pyav(clips, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "pip install 'solo-infer[video]'" in read_until_error(clips["mp4"])[1]


def test_lists_of_videos_and_images(clips, photo_path, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    source = [photo_path, clips["mp4"], str(broken), str(clips["avi"]), str(photo_path)]
    errors = []
    images = [image for image, _ in prefetch_images(source, "rgb", lambda *error: errors.append(error))]
    kinds = [
        (key, len(list(group))) for key, group in itertools.groupby(images, key=lambda image: image.name)
    ]
    names = [str(photo_path), str(clips["mp4"]), str(clips["avi"]), str(photo_path)]
    assert kinds == list(zip(names, (1, 20, 20, 1), strict=True))
    assert [name for name, _ in errors] == [str(broken)]
    assert images[0].frame_index is None and images[0].frame_time is None


def test_frames_are_decoded_ahead_in_a_bounded_queue(clips, monkeypatch):
    decoded, pixels = [], video_module._pixels

    def record(frame, video):
        decoded.append(threading.current_thread().name)
        return pixels(frame, video)

    monkeypatch.setattr(video_module, "_pixels", record)
    before = threading.active_count()
    images = prefetch_images(clips["mp4"], "rgb", None)
    next(images)
    time.sleep(0.2)
    assert 1 < len(decoded) <= 2 + MAX_PREFETCHED
    assert set(decoded) == {"solo_infer-decode"}
    images.close()
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_length(tmp_path):
    import tracemalloc

    pixels = [np.full((240, 320, 3), value, np.uint8) for value in (0, 255)]
    path = make_clip(tmp_path / "long.mp4", size=(320, 240), codec="mpeg4", frames=pixels * 150)
    tracemalloc.start()
    try:
        assert sum(1 for _ in prefetch_images(path, "rgb", None)) == 300
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * 240 * 320 * 3  # of 300 frames


def test_times_without_stamps_or_with_stamps_that_go_back(clips):
    reader = video_module._Reader(Video(clips["mp4"]))
    base = reader.stream.time_base
    stamps = [None, None, 10, 11, 3, 4]
    seconds = [
        reader.seconds(type("Frame", (), {"pts": None if stamp is None else round(stamp / base)}))
        for stamp in stamps
    ]
    reader.close()
    assert seconds[:2] == [0.0, 0.04] and all(b > a for a, b in itertools.pairwise(seconds))
    assert seconds[-1] - seconds[-2] == pytest.approx(1.0)


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 30, Fraction(60000, 1001), 12])
def test_times_that_a_format_rounds(tmp_path, rate):
    frames = frames_of(make_clip(tmp_path / "a.mkv", 30, rate=rate))
    assert [frame.frame_time for frame in frames] == pytest.approx(
        [index / float(rate) for index in range(30)]
    )


def test_reading_again_from_the_start(clips):
    assert [sum(1 for _ in read_frames(Video(clips["mp4"]))) for _ in range(2)] == [20, 20]
