"""``solo-infer predict`` with videos and cameras."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import assert_clear, files_below
from helpers.videos import cut, make_clip
from PIL import Image

from solo_infer.cli import predict
from solo_infer.cli import video as cli_video
from solo_infer.data import video as video_module
from solo_infer.data.video import read_frames
from solo_infer.data.video_sources import Video
from solo_infer.runtime.progress import progress_bar

pytest_plugins = ["helpers.command_line_fixtures"]
av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'solo-infer[video]')")

COUNT, RATE = 5, 12


@pytest.fixture
def clip(photos, photo):
    """Return a video beside the folder of photos: a photo that moves."""
    image = Image.fromarray(photo).resize((140, 100))
    frames = [np.asarray(image.crop((2 * index, 0, 120 + 2 * index, 90))) for index in range(COUNT)]
    return make_clip("clip.mkv", size=(120, 90), rate=RATE, frames=frames)


def length(path):
    """Return the number of frames, the rate and the times of a video."""
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    times = [frame.frame_time for frame in read_frames(Video(path))]
    return len(times), rate, times


def predict_until_interrupted(run, monkeypatch, loaded, frames, *arguments):
    stream = type(loaded).stream

    def interrupted(self, *args, **options):
        for index, result in enumerate(stream(self, *args, **options)):
            if index == frames:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(type(loaded), "stream", interrupted)
    return run("predict", *arguments)


def test_drawn_video(run, clip, saved, loaded):
    code, out, err = run("predict", clip, "--model", saved, "--output", "new/out.mp4")
    assert (code, err) == (0, "")
    assert out.startswith(f"clip.mkv: {COUNT} frames with ") and out.endswith(" frames/s -> new/out.mp4\n")
    count, rate, times = length("new/out.mp4")
    assert (count, rate) == (COUNT, RATE) and times[-1] == pytest.approx((COUNT - 1) / RATE)
    names = [name for result in loaded.stream(str(clip)) for name in result.filter(0.3).names]
    assert f"{names.count(names[0])} {names[0]}" in out
    assert files_below(Path("new")) == ["out.mp4"]


def test_folder_of_drawings(run, clip, photos, saved):
    shutil.copy(clip, photos / "clip.mkv")
    code, out, err = run(
        "predict", clip, "photos/1.png", "photos/clip.mkv", "--model", saved, "--output", "o"
    )
    assert (code, err) == (0, "") and len(out.splitlines()) == 3
    assert files_below(Path("o")) == ["1_segmented.png", "clip_segmented.mp4", "clip_segmented_2.mp4"]
    assert length("o/clip_segmented_2.mp4")[0] == COUNT


def test_folders_of_images_stay_what_they_were(run, clip, photos, saved):
    shutil.copy(clip, photos / "clip.mkv")
    code, out, err = run("predict", "photos", "--model", saved, "--no-save")
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == ["photos/1.png", "photos/2.jpg"]


def test_json_lines(run, clip, photos, saved, loaded):
    arguments = ("predict", "photos/1.png", clip, "--model", saved, "--json-lines", "--frame-stride", 2)
    code, out, err = run(*arguments, "--no-save", "--batch-size", 2)
    assert (code, err) == (0, "")
    image, *frames = map(json.loads, out.splitlines())
    assert image == json.loads(loaded("photos/1.png").to_json()) and "frame_index" not in image
    assert [(line["source"], line["frame_index"]) for line in frames] == [("clip.mkv", i) for i in (0, 2, 4)]
    assert [line["frame_time"] for line in frames] == pytest.approx([0, 2 / RATE, 4 / RATE], abs=1e-3)
    expected = [result.to_dict() for result in loaded.stream(str(clip), frame_stride=2)]
    assert frames == json.loads(json.dumps(expected))


def test_json_array_and_coco_results(run, clip, photos, saved):
    arguments = ("predict", clip, "photos/1.png", "--model", saved, "--json", "--save-json", "r.json")
    code, out, _ = run(*arguments)
    assert code == 0 and [item.get("frame_index") for item in json.loads(out)] == [*range(COUNT), None]
    entries = json.loads(Path("r.json").read_text())
    frames = {entry["image_id"]: entry["frame_index"] for entry in entries if "frame_index" in entry}
    assert len(set(frames.values())) == len(frames) > 1  # each frame is an image of its own
    assert {entry["image_id"] for entry in entries if entry["file_name"] == "1.png"}.isdisjoint(frames)
    assert files_below(Path(".")).count("clip_segmented.mp4") == 1


def test_frame_stride_keeps_the_duration(run, clip, saved):
    assert run("predict", clip, "--model", saved, "--output", "o.mp4", "--frame-stride", 3)[0] == 0
    assert length("o.mp4")[:2] == (2, 4)


def test_truncated_video(run, clip, saved):
    cut(make_clip(clip, 10), 0.5)
    code, out, err = run("predict", clip, "--model", saved, "--output", "o.mp4")
    assert code == 1
    assert_clear(err, "'clip.mkv' ended after", "truncated", "1 failed, 0 done")
    count = length("o.mp4")[0]
    assert 0 < count < 8 and out.startswith(f"clip.mkv: {count} frame")


def test_interrupted_run_leaves_a_playable_video(run, clip, saved, loaded, monkeypatch):
    arguments = (clip, "--model", saved, "--output", "o.mp4", "--save-json", "r.json")
    code, out, err = predict_until_interrupted(run, monkeypatch, loaded, 3, *arguments)
    assert code == 130 and "interrupted" in err and out.startswith("clip.mkv: 3 frames")
    assert length("o.mp4")[0] == 3
    assert isinstance(json.loads(Path("r.json").read_text()), list)
    assert not [name for name in os.listdir(".") if name.startswith(".")]


@pytest.mark.parametrize("output", ["clip.mkv", "./clip.mkv", "link.mkv"])
def test_source_is_not_overwritten(run, clip, saved, output):
    os.symlink("clip.mkv", "link.mkv")
    before = clip.read_bytes()
    code, out, err = run("predict", clip, "--model", saved, "--output", output)
    assert (code, out) == (1, "") and run.loadings == []
    assert_clear(err, "--output", "would overwrite")
    assert clip.read_bytes() == before


def test_other_outputs_are_not_overwritten(run, clip, saved):
    shutil.copy(clip, "clip_segmented.mp4")
    before = clip.read_bytes()
    assert run("predict", clip, "clip_segmented.mp4", "--model", saved)[0] == 0
    assert Path("clip_segmented.mp4").read_bytes() == before
    assert {"clip_segmented_2.mp4", "clip_segmented_segmented.mp4"} <= set(os.listdir("."))
    for option in ("--save-json", "--output"):
        other = {"--save-json": ["--output", "o.mp4"], "--output": ["--save-json", "o.mp4"]}[option]
        code, _, err = run("predict", clip, "--model", saved, option, "o.mp4", *other)
        assert code == 1
        assert_clear(err, "is the same file as")


def test_drawings_of_earlier_runs_are_replaced(run, clip, saved):
    for _ in range(2):
        code, out, err = run("predict", "*.m*", "--model", saved)
        assert code == 0 and len(out.splitlines()) == 1
        assert [name for name in os.listdir(".") if "segmented" in name] == ["clip_segmented.mp4"]
    assert "left out as drawings" in err


@pytest.mark.parametrize("sources", [["photos/1.png"], ["clip.mkv", "photos"], ["photos"]])
def test_one_file_is_for_one_video(run, clip, saved, sources):
    code, out, err = run("predict", *sources, "--model", saved, "--output", "o.mp4")
    assert (code, out) == (1, "") and run.loadings == []
    assert_clear(err, "--output 'o.mp4' is the name of a video", "or a folder")


def test_image_ids_are_for_images(run, clip, saved):
    Path("ids.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "clip.mkv"}]}))
    code, _, err = run("predict", clip, "--model", saved, "--save-json", "r.json", "--image-ids", "ids.json")
    assert code == 1
    assert_clear(err, "--image-ids is for image files")


def test_video_that_cannot_be_drawn(run, clip, photos, saved, monkeypatch):
    monkeypatch.setattr("solo_infer.results.video_writer._ENCODERS", {"not_there": 1000})
    code, out, err = run("predict", clip, "photos/1.png", "--model", saved, "--output", "o")
    assert code == 1 and len(out.splitlines()) == 2
    assert_clear(err, "none of the encoders", "1 failed, 1 done")
    assert files_below(Path("o")) == ["1_segmented.png"]


def test_disk_that_becomes_full(run, clip, saved, monkeypatch):
    def refuse(self, packets):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("solo_infer.results.video_writer.VideoWriter._mux", refuse)
    code, out, err = run("predict", clip, "--model", saved, "--output", "o.mp4", "--save-json", "r.json")
    assert code == 1 and out.startswith(f"clip.mkv: {COUNT} frames")
    assert_clear(err, "'o.mp4' cannot be written", "No space left", "1 failed, 0 done")
    assert not Path("o.mp4").exists() and json.loads(Path("r.json").read_text())


def test_camera(run, photos, saved, loaded, monkeypatch):
    opened = []

    def camera(av, index, name):
        opened.append(index)
        return "testsrc=size=64x48:rate=25:duration=0.2", "lavfi", {}

    monkeypatch.setattr(video_module, "_camera_input", camera)
    code, out, err = run("predict", "1", "--model", saved)
    assert (code, err, opened) == (0, "", [1])
    assert out.startswith("camera://1: ") and out.endswith("-> image_segmented.mp4\n")


def test_numbers_are_files_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("7").touch()
    names = [cli_video.as_entered(name) for name in ("0", "7", "12", "clip.mp4", "٣", "1" * 20)]
    assert names == ["camera://0", "7", "camera://12", "clip.mp4", "٣", "1" * 20]


def test_expected_results(clip, photos):
    cut(Path(shutil.copy(clip, "bad.mp4")), 0.01)
    sources = ["photos/1.png", "clip.mkv", "bad.mp4"]
    assert cli_video.expected_results(sources, 4) == 1 + 2 + 0
    assert cli_video.expected_results([*sources, "camera://0"], 1) is None
    assert cli_video.expected_results([*sources, "http://127.0.0.1:9/clip.mp4"], 1) is None


def test_progress_counts_frames(run, clip, saved, monkeypatch):
    bars = []

    def record(iterable, **options):
        bars.append(options)
        return progress_bar(iterable, **options)

    monkeypatch.setattr(predict, "progress_bar", record)
    monkeypatch.setattr(predict, "PROGRESS_FROM", COUNT)
    run("predict", clip, "--model", saved, "--no-save")
    assert bars == [{"total": COUNT, "unit": "frame", "enabled": True}]
