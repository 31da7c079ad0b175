"""Models of the family Tiny: prediction, thresholds, dtypes, saving, loading."""

import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers.models import small_tiny_config, small_tiny_network
from helpers.results import assert_same
from helpers.training_runs import small_start
from PIL import Image

from solo_infer import SOLO, YOLACT, PostprocessConfig, load_model
from solo_infer.config import TinyPostprocessConfig, YOLACTPostprocessConfig
from solo_infer.errors import ConfigError
from solo_infer.inference.cuda_graphs import GraphCache
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.inference.tiny import detect_batch
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.segmenters.base import Segmenter
from solo_infer.segmenters.tiny import Tiny
from solo_infer.weights.checkpoint import read_checkpoint
from solo_infer.weights.load import load_checkpoint


@pytest.fixture(scope="module")
def result(small_tiny, photo):
    return small_tiny(photo)


@pytest.fixture(scope="module")
def saved(small_tiny, tmp_path_factory):
    return small_tiny.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


def network_input(model, image):
    """Return the network input of an image, and its sizes."""
    settings = model.config.preprocessing
    geometry = plan(image, settings)
    return prepare([image], [geometry], settings, model.device), geometry


def test_result_is_sorted_and_consistent(result, photo):
    assert len(result) > 5 and result.image_size == photo.shape[:2]
    assert (result.scores.diff() <= 0).all()
    assert result.masks.flatten(1).any(dim=1).all()
    assert len(result.labels.unique()) > 1
    for box, mask in zip(result.boxes.tolist(), result.masks, strict=True):
        rows, columns = (torch.nonzero(mask.any(dim=axis)).flatten().tolist() for axis in (1, 0))
        assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("nms", ["matrix", "greedy"])
def test_batch_equals_single_images(small_tiny, photo, nms):
    model = small_tiny.with_thresholds(TinyPostprocessConfig(nms=nms))
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    for single, batched in zip(
        [model(photo), model(mirrored)], model([photo, mirrored], batch_size=2), strict=True
    ):
        assert len(single) == len(batched) > 5
        assert torch.equal(single.labels, batched.labels)
        torch.testing.assert_close(single.scores, batched.scores, rtol=0, atol=2e-3)
        assert (single.masks != batched.masks).float().mean() < 1e-3


def test_results_do_not_depend_on_gradients(small_tiny, photo, result):
    with torch.enable_grad():
        assert_same(small_tiny(photo), result)
    with torch.inference_mode():
        assert_same(small_tiny(photo), result)
    assert not result.scores.requires_grad


@pytest.mark.parametrize("grad", [True, False])
def test_optimized_network_detects_like_the_plain_one(small_tiny, photo, grad):
    inputs, geometry = network_input(small_tiny, photo)
    detections = []
    for network in (small_tiny.inference_network, small_tiny.network):
        with torch.set_grad_enabled(grad):
            settings = [geometry], small_tiny.config.thresholds, None, Stopwatch()
            (found,) = detect_batch(GraphCache(), network, inputs, *settings)
        detections.append(found)
    assert torch.equal(detections[0].labels, detections[1].labels)
    torch.testing.assert_close(detections[0].scores, detections[1].scores, rtol=0, atol=1e-3)


def test_excluded_classes(small_tiny, photo):
    model = small_tiny.with_thresholds(TinyPostprocessConfig(nms_pre=10_000))
    birds, result = model.only("bird")(photo), model(photo)
    assert len(birds) > 0 and set(birds.names) == {"bird"}
    # Classes do not suppress each other.
    expected = result.scores[result.labels == 2]
    count = min(len(expected), len(birds))
    torch.testing.assert_close(birds.scores[:count], expected[:count], rtol=0, atol=1e-5)


def test_no_candidates(small_tiny, photo):
    model = small_tiny.with_thresholds(TinyPostprocessConfig(score_thr=1.0))
    empty = model(photo)
    assert len(empty) == 0 and empty.masks.shape == (0, *photo.shape[:2])
    assert [len(one) for one in model([photo, photo])] == [0, 0]


def test_number_of_candidates(small_tiny, photo):
    inputs, _ = network_input(small_tiny, photo)
    (count,) = small_tiny.count_candidates(inputs)
    with torch.no_grad():
        scores = small_tiny.network(inputs).cells.class_logits.sigmoid()
    assert count == pytest.approx(int((scores > 0.05).sum()), abs=1) and count > 5
    counts = [small_tiny.only(name).count_candidates(inputs)[0] for name in ("cat", "dog", "bird")]
    assert sum(counts) == count


def test_bfloat16_agrees_roughly(photo, result):
    config = small_tiny_config()
    half = Tiny(config, small_tiny_network(config)).to(dtype=torch.bfloat16)(photo)
    assert half.scores.dtype == torch.float32
    assert len(half) == pytest.approx(len(result), rel=0.4)
    assert float(half.scores[0]) == pytest.approx(float(result.scores[0]), abs=0.1)


# --- Thresholds


def test_thresholds_of_the_family(small_tiny, photo, result):
    strict = TinyPostprocessConfig(score_thr=0.3)
    assert 0 < len(small_tiny(photo, thresholds=strict)) < len(result)
    assert small_tiny.with_thresholds(strict).config.thresholds == strict
    assert len(small_tiny(photo, thresholds=TinyPostprocessConfig(box_iou=0.0))) < len(result)


def test_thresholds_of_solo_are_completed(small_tiny, photo, saved):
    thresholds = PostprocessConfig(score_thr=0.2, nms="greedy")
    complete = TinyPostprocessConfig(**asdict(thresholds))
    model = small_tiny.with_thresholds(thresholds)
    assert model.config.thresholds == complete
    assert SOLO.from_pretrained(saved, device="cpu", thresholds=thresholds).config.thresholds == complete
    expected = small_tiny(photo, thresholds=complete)
    assert torch.equal(small_tiny(photo, thresholds=thresholds).scores, expected.scores)
    assert torch.equal(model(photo).scores, expected.scores)


def test_thresholds_of_yolact_are_refused(small_tiny):
    with pytest.raises(ConfigError, match="YOLACTPostprocessConfig: a tiny model takes TinyPost"):
        small_tiny.with_thresholds(YOLACTPostprocessConfig())


# --- Saving and loading


def test_saved_model_predicts_the_same(saved, photo, result):
    for load in (SOLO.from_pretrained, Tiny.from_pretrained, load_model):
        loaded = load(saved, device="cpu")
        assert type(loaded) is Tiny and loaded.config == small_tiny_config()
    assert_same(loaded(photo), result)


def test_other_classes_refuse_tiny(saved, tmp_path):
    with pytest.raises(ConfigError, match="is a tiny model of the family 'tiny': expected one of yolact"):
        YOLACT.from_pretrained(saved, device="cpu")
    with pytest.raises(ConfigError, match="YOLACT cannot use a tiny model of the family 'tiny'"):
        YOLACT.from_checkpoint(read_checkpoint(saved))
    other = small_start().save_pretrained(tmp_path / "solo")
    with pytest.raises(ConfigError, match="is a decoupled_light model .*: expected one of tiny"):
        Tiny.from_pretrained(other, device="cpu")
    with pytest.raises(ConfigError, match="Tiny cannot use a decoupled_light model"):
        Tiny.from_checkpoint(read_checkpoint(other))
    assert type(SOLO.from_pretrained(other, device="cpu")) is SOLO


def test_models_of_checkpoints(saved):
    for segmenter in (SOLO, Tiny, Segmenter):
        assert type(segmenter.from_checkpoint(read_checkpoint(saved))) is Tiny


def test_families_of_a_checkpoint(saved):
    for families in (None, ["tiny"], ["solo", "tiny"]):
        assert load_checkpoint(saved, families=families).config == small_tiny_config()
    with pytest.raises(ConfigError, match="'tiny': expected one of solo, yolact. Use load_model"):
        load_checkpoint(saved, families=["solo", "yolact"])
    with pytest.raises(ConfigError, match="tiny is a tiny model .*: expected one of yolact"):
        load_checkpoint("tiny", families=["yolact"])


class Renamed(SOLO):
    """Class of an application."""


class RenamedTiny(Tiny):
    """Class of an application."""


def test_derived_classes_load_their_family(saved, tmp_path):
    other = small_start().save_pretrained(tmp_path / "solo")
    assert type(Renamed.from_pretrained(other, device="cpu")) is Renamed
    assert type(RenamedTiny.from_pretrained(saved, device="cpu")) is RenamedTiny
    with pytest.raises(ConfigError, match="'tiny': expected one of solo. Use load_model"):
        Renamed.from_pretrained(saved, device="cpu")


def test_other_sizes_of_images(small_tiny):
    for size in ((33, 40), (7, 300), (1, 1)):
        assert small_tiny(np.zeros((*size, 3), np.uint8)).image_size == size


def test_wider_backbone(photo):
    config = small_tiny_config("shufflenet_1.5x")
    config = replace(config, preprocessing=replace(config.preprocessing, short_side=64, long_side=64))
    model = build_segmenter(config, small_tiny_network(config))
    assert type(model) is Tiny
    assert len(model(photo)) > 0


def test_prediction_does_not_wait_for_slow_imports(tmp_path):
    """Torchvision and what it imports take longer than torch itself."""
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    program = (
        "import sys, torch; with_torch = set(sys.modules); from solo_infer import SOLO;"
        "SOLO.from_pretrained('tiny')(sys.argv[1]).save(sys.argv[2]);"
        "print(*({'torchvision', 'torch._dynamo', 'sympy', 'matplotlib'} & set(sys.modules) - with_torch))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "out.png"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == ""
