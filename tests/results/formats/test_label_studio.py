"""Tasks of Label Studio: brush masks in its run-length encoding, and polygons."""

import json

import numpy as np
import pytest
from helpers.masks import frame, random_mask
from helpers.results import HEIGHT, WIDTH, make_result

from solo_infer.errors import ResultError
from solo_infer.results.formats.label_studio import encode_brush
from solo_infer.results.formats.polygons import rasterize


def decode_brush(encoded, height, width):
    """Return the mask (H, W) of Label Studio's encoding, read bit by bit."""
    bits = iter("".join(f"{byte:08b}" for byte in encoded))

    def read(count):
        return int("".join(next(bits) for _ in range(count)), 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if is_run else [read(word) for _ in range(length)]
    assert len(values) == total == 4 * height * width
    pixels = np.array(values).reshape(height, width, 4)
    assert (pixels == pixels[..., :1]).all() and set(np.unique(pixels)) <= {0, 255}
    return pixels[..., 3] == 255


MASKS = [frame(), *map(random_mask, range(30)), np.ones((200, 300), bool), np.zeros((130, 130), bool)]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.shape[0]}x{mask.shape[1]}")
def test_brush_masks_are_exact(mask):
    encoded = encode_brush(mask)
    assert all(type(byte) is int and 0 <= byte < 256 for byte in encoded)
    np.testing.assert_array_equal(decode_brush(encoded, *mask.shape), mask)


def test_label_studio_decodes_the_masks():
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed"
    )
    for mask in MASKS:
        values = brush.decode_rle(encode_brush(mask))
        np.testing.assert_array_equal(np.reshape(values, (*mask.shape, 4))[..., 3] == 255, mask)


def test_brush_task():
    result = make_result()
    task = json.loads(json.dumps(result.to_label_studio("/data/a.jpg")))
    assert task["data"] == {"image": "/data/a.jpg"}
    (prediction,) = task["predictions"]
    regions = prediction["result"]
    assert len(regions) == 4  # the last mask is empty
    for region, instance in zip(regions, result, strict=False):
        assert region["type"] == "brushlabels"
        assert (region["from_name"], region["to_name"]) == ("label", "image")
        assert (region["original_height"], region["original_width"]) == (HEIGHT, WIDTH)
        assert region["score"] == instance.score
        assert region["value"]["format"] == "rle" and region["value"]["brushlabels"] == [instance.name]
        mask = decode_brush(region["value"]["rle"], HEIGHT, WIDTH)
        np.testing.assert_array_equal(mask, instance.mask.numpy())
    assert len({region["id"] for region in regions}) == 4


def test_polygon_task():
    result = make_result(source="https://host/a.jpg")
    task = result.to_label_studio(shape="polygon", from_name="poly", to_name="photo")
    assert task["data"] == {"photo": "https://host/a.jpg"}
    for region, instance in zip(task["predictions"][0]["result"], result, strict=False):
        assert (region["type"], region["from_name"], region["to_name"]) == ("polygonlabels", "poly", "photo")
        assert region["value"]["closed"] and region["value"]["polygonlabels"] == [instance.name]
        points = np.array(region["value"]["points"])
        assert 0 <= points.min() and points.max() <= 100
        mask = rasterize([(points * (WIDTH / 100, HEIGHT / 100)).round(6)], HEIGHT, WIDTH)
        np.testing.assert_array_equal(mask, instance.mask.numpy())


def test_results_without_instances():
    task = make_result()[:0].to_label_studio()
    assert task["predictions"] == [{"model_version": "solo_infer", "score": 0.0, "result": []}]


def test_unknown_shapes():
    with pytest.raises(ResultError, match="shape='box': expected one of brush, polygon"):
        make_result().to_label_studio(shape="box")
