"""Fields, conversions and drawings of results."""

import copy
import io
import json
import pickle

import numpy as np
import pytest
import torch
from helpers.results import HEIGHT, WIDTH, assert_same, make_masks, make_result
from PIL import Image

from solo_infer.config.categories import COCO
from solo_infer.errors import DeviceError, ResultError
from solo_infer.ops import rle


@pytest.fixture
def result():
    return make_result()


@pytest.fixture
def empty():
    return make_result(0)


@pytest.fixture(scope="module")
def real(small_model, photo):
    result = small_model(photo)
    assert len(result) > 10
    return result


# --- Fields


def test_fields_of_a_real_result(real):
    count = len(real)
    assert (real.scores.dtype, real.scores.shape) == (torch.float32, (count,))
    assert (real.scores.diff() <= 0).all() and 0 <= real.scores[-1] and real.scores[0] <= 1
    assert (real.labels.dtype, real.labels.shape) == (torch.int64, (count,))
    assert (real.boxes.dtype, real.boxes.shape) == (torch.float32, (count, 4))
    assert (real.masks.dtype, real.masks.shape) == (torch.bool, (count, 300, 451))
    assert real.packed_masks.shape == (count, 300, 57)
    assert real.names == [real.categories.names[label] for label in real.labels]
    assert real.image_size == (300, 451)
    assert not real.scores.requires_grad


def test_boxes_are_tight_around_the_masks(real):
    for mask, box in zip(real.masks, real.boxes.tolist(), strict=True):
        rows, columns = torch.where(mask)
        expected = [0.0] * 4
        if len(rows):
            expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box == expected


def test_masks_are_unpacked_at_each_access(result):
    assert torch.equal(result.masks, make_masks(5))
    result.masks.fill_(False)
    assert result.masks.any()


def test_result_is_read_only(result):
    with pytest.raises(AttributeError):
        result.scores = torch.zeros(5)


# --- Devices and conversions


def test_to_and_cpu(result):
    assert_same(result.to("cpu"), result)
    assert_same(result.cpu(), result)
    assert result.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:999"])
def test_to_unavailable_device_raises_error(result, name):
    with pytest.raises(DeviceError):
        result.to(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_result_on_cuda(result):
    on_cuda = result.to("cuda")
    assert on_cuda.device.type == "cuda"
    assert_same(on_cuda.cpu(), result)
    assert_same(on_cuda[result.scores > 0.4].cpu(), result[:3])
    assert_same(on_cuda.filter(0.4, ["dog"]).cpu(), result.filter(0.4, ["dog"]))
    assert on_cuda[0].mask.device.type == "cuda"
    assert on_cuda.to_dict() == result.to_dict()
    assert on_cuda.to_coco(3) == result.to_coco(3)
    assert on_cuda.plot().tobytes() == result.plot().tobytes()


def test_numpy(result):
    arrays = result.numpy()
    assert {name: array.dtype for name, array in arrays.items()} == {
        "scores": np.float32,
        "labels": np.int64,
        "boxes": np.float32,
        "masks": np.bool_,
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(result, name).numpy())


def test_pickle_and_deepcopy(result, real):
    for original in (result, real, make_result(0)):
        assert_same(pickle.loads(pickle.dumps(original)), original)
        assert_same(copy.deepcopy(original), original)
    instance = pickle.loads(pickle.dumps(result[1]))
    assert (instance.name, instance.box) == ("cat", (2.0, 1.0, 7.0, 4.0))
    assert torch.equal(instance.mask, result[1].mask)


def test_results_are_compared_by_identity_and_hashable(result):
    other = make_result()
    assert result == result and result != other
    assert {result: 1}[result] == 1
    assert other not in [result]
    assert result[0] != result[0]


# --- COCO and JSON


def test_to_coco(result):
    entries = result.to_coco(139)
    assert [entry["category_id"] for entry in entries] == [18, 17, 18, 16, 17]
    assert {entry["image_id"] for entry in entries} == {139}
    assert entries[1]["bbox"] == [2.0, 1.0, 5.0, 3.0]
    assert [entry["score"] for entry in entries] == result.scores.tolist()
    for entry, mask in zip(entries, result.masks.numpy(), strict=True):
        assert entry["segmentation"]["size"] == [HEIGHT, WIDTH]
        assert isinstance(entry["segmentation"]["counts"], str)
        np.testing.assert_array_equal(rle.decode(entry["segmentation"]), mask)
    assert json.loads(json.dumps(entries, allow_nan=False)) == entries


def test_to_coco_without_boxes(result):
    without = result.to_coco(1, boxes=False)
    for entry, full in zip(without, result.to_coco(1), strict=True):
        assert entry == {key: value for key, value in full.items() if key != "bbox"}


def test_coco_classes_have_official_ids():
    labels = torch.tensor([0, 11, 79])
    result = make_result(3, COCO, labels=labels)
    assert [entry["category_id"] for entry in result.to_coco()] == [1, 13, 90]


@pytest.mark.parametrize("image_id", [np.int64(7), "7", 7])
def test_image_ids_are_serializable_as_json(result, image_id):
    (entry,) = json.loads(json.dumps(result[:1].to_coco(image_id)))
    assert entry["image_id"] == ("7" if image_id == "7" else 7)


def test_to_dict_and_json(result):
    values = result.to_dict()
    assert values["source"] == "pets/süß.jpg"
    assert values["image_size"] == {"height": HEIGHT, "width": WIDTH}
    first = values["instances"][0]
    assert (first["label"], first["name"], first["category_id"]) == (1, "dog", 18)
    assert first["box"] == [0.0, 0.0, 5.0, 3.0]
    assert len(values["instances"]) == 5
    np.testing.assert_array_equal(rle.decode(first["mask"]), result.masks[0].numpy())
    assert json.loads(result.to_json()) == values
    assert json.loads(result.to_json(indent=2)) == values
    assert "\n" not in result.to_json()


# --- Drawings


def test_plot_draws_on_a_copy(result):
    before = result.image.copy()
    drawing = result.plot(captions=False)
    assert (drawing.size, drawing.mode) == ((WIDTH, HEIGHT), "RGB")
    np.testing.assert_array_equal(result.image, before)
    changed = (np.array(drawing) != before).any(axis=2)
    assert changed.any()
    np.testing.assert_array_equal(changed & ~result.masks.any(dim=0).numpy(), False)


def test_plot_omits_low_scores(result):
    all_instances, best = result.plot(captions=False), result.plot(min_score=0.85, captions=False)
    assert best.tobytes() == result[:1].plot(captions=False).tobytes()
    assert best.tobytes() != all_instances.tobytes()


def test_plot_on_another_image(result):
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels = np.array(result[:1].plot(black, captions=False, alpha=1.0))
    np.testing.assert_array_equal(pixels.any(axis=2), result.masks[0].numpy())


def test_plot_without_image_raises_error():
    with pytest.raises(ResultError, match="pass it as image="):
        make_result(image=None).plot()


@pytest.mark.parametrize("image", [np.zeros((5, 5, 3), np.uint8), "photo.jpg"])
def test_plot_on_invalid_image_raises_error(result, image):
    with pytest.raises(ResultError, match="expected"):
        result.plot(image)


def test_save(result, tmp_path):
    path = result.save(str(tmp_path / "犬 süß.png"), min_score=0.85, boxes=True)
    assert path == tmp_path / "犬 süß.png"
    with Image.open(path) as saved:
        assert saved.tobytes() == result.plot(min_score=0.85, boxes=True).tobytes()


@pytest.mark.parametrize("name", ["image", "image.txt", "missing/image.png", "folder.png"])
def test_save_to_invalid_path_raises_error(result, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ResultError, match="Cannot write"):
        result.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_drawing_in_notebooks(result):
    with Image.open(io.BytesIO(result._repr_png_())) as drawing:
        assert (drawing.format, drawing.size) == ("PNG", (WIDTH, HEIGHT))
    large = make_result(
        0,
        image=np.zeros((600, 2400, 3), np.uint8),
        image_size=(600, 2400),
        packed_masks=torch.zeros(0, 600, 300, dtype=torch.uint8),
    )
    with Image.open(io.BytesIO(large._repr_png_())) as drawing:
        assert drawing.size == (1200, 300)
    assert make_result(image=None)._repr_png_() is None


def test_repr(result, empty):
    assert repr(result[:2]) == (
        f"<Result 'pets/süß.jpg' {WIDTH}x{HEIGHT} px, 2 instances: dog 0.90, cat 0.80>"
    )
    assert repr(make_result(1, source="")) == f"<Result {WIDTH}x{HEIGHT} px, 1 instance: dog 0.90>"
    assert repr(empty).endswith("0 instances>")
    assert repr(result[[0, 0, 0, 0, 0, 0]]).endswith("dog 0.90, ...>")
    assert (
        repr(result[0]) == "Instance(score=0.8999999761581421, label=1, name='dog', box=(0.0, 0.0, 5.0, 3.0))"
    )


# --- An empty result


def test_empty_result_of_a_model(small_model, photo):
    from solo_infer import PostprocessConfig

    result = small_model(photo, thresholds=PostprocessConfig(score_thr=1.0))
    assert_same(result, result[:0])
    assert (len(result), result.masks.shape) == (0, (0, 300, 451))


def test_every_method_of_an_empty_result(empty, tmp_path):
    assert len(empty) == 0 and not empty
    assert list(empty) == empty.names == empty.to_coco(1) == []
    shapes = {name: array.shape for name, array in empty.numpy().items()}
    assert shapes == {"scores": (0,), "labels": (0,), "boxes": (0, 4), "masks": (0, HEIGHT, WIDTH)}
    assert empty.masks.dtype == torch.bool
    for selection in (empty[:3], empty[[]], empty[empty.scores > 0.5], empty[::-1], empty.filter(0.5, "dog")):
        assert_same(selection, empty)
    assert_same(empty.cpu(), empty)
    assert empty.to_dict()["instances"] == json.loads(empty.to_json())["instances"] == []
    assert empty.plot().tobytes() == empty.image.tobytes()
    assert empty.save(tmp_path / "nothing.png").is_file()
    assert empty._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(IndexError):
        empty[0]
