"""Prediction by tiles, of all families."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import HEADS, YOLACT_VARIANTS
from helpers.paths import DATA, EXAMPLES
from helpers.results import assert_same
from helpers.scenes import detections_of, ellipse
from PIL import Image, ImageOps

from solo_infer import load_image, load_model
from solo_infer.config.tiling import Tiling
from solo_infer.data.images import LoadedImage
from solo_infer.errors import ConfigError
from solo_infer.inference.tiling import TileGrid
from solo_infer.ops.mask_crops import MaskCrops
from solo_infer.segmenters import tiled
from solo_infer.segmenters.batching import make_result

MODELS = (*HEADS, *YOLACT_VARIANTS, "tiny")
TILE = (96, 32)


@pytest.fixture(scope="module", params=MODELS)
def model(request, small_models, small_yolacts, small_tiny):
    model = {**small_models, **small_yolacts, "tiny": small_tiny}[request.param]
    return model.with_thresholds(replace(model.config.thresholds, max_per_image=5))


@pytest.fixture(scope="module")
def image(photo):
    return np.array(Image.fromarray(photo).resize((150, 90)))


def full(result):
    return replace(result, packed_masks=result.packed_masks.full())


def test_image_within_one_tile_gives_the_result_of_the_whole_image(model, image):
    expected = model(image)
    with_pixels = expected[expected.masks.flatten(1).any(dim=1)]
    result = model(image, tile=256)
    assert isinstance(result.packed_masks, MaskCrops)
    assert len(result) == len(with_pixels) > 0
    assert_same(full(result), with_pixels)


def test_result_of_tiles(model, image):
    result = model(image, tile=TILE)
    assert len(result) > 0 and result.image_size == (90, 150)
    assert (result.scores.dtype, result.labels.dtype, result.boxes.dtype) == (
        torch.float32,
        torch.int64,
        torch.float32,
    )
    assert (result.scores.diff() <= 0).all()
    assert (result.scores >= model.config.thresholds.filter_thr).all()
    assert result.masks.flatten(1).any(dim=1).all()
    assert result.packed_masks.shape == (len(result), 90, 19)
    assert {"backbone", "post", "stitch", "load", "wait"} <= set(result.timings)
    assert len(result.to_dict()["instances"]) == len(result)
    assert np.array_equal(result.image, image)


def test_lists_batches_streams_and_threads(model, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image[:, ::-1]).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    expected = [full(model(path, tile=TILE)) for path in paths]
    assert expected[0].source == str(paths[0])
    for results in (
        model(paths, tile=TILE),
        model(paths, tile=TILE, batch_size=4),
        list(model.stream(tmp_path, tile=TILE)),
        list(ThreadPoolExecutor(2).map(lambda path: model(path, tile=TILE), paths)),
    ):
        for result, same in zip(results, expected, strict=True):
            assert_same(full(result), same)


def test_classes_and_thresholds(model, image):
    birds = model.only("bird")(image, tile=TILE)
    assert set(birds.names) <= {"bird"}
    thresholds = replace(model.config.thresholds, max_per_image=1)
    grid = TileGrid.of(image.shape[:2], Tiling(*TILE))
    assert 0 < len(model(image, tile=TILE, thresholds=thresholds)) <= len(grid)
    with pytest.raises(ConfigError, match="thresholds are"):
        model(image, tile=TILE, thresholds=SimpleNamespace())


@pytest.mark.parametrize("tile", [(512, 300), (512,), 3, "512", (512, 0)])
def test_invalid_tile(small_model, image, tile):
    with pytest.raises(ConfigError, match="tile|size|overlap"):
        small_model(image, tile=tile)
    with pytest.raises(ConfigError):
        next(small_model.stream([image], tile=tile))


def test_ambient_state_changes_nothing(small_model, image):
    few = replace(small_model.config.thresholds, max_per_image=5)
    expected = full(small_model(image, tile=TILE, thresholds=few))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        result = small_model(image, tile=TILE, thresholds=few)
    assert_same(full(result), expected)
    assert not result.packed_masks.data.is_inference()


class Oracle:
    """Model that finds the objects of a scene, whose pixels have the number of the object as their color."""

    device = torch.device("cpu")

    def __init__(self, config):
        self.config = config
        self.batches = []

    def predict_batch(self, batch):
        self.batches.append(len(batch))
        categories = self.config.categories
        return [make_result(tile, self._detect(tile.pixels), categories, {}, 0.3) for tile in batch]

    def _detect(self, pixels):
        numbers = [number for number in np.unique(pixels[:, :, 0]).tolist() if number]
        masks = [pixels[:, :, 0] == number for number in numbers] or [np.zeros(pixels.shape[:2], bool)]
        return detections_of(masks, [number % 3 for number in numbers], [0.8] * len(masks))


def predict(oracle, pixels, batch_size=1):
    image = LoadedImage(pixels, "scene.png")
    return tiled.predict_tiled(oracle, image, Tiling(100, 25), batch_size=batch_size)


def test_scene_is_found_through_the_tiles(small_model):
    rng = np.random.default_rng(1)
    pixels = np.zeros((410, 523, 3), np.uint8)
    for number in range(1, 30):
        pixels[ellipse(pixels.shape[:2], rng.uniform((0, 0), (410, 523)), rng.uniform(5, 150, 2))] = number
    # An object that others cut into separate parts may be several instances.
    whole = [number for number in np.unique(pixels) if number and _is_connected(pixels[:, :, 0] == number)]
    assert len(whole) > 8
    result = predict(Oracle(small_model.config), pixels)
    found = {mask.tobytes() for mask in result.masks.numpy()}
    for number in whole:
        assert (pixels[:, :, 0] == number).tobytes() in found


def _is_connected(mask):
    """Return whether every row and column of a mask has a single run, so that no tile shows two parts."""
    return all(
        (np.diff(np.pad(lines.astype(int), ((0, 0), (1, 1)))) == 1).sum(axis=1).max() <= 1
        for lines in (mask, mask.T)
    )


def test_empty_scene(small_model):
    result = predict(Oracle(small_model.config), np.zeros((200, 300, 3), np.uint8))
    assert len(result) == 0 and result.masks.shape == (0, 200, 300) and result.boxes.shape == (0, 4)


def test_tiles_share_forward_passes_on_a_gpu(small_model, monkeypatch):
    oracle = Oracle(small_model.config)
    pixels = np.zeros((400, 400, 3), np.uint8)
    predict(oracle, pixels, batch_size=3)
    assert max(oracle.batches) == 3 and sum(oracle.batches) == 25
    oracle.batches.clear()
    monkeypatch.setattr(Oracle, "device", torch.device("meta"))
    predict(oracle, pixels)
    assert max(oracle.batches) == tiled.GPU_BATCH and sum(oracle.batches) == 25


def test_mosaic_of_photos_has_the_instances_of_the_photos():
    """At most a tenth more than one photo at a time at the same scale, and no confident one is lost."""
    paths = (EXAMPLES / "street.jpg", DATA / "people" / "astronaut.jpg", DATA / "chelsea.png")
    cells = [
        np.array(ImageOps.fit(Image.fromarray(load_image(path).pixels), (384, 384)))
        for path in (*paths, paths[0])
    ]
    model = load_model("tiny", device="cpu")
    thresholds = replace(model.config.thresholds, score_thr=0.1)
    photos = [model(cell, thresholds=thresholds) for cell in cells]
    mosaic = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
    result = model(mosaic, tile=(384, 96), thresholds=thresholds)
    for score in (0.0, 0.3):
        count = sum(len(photo.filter(score)) for photo in photos)
        assert 0.6 * count < len(result.filter(score)) <= 1.1 * count
    for index, photo in enumerate(photos):
        top, left = 384 * (index // 2), 384 * (index % 2)
        for instance in photo.filter(0.6):
            masks = result.filter(0.3, instance.label).masks
            inside = masks[:, top : top + 384, left : left + 384]
            common, all_areas = (inside & instance.mask).sum(dim=(1, 2)), masks.sum(dim=(1, 2))
            ious = common / (all_areas + instance.mask.sum() - common)
            assert ious.max() > 0.5, instance
