"""Pictures for notebooks and the scores that they show."""

import copy
import gc
import io
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.results import make_result
from PIL import Image

from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.ops import packed_masks
from solo_infer.results.result_list import ResultList
from solo_infer.results.writers import ImageFolder

BLACK = np.zeros((20, 29, 3), np.uint8)


def pixels(png):
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.array(picture.convert("RGB"))


def drawn_count(picture):
    """Return the number of colors of instances on a black image."""
    return len({tuple(color) for color in np.asarray(picture).reshape(-1, 3).tolist()} - {(0, 0, 0)})


def large_result(image):
    height, width = image.shape[:2]
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 100:120, 200:240], masks[1, :5, :5] = True, True
    return make_result(
        2,
        image=image,
        image_size=(height, width),
        packed_masks=packed_masks.pack(masks),
        boxes=torch.tensor([[200.0, 100, 240, 120], [0, 0, 5, 5]]),
    )


# --- Scores


def test_drawings_leave_out_low_scores():
    result = make_result(image=BLACK)
    assert DISPLAY_THRESHOLD == 0.3 and (result.scores < 0.3).any()
    plain = {"captions": False, "alpha": 1.0}
    high = make_result(image=BLACK, scores=torch.tensor([0.9, 0.8, 0.299, 0.25, 0.2]))
    assert drawn_count(high.plot(**plain)) == 2
    assert drawn_count(high.plot(**plain, min_score=0.0)) == 4  # the fifth mask is empty
    assert high.plot(**plain).tobytes() == high.filter(0.3).plot(**plain).tobytes()
    assert len(high) == 5  # the result itself is complete


def test_saved_and_notebook_pictures_leave_out_low_scores(tmp_path):
    result = make_result(image=BLACK, source="a.png", scores=torch.tensor([0.9, 0.29, 0.2, 0.2, 0.1]))
    expected = np.asarray(result[:1].plot())
    assert (np.asarray(Image.open(result.save(tmp_path / "a.png"))) == expected).all()
    assert (np.asarray(Image.open(ImageFolder(tmp_path / "drawn").add(result))) == expected).all()
    assert (pixels(result._repr_png_()) == expected).all()
    lower = np.asarray(result.plot(min_score=0))
    assert (lower != expected).any()
    assert (np.asarray(Image.open(result.save(tmp_path / "b.png", min_score=0))) == lower).all()


def test_score_of_the_filter_is_drawn_and_kept_by_copies():
    result = make_result(image=BLACK, scores=torch.tensor([0.9, 0.2, 0.15, 0.1, 0.05]))
    plain = {"captions": False, "alpha": 1.0}
    low = result.filter(0.1)
    for chosen in (low, low[:], low.cpu(), result.filter(0.1, "cat")):
        assert chosen.display_threshold == 0.1
        assert drawn_count(chosen.plot(**plain)) == len(chosen)
    assert result.filter(classes="dog").display_threshold == 0.3
    assert drawn_count(replace(result, display_threshold=0.2).plot(**plain)) == 2


def test_data_are_complete_whatever_is_drawn():
    result = make_result(scores=torch.tensor([0.9, 0.2, 0.1, 0.05, 0.01]))
    assert len(result.to_coco()) == len(result.to_dict()["instances"]) == len(list(result)) == 5


# --- Instances


def test_picture_of_an_instance_shows_the_image_around_it():
    image = np.full((400, 500, 3), 200, np.uint8)
    result = large_result(image)
    picture = pixels(result[0]._repr_png_())
    assert picture.shape[:2] == (160, 160)  # 40 x 20 pixels, and their surroundings
    assert (picture == 200).all(axis=2).mean() > 0.5
    assert not (picture == 200).all()
    assert (picture == pixels(list(result)[0]._repr_png_())).all()
    corner = pixels(result[1]._repr_png_())
    assert corner.shape[0] < 160 and corner.shape[1] < 160  # clipped


@pytest.mark.parametrize("index", range(5))
def test_every_instance_has_a_picture(index):
    """Low scores and empty masks too."""
    assert make_result()[index]._repr_png_().startswith(b"\x89PNG")
    assert make_result(image=None)[index]._repr_png_().startswith(b"\x89PNG")


def test_instances_do_not_keep_the_image():
    result = large_result(np.full((400, 500, 3), 200, np.uint8))
    image = weakref.ref(result.image)
    picked, iterated = result[0], list(result)
    with_image = pixels(picked._repr_png_())
    del result
    gc.collect()
    assert image() is None
    without = pixels(picked._repr_png_())
    assert without.shape == with_image.shape and (without != with_image).any()
    assert len(iterated) == 2


def test_instances_can_be_copied_and_pickled():
    instance = large_result(np.full((400, 500, 3), 200, np.uint8))[0]
    for other in (copy.copy(instance), copy.deepcopy(instance), pickle.loads(pickle.dumps(instance))):
        assert (other.name, other.box, other.score) == (instance.name, instance.box, instance.score)
        assert torch.equal(other.mask, instance.mask)
        assert other._repr_png_().startswith(b"\x89PNG")


# --- Lists


def test_picture_of_a_list_shows_its_results_in_rows():
    images = [np.full((20, 29, 3), value, np.uint8) for value in (9, 99, 199, 250)]
    results = ResultList([make_result(image=image) for image in images])
    picture = pixels(results._repr_png_())
    assert picture.shape == (2 * 20 + 8, 3 * 29 + 2 * 8, 3)
    for value in (9, 99, 199, 250):
        assert (picture == value).all(axis=2).any()


def test_picture_of_many_results_is_bounded():
    image = np.zeros((300, 900, 3), np.uint8)
    result = make_result(0, image=image, image_size=(300, 900), packed_masks=torch.zeros(0, 300, 113).byte())
    few, many = ResultList([result] * 12), ResultList([result] * 1000)
    rows, picture = pixels(few._repr_png_()), pixels(many._repr_png_())
    assert rows.shape[1] <= 1200 and picture.shape[1] == rows.shape[1]
    assert rows.shape[0] < picture.shape[0] < rows.shape[0] + 60  # a line about the others


def test_lists_are_lists():
    results = ResultList([make_result(), make_result(image=None)])
    assert isinstance(results[:1], ResultList) and isinstance(results, list)
    assert len(results[0]) == 5 and results[1:]._repr_png_() is None
    assert ResultList()._repr_png_() is None and ResultList() == []
    assert isinstance(pickle.loads(pickle.dumps(results)), ResultList)
