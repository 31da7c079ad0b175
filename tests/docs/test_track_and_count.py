"""The example that tracks and counts, with the real packages."""

import sys

import numpy as np
import pytest
import torch
from helpers.paths import EXAMPLES
from helpers.results import PETS

from solo_infer import Result
from solo_infer.ops import packed_masks

for package in ("av", "supervision", "trackers"):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install {package})")

SIZE = (60, 100)


def moving_result(index, objects):
    """Return the ground truth of squares that move by 4 pixels per frame.

    Args:
        index: Index of the frame.
        objects: Label, row, column in the first frame and direction (-1, 0, 1) of each square.
    """
    masks = torch.zeros(len(objects), *SIZE, dtype=torch.bool)
    boxes = torch.zeros(len(objects), 4)
    for number, (_, y, x, direction) in enumerate(objects):
        x += 4 * direction * index
        masks[number, y : y + 14, x : x + 14] = True
        boxes[number] = torch.tensor([x, y, x + 14, y + 14])
    return Result(
        scores=torch.full((len(objects),), 0.9),
        labels=torch.tensor([label for label, *_ in objects], dtype=torch.int64),
        boxes=boxes,
        packed_masks=packed_masks.pack(masks),
        image_size=SIZE,
        categories=PETS,
        image=np.zeros((*SIZE, 3), np.uint8),
        source="clip.mp4",
        frame_index=index,
        frame_time=index / 10,
    )


def load_example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "track_and_count", raising=False)
    import track_and_count

    return track_and_count


@pytest.mark.parametrize(
    ("objects", "crossed"),
    [
        ([(0, 2, 10, 1), (1, 24, 70, -1), (2, 44, 10, 0)], {"cat": 1, "dog": 1}),
        ([(0, 2, 10, 1), (0, 24, 14, 1)], {"cat": 2}),
        ([(2, 20, 70, 0)], {}),
        ([], {}),
    ],
    ids=["two of three", "same class", "at rest", "empty"],
)
def test_counts_of_known_tracks(monkeypatch, capsys, objects, crossed):
    example = load_example(monkeypatch)
    model = type("Model", (), {"stream": lambda self, video: (moving_result(i, objects) for i in range(16))})
    monkeypatch.setattr(example, "load_model", lambda name: model())
    assert example.main("clip.mp4", "ground truth") == crossed
    assert f"clip.mp4: {len(objects)} tracks" in capsys.readouterr().out


def test_with_a_model(workspace, monkeypatch, capsys):
    load_example(monkeypatch).main("clip.mp4", "tiny")
    assert "clip.mp4: " in capsys.readouterr().out
