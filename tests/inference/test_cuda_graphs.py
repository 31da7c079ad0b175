"""Capture, replay and sharing of CUDA graphs, with a recorder that replays on the CPU.

Its buffers are overwritten by every replay, as those of a CUDA graph are. Not covered here: whether CUDA can
capture the launches, and whether events order the reads of different streams.
"""

import copy
import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

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
from helpers.results import assert_same, assert_same_but_for_rounding
from helpers.smooth_images import smooth_images

from solo_infer import SOLO, PostprocessConfig
from solo_infer.errors import DeviceError
from solo_infer.inference import network_graphs, solo_static
from solo_infer.inference.cuda_graphs import CudaGraph, GraphCache
from solo_infer.models.backbones.resnet import ResNet
from solo_infer.models.layers.conv_branch import ConvBranch
from solo_infer.models.optimized.compiled import CompiledConvBranch
from solo_infer.models.optimized.group_norm_relu import GroupNormReLU
from solo_infer.runtime.device import graphs_allowed


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, int):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]


class Recording:
    """A function with its own inputs and outputs, which each replay overwrites."""

    count = 0

    def __init__(self, function, inputs, pool_owner):
        type(self).count += 1
        self.size = 10
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]
        self.outputs = function(*self.inputs)
        self.in_use = False

    def replay(self, inputs):
        assert not self.in_use, "two threads use the buffers of one graph"
        self.in_use = True
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            buffer.copy_(tensor)
        outputs = tensors_in(self.function(*self.inputs))
        for buffer, tensor in zip(tensors_in(self.outputs), outputs, strict=True):
            buffer.copy_(tensor)
        return self.outputs

    def release(self):
        for tensor in tensors_in(self.outputs):
            tensor.zero_()  # a late reader gets wrong results
        self.in_use = False


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(Recording, "count", 0)
    return Recording


def double(x):
    return x * 2


def run(cache, key, value, owner="owner", function=double):
    with cache.run(owner, key, function, [torch.tensor([float(value)])]) as output:
        return float(output)


def test_key_is_captured_at_its_second_use(recording):
    cache = GraphCache(recording)
    assert [run(cache, "a", value) for value in (1, 2, 3)] == [2, 4, 6]
    assert (recording.count, len(cache)) == (1, 1)


def test_least_recently_used_graph_is_dropped(recording):
    cache = GraphCache(recording, max_graphs=2)
    for key in "aabbacc":  # c replaces b
        run(cache, key, 1)
    assert (recording.count, len(cache)) == (3, 2)
    for key in "acac":
        run(cache, key, 1)
    assert recording.count == 3
    for key in "bb":
        run(cache, key, 1)
    assert (recording.count, len(cache)) == (4, 2)


def test_captures_become_rarer_if_keys_exceed_the_limit(recording):
    cache = GraphCache(recording, max_graphs=4)
    for _ in range(100):
        for key in "abcdef":
            run(cache, key, 1)
    assert recording.count < 40
    assert len(cache) == 4


def test_bytes_are_bounded(recording):
    cache = GraphCache(recording, max_bytes=25)
    for key in "aabbcc":
        run(cache, key, 1)
    assert (recording.count, len(cache)) == (3, 2)
    small = GraphCache(recording, max_bytes=5)
    run(small, "a", 1), run(small, "a", 1)
    assert len(small) == 1


def test_another_owner_drops_all_graphs(recording):
    cache = GraphCache(recording)
    for owner, count in (("first", 0), ("first", 1), ("second", 1), ("second", 2), ("second", 2)):
        run(cache, "a", 1, owner)
        assert recording.count == count
    assert len(cache) == 1


def test_function_that_cannot_be_captured_runs_without_a_graph(caplog):
    def fail(function, inputs, pool_owner):
        raise RuntimeError("CUDA error: first line\nsecond line")

    cache = GraphCache(fail)
    with caplog.at_level(logging.WARNING, "solo_infer"):
        assert [run(cache, "a", value) for value in range(4)] == [0, 2, 4, 6]
    assert [record.getMessage() for record in caplog.records] == [
        "No CUDA graph can be captured for this input, it runs without one: CUDA error: first line"
    ]


def test_graph_is_released_after_an_error(recording):
    cache = GraphCache(recording)
    run(cache, "a", 1)
    with pytest.raises(ValueError, match="in the context"), cache.run("owner", "a", double, [torch.ones(1)]):
        raise ValueError("in the context")
    assert run(cache, "a", 5) == 10


def test_graphs_share_the_memory_pool_of_an_earlier_one():
    owners = []

    def capture(function, inputs, pool_owner):
        recording = Recording(function, inputs, pool_owner)
        owners.append((recording, pool_owner))
        return recording

    cache = GraphCache(capture)
    for key in "aabbcc":
        run(cache, key, 1)
    (first, no_owner), *others = owners
    assert no_owner is None and [pool_owner for _, pool_owner in others] == [first, first]


def test_threads_do_not_share_a_graph_at_the_same_time(recording):
    cache = GraphCache(recording)
    start = threading.Barrier(6)

    def work(number):
        start.wait()
        is_doubled = []
        for step in range(10):
            value = float(number * 100 + step)
            with cache.run("owner", step % 2, double, [torch.tensor([value])]) as output:
                time.sleep(0.0005)
                is_doubled.append(float(output) == 2 * value)
        return all(is_doubled)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert recording.count == 2


@pytest.fixture(scope="session")
def small_models():
    """Return small models on ResNet-50."""
    configs = {head: small_config(head) for head in HEADS}
    return {head: SOLO(config, small_network(config)) for head, config in configs.items()}


@pytest.fixture
def static_models(small_models, monkeypatch, recording):
    """Return the small models as they run on CUDA, with recordings instead of CUDA graphs."""
    monkeypatch.setattr(solo_static, "graphs_allowed", lambda device: True)
    models = {}
    for head, model in small_models.items():
        models[head] = copy.copy(model)
        models[head]._graphs = GraphCache(recording)
    return models


@pytest.mark.parametrize("head", HEADS)
def test_replays_equal_the_dynamic_path(head, static_models, small_models, recording):
    images = smooth_images(2, seed=1)  # no mask score is near the threshold, with old versions of torch too
    for _ in range(3):
        for image in images:
            assert_close(static_models[head](image), small_models[head], image)
    assert recording.count == len({image.shape for image in images})


@pytest.mark.parametrize("name", ["tiny", *YOLACT_VARIANTS])
def test_network_graphs_equal_the_network(name, small_tiny, small_yolacts, monkeypatch, recording):
    """The results outlive the buffers of the graph, which the recording zeroes after each use."""
    model = small_tiny if name == "tiny" else small_yolacts[name]
    images = smooth_images(2)
    expected = [model(image) for image in images]
    monkeypatch.setattr(network_graphs, "graphs_allowed", lambda device: True)
    replayed = copy.copy(model)
    replayed._graphs = GraphCache(recording)
    for _ in range(3):
        for result, reference in zip([replayed(image) for image in images], expected, strict=True):
            assert len(result) > 0
            assert_same(result, reference)
    assert recording.count == len(replayed._graphs) > 0
    for other in (replayed.only(replayed.config.categories.names[0]), replayed.with_settings(min_score=0.2)):
        other(images[0])
    assert recording.count == len(replayed._graphs)


def test_deformable_convolutions_are_not_captured(monkeypatch, recording):
    """Torchvision launches them on the default stream, which no graph records."""
    monkeypatch.setattr(solo_static, "graphs_allowed", lambda device: True)
    config = variant_of(small_config("solov2"), DEFORMABLE)
    model = SOLO(config, randomize(small_network(config)))
    model._graphs = GraphCache(recording)
    (image,) = smooth_images(1)
    for _ in range(3):
        assert_close(model(image), model, image)
    assert recording.count == 0


def assert_close(result, model, image, **options):
    """Compare with the dynamic path of the same network."""
    with patch.object(solo_static, "is_supported", return_value=False):
        expected = model(image, **options)
    assert_same_but_for_rounding(result, expected)


def test_threads_share_one_model(static_models, recording):
    model = static_models["decoupled_light"]
    images = smooth_images(4)
    expected = [model(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda index: model(images[index % 4]), range(16)))
    for index, result in enumerate(results):
        assert_same(result, expected[index % 4])
    assert 1 <= recording.count <= 4


def test_thresholds_have_their_own_graphs_and_classes_are_inputs(static_models, small_models, photo):
    static, model = static_models["decoupled_light"], small_models["decoupled_light"]
    thresholds, classes = PostprocessConfig(max_per_image=3, score_thr=0.2), ["bird"]
    for _ in range(3):
        assert_close(static(photo), model, photo)
        assert_close(static(photo, thresholds=thresholds), model, photo, thresholds=thresholds)
        assert_close(static.only(classes)(photo), model.only(classes), photo)
    assert len(static._graphs) == 2


def test_changed_weights_are_captured_again(static_models, photo, recording):
    shared = static_models["solo"]
    model = SOLO(shared.config, copy.deepcopy(shared.network))
    model._graphs = GraphCache(recording)
    before = [model(photo) for _ in range(3)][-1]
    with torch.no_grad():
        model.network.mask_head.conv_cls.bias.sub_(1.0)
    after = [model(photo) for _ in range(3)]
    assert len(after[0]) == len(after[-1]) and float(after[-1].scores[0]) < float(before.scores[0])


def test_more_candidates_than_the_capacity(static_models, small_models, photo, monkeypatch):
    monkeypatch.setattr(solo_static, "CAPACITIES", (8, 16))
    for _ in range(3):
        assert_close(static_models["decoupled"](photo), small_models["decoupled"], photo)


def test_copies_and_pickles_have_their_own_graphs(static_models, photo):
    model = static_models["decoupled_light"]
    [model(photo) for _ in range(2)]
    assert len(model._graphs) == 1
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other._graphs) == 0
        assert_same(other(photo), model(photo))


def test_no_graphs_on_the_cpu(small_model):
    assert not graphs_allowed(torch.device("cpu"))
    assert small_model._graphs._capture is CudaGraph


def test_compiled_models_share_weights_and_results(small_model, photo, monkeypatch):
    """Record what is passed to ``torch.compile``, and run it uncompiled."""
    compiled_modules = []

    def remember(module, **options):
        compiled_modules.append((type(module), options))
        return module

    monkeypatch.setattr(torch, "compile", remember)
    compiled = small_model.compile(mode="reduce-overhead")
    result, expected = compiled(photo), small_model(photo)
    options = {"mode": "reduce-overhead"}
    assert compiled_modules == [
        (ResNet, options),
        (torch.nn.Sequential, options),
        (torch.nn.Sequential, options),
    ]
    assert compiled.network is small_model.network
    assert compiled._graphs is not small_model._graphs
    assert torch.equal(result.labels, expected.labels)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-5)
    assert isinstance(compiled.inference_network.mask_head.mask_convs, CompiledConvBranch)
    assert not isinstance(small_model.inference_network.mask_head.mask_convs, CompiledConvBranch)


@pytest.mark.parametrize("axes", ["", "x", "xy"])
@torch.no_grad()
def test_compiled_branch_equals_the_branch(axes):
    plain = ConvBranch(32, 32, 2, axes=axes)
    compiled = CompiledConvBranch(plain, {"backend": "eager"})
    maps = [torch.randn(1, 32, side, side) for side in (6, 9)]
    for output, expected in zip(compiled(maps), plain(maps), strict=True):
        torch.testing.assert_close(output, expected)


def test_compile_on_unsupported_devices_raises(small_model, monkeypatch):
    from solo_infer.runtime import device

    monkeypatch.setattr(device, "compile_allowed", lambda device: False)
    with pytest.raises(DeviceError, match="torch.compile on cpu.*Use the model as it is"):
        small_model.compile()


@torch.no_grad()
def test_fused_layers_can_be_exported(small_models):
    branch = small_models["decoupled_light"].inference_network.mask_head.cls_convs
    assert any(isinstance(layer, GroupNormReLU) for layer in branch.modules())
    maps = [torch.randn(1, 32, 10, 10)]
    program = torch.export.export(branch, (maps,))
    for output, expected in zip(program.module()(maps), branch(maps), strict=True):
        torch.testing.assert_close(output, expected)
