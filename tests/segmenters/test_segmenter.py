"""Predictions of SOLO models: sources, batches, streams, threads, errors."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import HEADS
from helpers.results import assert_same
from helpers.smooth_images import smooth_images
from PIL import Image

from solo_infer import SOLO, PostprocessConfig
from solo_infer.diagnostics.benchmark import STAGES
from solo_infer.errors import ConfigError, DeviceError, ImageError
from solo_infer.inference.preprocess import plan
from solo_infer.results.result import Result
from solo_infer.runtime.device import probe


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


def test_all_sources_of_an_image_give_the_same_result(small_model, photo_path, photo):
    expected = small_model(photo_path)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    with Image.open(photo_path) as opened:
        results = [
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
    for result in results:
        assert_same(replace(result, source=expected.source), expected)


@pytest.mark.parametrize("head", HEADS)
def test_batch_size_does_not_change_results(head, small_models):
    model = small_models[head]
    images = smooth_images(5)
    alone = [model(image) for image in images]
    for batch_size in (2, 5):
        order = np.random.default_rng(batch_size).permutation(5).tolist()
        batched = model([images[index] for index in order], batch_size=batch_size)
        for index, result in zip(order, batched, strict=True):
            assert_same(result, alone[index])


@pytest.mark.parametrize("head", HEADS)
def test_images_of_a_shared_forward_pass_get_their_own_masks(head, small_models, monkeypatch):
    """Group images of equal padded size, as on a GPU. Results are equal up to rounding."""
    model = small_models[head]
    images = [image for image in smooth_images(14) if image.shape[0] in (80, 90)]
    alone = [model(image) for image in images]
    monkeypatch.setattr(
        "solo_infer.segmenters.base.forward_groups", lambda geometries, device: [[0, 2, 3, 5], [1, 4]]
    )
    geometry = [plan(image, model.config.preprocessing).padded for image in images]
    assert len({geometry[index] for index in (0, 2, 3, 5)}) == len({geometry[index] for index in (1, 4)}) == 1
    batched = model(images, batch_size=6)
    for result, expected in zip(batched, alone, strict=True):
        best = expected[:10]  # far from the thresholds that rounding may cross
        assert result.labels[:10].tolist() == best.labels.tolist()
        torch.testing.assert_close(result.scores[:10], best.scores, rtol=0, atol=1e-4)
        assert (result.masks[:10] != best.masks).flatten(1).sum(1).max() <= 5


@pytest.mark.parametrize("head", HEADS)
def test_threads_can_share_one_model(head, small_models):
    model = small_models[head]
    images = smooth_images(4, seed=1)
    expected = [model(image) for image in images]
    start = threading.Barrier(4)

    def work(worker):
        start.wait()
        return [(index, model(images[index])) for index in range(worker % 2, 4, 2)]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            for index, result in results:
                assert_same(result, expected[index])


def test_tiny_and_thin_images(small_model):
    for size in ((1, 1), (1, 4000), (4000, 1), (2, 3)):
        result = small_model(np.full((*size, 3), 128, np.uint8))
        assert result.image_size == size
        assert result.masks.shape == (len(result), *size)


def test_published_sizes_take_thin_images(procedural):
    model = procedural("decoupled_light_r50")
    for size in ((1, 1), (1, 4000)):
        assert model(np.full((*size, 3), 99, np.uint8)).image_size == size


def test_empty_result_has_the_same_types(small_model, photo):
    result = small_model(photo, thresholds=PostprocessConfig(score_thr=1.0))
    assert isinstance(result, Result)
    assert len(result) == 0
    assert result.masks.shape == (0, 300, 451)
    assert (result.scores.dtype, result.labels.dtype, result.masks.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )


def test_results_are_not_inference_tensors(small_model, photo):
    result = small_model(photo)
    result.boxes.mul_(2)  # raises for inference tensors
    assert not result.scores.requires_grad


def test_thresholds_of_a_call_and_of_a_model(small_model, photo):
    thresholds = PostprocessConfig(max_per_image=3)
    result, model = small_model(photo, thresholds=thresholds), small_model.with_thresholds(thresholds)
    assert len(result) == 3
    assert_same(model(photo), result)
    assert model.network is small_model.network
    assert len(small_model(photo)) > 3


def test_results_are_in_the_order_of_the_list(small_model):
    images = smooth_images(5)
    results = small_model(images, batch_size=5)
    assert [result.image_size for result in results] == [image.shape[:2] for image in images]
    assert small_model([]) == []


def test_stream_is_lazy(small_model):
    consumed = []

    def source():
        for image in smooth_images(6):
            consumed.append(1)
            yield image

    results = small_model.stream(source(), batch_size=2)
    assert consumed == []
    next(results)
    assert len(consumed) == 2


def test_stream_reports_unreadable_images(small_model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    Image.fromarray(smooth_images(1)[0]).save(tmp_path / "good.png")
    failed = []
    results = list(small_model.stream(tmp_path, on_error=lambda name, error: failed.append((name, error))))
    assert [result.source for result in results] == [str(tmp_path / "good.png")]
    assert [(name, type(error)) for name, error in failed] == [(str(tmp_path / "broken.png"), ImageError)]
    with pytest.raises(ImageError, match="broken.png"):
        list(small_model.stream(tmp_path))


def test_invalid_arguments(small_model, photo):
    with pytest.raises(ConfigError, match="batch_size=0"):
        small_model(photo, batch_size=0)
    with pytest.raises(ImageError, match="dict is not an image"):
        small_model({"image": photo})
    with pytest.raises(ImageError, match="generator.*stream"):
        small_model(image for image in [photo])
    with pytest.raises(DeviceError, match="dtype='int8'.*float32"):
        small_model.to(dtype="int8")
    with pytest.raises(DeviceError, match="device='abacus'"):
        small_model.to("abacus")


def test_input_arrays_are_neither_changed_nor_kept(small_model, photo):
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
