"""The CUDA path on a GPU. Skipped without one; other tests cover its parts on the CPU."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.models import (
    DEFORMABLE,
    HEADS,
    YOLACT_VARIANTS,
    randomize,
    small_config,
    small_network,
    variant_of,
)
from helpers.results import assert_same
from helpers.smooth_images import smooth_images

from solo_infer import SOLO, YOLACT, PostprocessConfig
from solo_infer.diagnostics.kernel_checks import WRONG, describe_paths
from solo_infer.inference import solo_static
from solo_infer.ops import dispatch
from solo_infer.runtime.device import fast_paths
from solo_infer.segmenters.tiny import Tiny

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("without_tf32"),
]

DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def cuda_models(small_models):
    return {
        head: SOLO(model.config, copy.deepcopy(model.network)).to(DEVICE)
        for head, model in small_models.items()
    }


def assert_close(result, expected):
    """Compare with the CPU; a mask may differ where its score is near the threshold.

    In these small models one pixel of a mask changes the IoU of others, and their scores, by some percent.
    """
    result = result.cpu()
    assert abs(len(result) - len(expected)) <= 1
    count = min(len(result), len(expected)) - 1
    differences = (result.scores[:count] - expected.scores[:count]).abs()
    assert differences.max() < 0.02 and (differences < 1e-3).float().mean() > 0.9
    equal_labels = (result.labels[:count] == expected.labels[:count]).float().mean()
    assert equal_labels > 0.9
    differing = (result.masks[:count] != expected.masks[:count]).float().mean()
    assert differing < 0.05  # neighbors of nearly equal scores may change places


def assert_captured(model):
    assert len(model._graphs) >= 1 or not fast_paths(DEVICE).graphs


def test_no_kernel_is_wrong():
    paths = describe_paths(DEVICE)
    assert WRONG not in paths.values()
    if fast_paths(DEVICE).triton:
        assert dispatch.failures() == {}


@pytest.mark.parametrize("head", HEADS)
def test_detections_equal_the_cpu(head, cuda_models, small_models):
    for image in smooth_images(3) * 3:  # first without a graph, then captured, then replayed
        assert_close(cuda_models[head](image), small_models[head](image))


@pytest.mark.parametrize("variant", YOLACT_VARIANTS)
def test_yolact_equals_the_cpu(variant, small_yolacts):
    expected = small_yolacts[variant]
    model = YOLACT(expected.config, copy.deepcopy(expected.network)).to(DEVICE)
    for image in smooth_images(3) * 3:  # first without a graph, then captured, then replayed
        assert_close(model(image), expected(image))
    assert_captured(model)


def test_tiny_equals_the_cpu(small_tiny):
    model = Tiny(small_tiny.config, copy.deepcopy(small_tiny.network)).to(DEVICE)
    for image in smooth_images(3) * 3:
        assert_close(model(image), small_tiny(image))
    assert_captured(model)


@pytest.mark.parametrize("head", HEADS)
def test_deformable_convolutions_equal_the_cpu(head):
    config = variant_of(small_config(head), DEFORMABLE)
    expected = SOLO(config, randomize(small_network(config)))
    model = SOLO(config, copy.deepcopy(expected.network)).to(DEVICE)
    for image in smooth_images(2) * 3:
        assert_close(model(image), expected(image))


@pytest.mark.parametrize("head", HEADS)
def test_replays_equal_the_first_run(head, cuda_models, photo):
    model = cuda_models[head]
    first, *others = [model(photo) for _ in range(4)]
    assert_captured(model)
    for other in others:
        assert_same(other, first)


def test_batches(cuda_models, small_models):
    images = smooth_images(9)
    for _ in range(3):
        results = cuda_models["decoupled"](images, batch_size=9)
        for result, image in zip(results, images, strict=True):
            assert_close(result, small_models["decoupled"](image))


def test_threads_with_their_own_streams(cuda_models):
    model, images = cuda_models["decoupled_light"], smooth_images(4)
    expected = [model(image) for image in images * 3][-4:]

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            result = model(images[index % 4])
            torch.cuda.current_stream().synchronize()
        return result

    with ThreadPoolExecutor(4) as pool:
        for index, result in enumerate(pool.map(work, range(40))):
            assert_same(result, expected[index % 4])


def test_more_candidates_than_the_capacity(cuda_models, small_models, photo, monkeypatch):
    monkeypatch.setattr(solo_static, "CAPACITIES", (8, 16))
    assert_close(cuda_models["solo"](photo), small_models["solo"](photo))


def test_deformable_convolutions_on_another_stream(photo):
    """Torchvision launches them on the default stream, whatever the current one is."""
    config = variant_of(small_config("solov2"), DEFORMABLE)
    model = SOLO(config, randomize(small_network(config))).to(DEVICE)
    expected = model(photo)
    for _ in range(5):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.randn(4096, 4096, device=DEVICE) @ torch.randn(4096, 4096, device=DEVICE)
            result = model(photo)
            torch.cuda.current_stream().synchronize()
        assert_same(result, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, small_models, photo):
    model = small_models["decoupled"]
    half = SOLO(model.config, copy.deepcopy(model.network)).to(DEVICE, dtype)
    for _ in range(3):
        result = half(photo)
        assert result.scores.dtype == torch.float32
        assert abs(float(result.scores[0]) - float(model(photo).scores[0])) < 0.1


def test_no_detections(cuda_models, photo):
    result = cuda_models["solo"](photo, thresholds=PostprocessConfig(score_thr=1.0))
    assert len(result) == 0 and result.masks.shape == (0, *photo.shape[:2])


def test_one_host_synchronization_per_batch(cuda_models):
    """Count the warnings of torch's sync debug mode."""
    model, images = cuda_models["decoupled"], smooth_images(1) * 4
    for _ in range(3):
        model(images, batch_size=4)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as warned:
            model(images, batch_size=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in warned if "synchroniz" in str(warning.message)]) == 1


def test_compiled_model(cuda_models, photo):
    if not fast_paths(DEVICE).compile:
        pytest.skip("torch.compile is not supported on this device")
    model = cuda_models["decoupled_light"]
    assert_close(model.compile()(photo), model(photo).cpu())
