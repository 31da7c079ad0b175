"""Drawn videos: times, sizes, encoders, errors."""

import builtins
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from helpers.results import HEIGHT, WIDTH, make_result

from solo_infer.data.video import read_frames
from solo_infer.data.video_sources import Video
from solo_infer.errors import ImageError, ResultError, WeightsError
from solo_infer.results import video_writer
from solo_infer.results.video_writer import VideoWriter, is_own_video

av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'solo-infer[video]')")


def frames_at(times, source="clip.mp4", **changes):
    return [
        make_result(source=source, frame_index=index, frame_time=float(time), **changes)
        for index, time in enumerate(times)
    ]


def write(path, results, **options):
    with VideoWriter(path, **options) as writer:
        for result in results:
            writer.add(result)
    return path


def times_of(path):
    return [frame.frame_time for frame in read_frames(Video(path))]


@pytest.fixture(params=["libx264", "mpeg4"])
def encoder(request, monkeypatch):
    ticks = video_writer._ENCODERS[request.param]
    monkeypatch.setattr(video_writer, "_ENCODERS", {"not_there": 1000, request.param: ticks})
    return request.param


@pytest.mark.parametrize("extension", ["mp4", "mov", "m4v", "mkv"])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(8)])
def test_rate_of_the_source(tmp_path, extension, rate):
    path = write(tmp_path / f"a.{extension}", frames_at(index / rate for index in range(12)))
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264" and stream.average_rate == rate
        assert container.duration / 1e6 == pytest.approx(12 / rate, abs=2e-3)
        assert (stream.width, stream.height) == (WIDTH + 1, HEIGHT)
    assert times_of(path) == pytest.approx([float(index / rate) for index in range(12)], abs=1e-3)


def test_variable_rate(tmp_path, encoder):
    times = [0, 0.1, 0.15, 0.5, 2.0, 2.1, 5.0]
    path = write(tmp_path / "a.mp4", frames_at(times))
    assert times_of(path) == pytest.approx(times, abs=1e-3)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == {"libx264": "h264"}.get(encoder, encoder)


def test_later_start_several_videos_and_photos(tmp_path):
    results = [*frames_at([3.0, 3.1, 3.2]), *frames_at([0, 0.5], "b.mp4"), *frames_at([0, 0.5], "b.mp4")]
    results += [make_result(source="photo.jpg")] * 2
    expected = [0, 0.1, 0.2, 0.3, 0.8, 1.3, 1.8, 2.3, 2.8]
    assert times_of(write(tmp_path / "a.mp4", results)) == pytest.approx(expected, abs=1e-3)


def test_photos_have_the_given_rate(tmp_path):
    path = write(tmp_path / "a.mp4", [make_result()] * 4, frame_rate=2)
    assert times_of(path) == [0, 0.5, 1.0, 1.5]
    with av.open(str(path)) as container:
        assert container.duration == 2_000_000


def test_one_frame(tmp_path):
    assert times_of(write(tmp_path / "a.mp4", frames_at([0]))) == [0]


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (200, 120, 30)])
def test_colors(tmp_path, encoder, color):
    image = np.full((HEIGHT, WIDTH, 3), color, np.uint8)
    path = write(tmp_path / "a.mp4", frames_at([0, 1], image=image), min_score=1.0)
    for frame in read_frames(Video(path)):
        assert np.abs(frame.pixels.astype(int) - color).max() < 12


def test_instances_are_drawn_from_the_threshold(tmp_path):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    def brightness(**options):
        path = write(tmp_path / "a.mp4", frames_at([0], image=image), **options)
        return next(read_frames(Video(path))).pixels.mean()

    assert brightness() == brightness(min_score=0.3) > brightness(min_score=0.6) > 1
    assert brightness(min_score=0.95) < 1
    assert brightness(boxes=True) > brightness()


def test_color_of_a_class_does_not_depend_on_the_order(monkeypatch):
    colors = []
    monkeypatch.setattr(
        video_writer, "draw_instances", lambda image, **options: colors.append(options["colors"])
    )
    writer = VideoWriter("a.mp4", min_score=0.2)
    result = make_result()
    writer._draw(result)
    writer._draw(result[[1, 0]])
    assert colors == [[1, 0, 1, 2], [0, 1]]


def test_frames_of_another_size(tmp_path):
    small = make_result(image=np.full((HEIGHT, WIDTH, 3), 255, np.uint8), frame_index=0, frame_time=0.0)
    large = replace(small, image=np.full((40, 30, 3), 255, np.uint8), image_size=(40, 30), frame_time=0.1)
    large = large[[]]
    large = replace(large, packed_masks=large.packed_masks.new_zeros(0, 40, 4))
    path = write(tmp_path / "a.mp4", [small, large])
    first, second = (frame.pixels for frame in read_frames(Video(path)))
    assert first.shape == second.shape == (HEIGHT, WIDTH + 1, 3)
    assert second[:, :5].mean() < 20 < second[:, 13:17].mean()  # black beside the scaled frame


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ImageError("the source ended")])
def test_interrupted_video_can_be_played(tmp_path, error):
    path = tmp_path / "a.mp4"
    with pytest.raises(type(error)), VideoWriter(path) as writer:
        for result in frames_at([0, 0.1, 0.2]):
            writer.add(result)
        raise error
    assert len(times_of(path)) == 3
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_other_errors_leave_the_previous_file(tmp_path, count):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"previous")
    with pytest.raises(WeightsError), VideoWriter(path) as writer:
        for result in frames_at([0, 0.1, 0.2])[:count]:
            writer.add(result)
        raise WeightsError("no network")
    assert path.read_bytes() == b"previous"
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]


def test_no_frame_no_file(tmp_path):
    write(tmp_path / "a.mp4", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_source_is_not_overwritten(tmp_path, link):
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"frames")
    path = source
    if link:
        path = tmp_path / "link.mp4"
        path.symlink_to(source)
    with pytest.raises(ResultError, match="would overwrite"):
        write(path, frames_at([0], str(source)))
    assert source.read_bytes() == b"frames"


@pytest.mark.parametrize("name", ["a.avi", "a", "a.webm", "a.jpg"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(ResultError, match=r"\.mp4, \.m4v, \.mov, \.mkv"):
        VideoWriter(tmp_path / name)


@pytest.mark.parametrize("options", [{"frame_rate": 0}, {"frame_rate": float("nan")}, {"min_score": 2}])
def test_invalid_options(tmp_path, options):
    with pytest.raises(ResultError, match="expected a number"):
        VideoWriter(tmp_path / "a.mp4", **options)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for path in (tmp_path / "file" / "a.mp4", tmp_path / "folder.mp4"):
        with pytest.raises(ResultError, match=r"(cannot be written|is a folder)"), VideoWriter(path):
            pass


def test_result_without_image(tmp_path):
    with pytest.raises(ResultError, match="no image"), VideoWriter(tmp_path / "a.mp4") as writer:
        writer.add(make_result(image=None))
    assert not list(tmp_path.iterdir())


def test_without_pyav_or_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(video_writer, "_ENCODERS", {"not_there": 1000})
    with pytest.raises(ResultError, match="none of the encoders not_there"), VideoWriter(tmp_path / "a.mp4"):
        pass
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ResultError, match=r"solo-infer\[video\]"), VideoWriter(tmp_path / "a.mp4"):
        pass


def test_own_videos(tmp_path):
    other = tmp_path / "other.mp4"
    with av.open(str(other), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    text = tmp_path / "text.mp4"
    text.write_bytes(b"text")
    own = [write(tmp_path / f"own.{extension}", frames_at([0])) for extension in ("mp4", "mkv", "mov")]
    files = [*own, other, text, tmp_path / "none.mp4"]
    assert [is_own_video(path) for path in files] == [True, True, True, False, False, False]
