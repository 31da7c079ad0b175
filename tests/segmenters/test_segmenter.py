import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.models import HEADS
from PIL import Image

from solo_infer import SOLO, PostprocessConfig
from solo_infer.diagnostics.benchmark import STAGES
from solo_infer.errors import ConfigError, DeviceError, ImageError
from solo_infer.inference.preprocess import plan
from solo_infer.results.result import Result
from solo_infer.runtime.device import probe


def assert_equal(found, expected):
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.packed_masks, expected.packed_masks)
    assert found.image_size == expected.image_size


def pictures(count, seed=0):
    """Return smooth random images of various sizes, some of which share a padded size."""
    rng = np.random.default_rng(seed)
    sizes = [(80, 120), (90, 120), (120, 80), (80, 119), (50, 200), (64, 64), (30, 41)]
    images = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        images.append(np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)))
    return images


def test_result_of_one_image(small_model, photo_path):
    result = small_model(photo_path)
    assert isinstance(result, Result)
    assert result.image_size == (300, 451)
    assert result.source == str(photo_path)
    assert 0 < len(result) <= 100
    assert (result.scores.dtype, result.labels.dtype) == (torch.float32, torch.int64)
    assert (result.scores.diff() <= 0).all()
    assert result.masks.shape == (len(result), 300, 451)
    assert set(result.timings) == {"load", "wait", *STAGES}
    assert all(seconds >= 0 for seconds in result.timings.values())


def test_same_picture_by_every_road(small_model, photo_path, photo):
    expected = small_model(photo_path)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    with Image.open(photo_path) as opened:
        roads = [
            small_model(str(photo_path)),
            small_model(photo_path.read_bytes()),
            small_model(opened),
            small_model(photo),
            small_model(np.ascontiguousarray(photo[..., ::-1]), color="bgr"),
            small_model(np.dstack([photo, photo[..., 0]])),
            small_model(tensor),
            small_model(tensor.float() / 255),
            *small_model([photo, tensor]),
            *small_model.stream([photo_path]),
            *small_model.stream(photo_path.parent),
            *small_model.stream(str(photo_path.parent / "*.png")),
        ]
    for result in roads:
        assert_equal(result, expected)


@pytest.mark.parametrize("head", HEADS)
def test_batches_change_nothing(head, small_models):
    model = small_models[head]
    images = pictures(9)
    alone = [model(image) for image in images]
    for batch_size in (2, 9):
        order = np.random.default_rng(batch_size).permutation(9).tolist()
        together = model([images[index] for index in order], batch_size=batch_size)
        for index, result in zip(order, together, strict=True):
            assert_equal(result, alone[index])


@pytest.mark.parametrize("head", HEADS)
def test_a_shared_forward_pass_gives_each_image_its_own_masks(head, small_models, monkeypatch):
    """What a GPU does: images of equal padded size in one pass, equal but for rounding."""
    model = small_models[head]
    images = [image for image in pictures(14) if image.shape[0] in (80, 90)]
    alone = [model(image) for image in images]
    monkeypatch.setattr(SOLO, "_groups", lambda self, geometries: [[0, 2, 3, 5], [1, 4]])
    geometry = [plan(image, model.config.preprocessing).padded for image in images]
    assert len({geometry[index] for index in (0, 2, 3, 5)}) == len({geometry[index] for index in (1, 4)}) == 1
    together = model(images, batch_size=6)
    for result, expected in zip(together, alone, strict=True):
        best = expected[:10]  # far from the thresholds that rounding may cross
        assert result.labels[:10].tolist() == best.labels.tolist()
        torch.testing.assert_close(result.scores[:10], best.scores, rtol=0, atol=1e-4)
        assert (result.masks[:10] != best.masks).flatten(1).sum(1).max() <= 5


@pytest.mark.parametrize("head", HEADS)
def test_threads_share_one_model(head, small_models):
    model = small_models[head]
    images = pictures(24, seed=1)
    expected = [model(image) for image in images]
    start = threading.Barrier(8)

    def work(worker):
        start.wait()
        return [(index, model(images[index])) for index in range(worker, 24, 8) for _ in range(2)]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for index, result in results:
                assert_equal(result, expected[index])


def test_tiny_and_thin_images(small_model):
    for size in ((1, 1), (1, 4000), (4000, 1), (2, 3)):
        result = small_model(np.full((*size, 3), 128, np.uint8))
        assert result.image_size == size
        assert result.masks.shape == (len(result), *size)


def test_published_sizes_take_thin_images(procedural):
    model = procedural("decoupled_light_r50")
    for size in ((1, 1), (1, 4000)):
        assert model(np.full((*size, 3), 99, np.uint8)).image_size == size


def test_nothing_found_is_the_same_type(small_model, photo):
    result = small_model(photo, thresholds=PostprocessConfig(score_thr=1.0))
    assert isinstance(result, Result)
    assert len(result) == 0
    assert result.masks.shape == (0, 300, 451)
    assert (result.scores.dtype, result.labels.dtype, result.masks.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )


def test_results_are_ordinary_tensors(small_model, photo):
    result = small_model(photo)
    result.boxes.mul_(2)  # an inference tensor would refuse
    assert not result.scores.requires_grad


def test_thresholds_for_a_call_and_for_a_model(small_model, photo):
    few = PostprocessConfig(max_per_image=3)
    once, lasting = small_model(photo, thresholds=few), small_model.with_thresholds(few)
    assert len(once) == 3
    assert_equal(lasting(photo), once)
    assert lasting.network is small_model.network
    assert len(small_model(photo)) > 3


def test_lists_keep_their_order_and_empty_ones_are_empty(small_model):
    images = pictures(5)
    results = small_model(images, batch_size=5)
    assert [result.image_size for result in results] == [image.shape[:2] for image in images]
    assert small_model([]) == []


def test_stream_is_lazy(small_model):
    taken = []

    def source():
        for image in pictures(6):
            taken.append(1)
            yield image

    results = small_model.stream(source(), batch_size=2)
    assert taken == []
    next(results)
    assert len(taken) == 2


def test_stream_reports_what_it_cannot_read(small_model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "good.png")
    failed = []
    results = list(small_model.stream(tmp_path, on_error=lambda name, error: failed.append((name, error))))
    assert [result.source for result in results] == [str(tmp_path / "good.png")]
    assert [(name, type(error)) for name, error in failed] == [(str(tmp_path / "broken.png"), ImageError)]
    with pytest.raises(ImageError, match="broken.png"):
        list(small_model.stream(tmp_path))


def test_wrong_calls(small_model, photo):
    with pytest.raises(ConfigError, match="batch_size=0"):
        small_model(photo, batch_size=0)
    with pytest.raises(ImageError, match="dict is no image"):
        small_model({"image": photo})
    with pytest.raises(ImageError, match="generator.*stream"):
        small_model(image for image in [photo])
    with pytest.raises(DeviceError, match="dtype='int8'.*float32"):
        small_model.to(dtype="int8")
    with pytest.raises(DeviceError, match="device='abacus'"):
        small_model.to("abacus")


def test_user_arrays_are_neither_changed_nor_kept(small_model, photo):
    image = photo.copy()
    result = small_model(image)
    assert np.array_equal(image, photo)
    image[:] = 0
    assert np.array_equal(result.image, photo)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32_results(dtype, small_model, tmp_path, photo):
    small_model.save_pretrained(tmp_path)
    if probe(torch.device("cpu"), dtype).startswith("fails"):
        with pytest.raises(DeviceError, match="Use dtype float32"):
            SOLO.from_pretrained(tmp_path, device="cpu", dtype=dtype)
        return
    half = SOLO.from_pretrained(tmp_path, device="cpu", dtype=dtype)
    result = half(photo)
    assert half.dtype == dtype
    assert (result.scores.dtype, result.boxes.dtype) == (torch.float32, torch.float32)
    assert abs(float(result.scores[0]) - float(small_model(photo).scores[0])) < 0.1
