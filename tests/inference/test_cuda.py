"""The CUDA path on a card; elsewhere its parts are tested one by one, and this is skipped."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.models import HEADS
from segmenters.test_segmenter import assert_equal, pictures

from solo_infer import SOLO, PostprocessConfig
from solo_infer.diagnostics.kernel_checks import WRONG, describe_paths
from solo_infer.inference import solo_cuda
from solo_infer.ops import dispatch
from solo_infer.runtime.device import fast_paths

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")

CARD = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def float32_as_on_the_cpu():
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.fixture(scope="module")
def on_card(small_models):
    return {
        head: SOLO(model.config, copy.deepcopy(model.network)).to(CARD)
        for head, model in small_models.items()
    }


def assert_close(found, expected):
    """Compare with the CPU; a mask may differ where a score lies on a threshold."""
    found = found.cpu()
    assert abs(len(found) - len(expected)) <= 1
    count = min(len(found), len(expected)) - 1
    torch.testing.assert_close(found.scores[:count], expected.scores[:count], rtol=0, atol=2e-3)
    agree = (found.labels[:count] == expected.labels[:count]).float().mean()
    assert agree > 0.95
    different = (found.masks[:count] != expected.masks[:count]).float().mean()
    assert different < 0.002


def test_every_kernel_that_runs_is_right():
    paths = describe_paths(CARD)
    assert WRONG not in paths.values()
    if fast_paths(CARD).triton:
        assert dispatch.failures() == {}


@pytest.mark.parametrize("head", HEADS)
def test_same_detections_as_on_the_cpu(head, on_card, small_models):
    for image in pictures(3) * 3:  # at once, captured, replayed
        assert_close(on_card[head](image), small_models[head](image))


@pytest.mark.parametrize("head", HEADS)
def test_replays_equal_single_launches(head, on_card, photo):
    model = on_card[head]
    first, *others = [model(photo) for _ in range(4)]
    if fast_paths(CARD).graphs:
        assert len(model._fast_path.graphs) >= 1
    for other in others:
        assert_equal(other, first)


def test_batches(on_card, small_models):
    images = pictures(9)
    for _ in range(3):
        for found, image in zip(on_card["decoupled"](images, batch_size=9), images, strict=True):
            assert_close(found, small_models["decoupled"](image))


def test_threads_with_streams_of_their_own(on_card):
    model, images = on_card["decoupled_light"], pictures(4)
    alone = [model(image) for image in images * 3][-4:]

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            found = model(images[index % 4])
            torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(4) as pool:
        for index, found in enumerate(pool.map(work, range(40))):
            assert_equal(found, alone[index % 4])


def test_crowded_images(on_card, small_models, photo, monkeypatch):
    monkeypatch.setattr(solo_cuda, "BUCKETS", (8, 16))
    assert_close(on_card["solo"](photo), small_models["solo"](photo))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, small_models, photo):
    model = small_models["decoupled"]
    half = SOLO(model.config, copy.deepcopy(model.network)).to(CARD, dtype)
    for _ in range(3):
        found = half(photo)
        assert found.scores.dtype == torch.float32
        assert abs(float(found.scores[0]) - float(model(photo).scores[0])) < 0.1


def test_nothing_found(on_card, photo):
    found = on_card["solo"](photo, thresholds=PostprocessConfig(score_thr=1.0))
    assert len(found) == 0 and found.masks.shape == (0, *photo.shape[:2])


def test_one_wait_in_a_batch(on_card):
    """Torch itself counts: it warns of each operation that waits for the device."""
    model, images = on_card["decoupled"], pictures(1) * 4
    for _ in range(3):
        model(images, batch_size=4)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as warned:
            model(images, batch_size=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in warned if "synchroniz" in str(one.message)]) == 1


def test_compiled(on_card, photo):
    if not fast_paths(CARD).compile:
        pytest.skip("torch.compile is not for this card")
    model = on_card["decoupled_light"]
    assert_close(model.compile()(photo), model(photo).cpu())
