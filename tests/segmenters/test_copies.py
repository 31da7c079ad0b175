"""Copies of a model that share its network, and the optimized network that predictions use."""

import copy
import pickle
from itertools import permutations

import pytest
import torch
from helpers.models import small_config, small_network, small_yolact_config, small_yolact_network, variant_of
from helpers.results import assert_same
from helpers.smooth_images import smooth_images

from solo_infer import SOLO, YOLACT, PostprocessConfig, YOLACTPostprocessConfig
from solo_infer.config.solo import LITE0
from solo_infer.models import build_network
from solo_infer.runtime.device import probe
from solo_infer.segmenters.auto import build_segmenter

THRESHOLDS = {
    "solo": PostprocessConfig(score_thr=0.05, max_per_image=40),
    "yolact": YOLACTPostprocessConfig(max_per_image=40),
}
STEPS = {
    "to": lambda model: model.to(dtype="bfloat16"),
    "only": lambda model: model.only(["cat", "bird"]),
    "with_thresholds": lambda model: model.with_thresholds(THRESHOLDS[model.family]),
    "compile": lambda model: model.compile(backend="eager"),
}
SHARING = ("to", "only", "with_thresholds")
ORDERS = [*permutations(SHARING), ("only", "compile", "to", "with_thresholds")]


@pytest.fixture(autouse=True)
def no_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["solo", "yolact"])
def model(request):
    """Return a model whose network a test may change."""
    if request.param == "solo":
        config = variant_of(small_config("decoupled_light"), {"backbone": LITE0})
        return SOLO(config, small_network(config))
    config = small_yolact_config("mmdet")
    return YOLACT(config, small_yolact_network(config))


@pytest.fixture
def image():
    return smooth_images(1)[0]


def require_bfloat16():
    if probe(torch.device("cpu"), torch.bfloat16).startswith("fails"):
        pytest.skip("bfloat16 does not work on this processor")


def independent(model, dtype):
    """Return a model with the settings of another, but with a network of its own."""
    config = model.config
    return build_segmenter(config, copy.deepcopy(model.network)).to(dtype=dtype)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("model", ["solo"], indirect=True)
def test_copies_do_not_depend_on_the_order(order, model, image):
    check_order(order, model, image)


@pytest.mark.parametrize("model", ["yolact"], indirect=True)
def test_copies_of_yolact_do_not_depend_on_the_order(model, image):
    check_order(ORDERS[0], model, image)


def check_order(order, model, image):
    require_bfloat16()
    thresholds = THRESHOLDS[model.family]
    expected = independent(model.with_thresholds(thresholds), "bfloat16").only(["cat", "bird"])
    copies = [model]
    for step in order:
        copies[-1](image)  # builds optimized networks that the next step may invalidate
        copies.append(STEPS[step](copies[-1]))
    assert all(other.network is model.network for other in copies)
    assert {(other.dtype, other.device.type) for other in copies} == {(torch.bfloat16, "cpu")}
    assert {parameter.dtype for parameter in copies[-1].inference_network.parameters()} == {torch.bfloat16}
    result, expected_result = copies[-1](image), expected(image)
    assert len(result) > 0 and set(result.names) <= {"cat", "bird"}
    if "compile" not in order:
        assert_same(result, expected_result)
        return
    # A compiled network rounds differently, which moves single instances across a threshold.
    assert_same(result, expected.compile(backend="eager")(image))


def test_all_copies_follow_the_network(model, image):
    """Casts to bfloat16 and back, as a model is moved to another device and back."""
    require_bfloat16()
    copies = {
        "itself": model,
        "only": model.only("cat"),
        "with_thresholds": model.with_thresholds(THRESHOLDS[model.family]),
        "both": model.only("cat").with_thresholds(THRESHOLDS[model.family]),
    }
    if model.family == "solo":  # compiling takes seconds
        copies["compile"] = model.compile(backend="eager")
    for dtype in (torch.bfloat16, torch.float32):
        copies["itself"](image)  # builds an optimized network that the cast invalidates
        assert model.to(dtype=dtype) is model
        for other in copies.values():
            assert (other.dtype, other.device) == (dtype, torch.device("cpu"))
            assert repr(other).endswith(f"{str(dtype).removeprefix('torch.')} on cpu>")
        fresh = independent(model, dtype)
        assert_same(copies["itself"](image), fresh(image))
        assert_same(copies["only"](image), fresh.only("cat")(image))
        thresholds = THRESHOLDS[model.family]
        assert_same(copies["with_thresholds"](image), fresh(image, thresholds=thresholds))
        assert_same(copies["both"](image), fresh.only("cat")(image, thresholds=thresholds))
        if "compile" in copies:
            assert_same(copies["compile"](image), fresh.compile(backend="eager")(image))


def test_casting_through_a_copy_casts_the_original(model):
    require_bfloat16()
    model.only("cat").to(dtype="bfloat16")
    model.compile(backend="eager").with_thresholds(THRESHOLDS[model.family])
    assert model.dtype == torch.bfloat16


def test_copies_share_one_optimized_network(model):
    optimized = model.inference_network
    assert model.only("cat").inference_network is optimized
    assert model.with_thresholds(THRESHOLDS[model.family]).inference_network is optimized
    compiled = model.compile(backend="eager")
    assert compiled.inference_network is not optimized
    assert compiled.only("cat").inference_network is compiled.inference_network
    assert model.inference_network is optimized


def test_only_does_not_change_the_original(model, image):
    expected = model(image)
    cats = model.only("cat")
    assert set(cats(image).names) <= {"cat"}
    assert_same(model(image), expected)
    assert_same(cats.only(["cat", "dog", "bird"])(image), expected)


def test_predictions_follow_the_weights(model, image):
    before = model(image)
    assert_same(before, independent(model, "float32")(image))
    torch.manual_seed(4)
    other = build_network(model.config.architecture)
    model.network.load_state_dict(other.state_dict())
    after = model(image)
    assert not torch.equal(after.scores, before.scores)
    assert_same(after, independent(model, "float32")(image))


def test_models_can_be_copied_and_pickled(model, image):
    model = model.only("cat")
    expected = model(image)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.network is not model.network
        assert_same(other(image), expected)


def test_weights_created_in_inference_mode(model, image):
    with torch.inference_mode():
        other = type(model)(model.config, copy.deepcopy(model.network))
        assert_same(other(image), model(image))


def test_predictions_use_only_the_optimized_network(model, image, monkeypatch):
    """Once it is built, no module of the plain network is run."""

    def unexpected(*_):
        raise AssertionError("The plain network was run.")

    expected = model(image)
    for module in model.network.modules():
        for method in ("forward", "features", "class_logits", "masks", "mask_features", "select"):
            if hasattr(module, method):
                monkeypatch.setattr(module, method, unexpected)
    assert len(expected) and torch.equal(model(image).packed_masks, expected.packed_masks)
