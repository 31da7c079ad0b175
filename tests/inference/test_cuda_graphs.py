"""Who may use which graph, and when; with a stand-in that records and replays on the CPU.

It has buffers that every replay overwrites, as a CUDA graph has. What it cannot show: that CUDA captures what
we launch, and that the events order the reads of different streams.
"""

import copy
import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.models import HEADS, small_config
from segmenters.test_segmenter import assert_equal, pictures

from solo_infer import SOLO, PostprocessConfig
from solo_infer.errors import DeviceError
from solo_infer.inference import solo_cuda
from solo_infer.inference.cuda_graphs import CudaGraph, GraphCache
from solo_infer.inference.solo_cuda import FastPath
from solo_infer.models.backbones.resnet import ResNet
from solo_infer.models.layers.conv_branch import branch, through
from solo_infer.models.optimized.compiled import CompiledBranch
from solo_infer.models.optimized.group_norm_relu import GroupNormReLU
from solo_infer.runtime.device import graphs_allowed


def tensors_in(value):
    return (
        [value]
        if isinstance(value, torch.Tensor)
        else [tensor for part in value for tensor in tensors_in(part)]
    )


class Recording:
    """A function with inputs and outputs of its own that each replay overwrites."""

    made = 0

    def __init__(self, function, inputs, neighbor):
        type(self).made += 1
        self.size = 10
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]
        self.outputs = function(*self.inputs)
        self.in_use = False

    def replay(self, inputs):
        assert not self.in_use, "two threads use one graph's buffers"
        self.in_use = True
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        for own, new in zip(tensors_in(self.outputs), tensors_in(self.function(*self.inputs)), strict=True):
            own.copy_(new)
        return self.outputs

    def release(self):
        for tensor in tensors_in(self.outputs):
            tensor.zero_()  # whoever still looks sees it
        self.in_use = False


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(Recording, "made", 0)
    return Recording


def double(x):
    return x * 2


def run(cache, key, value, owner="owner", function=double):
    with cache.run(owner, key, function, [torch.tensor([float(value)])]) as found:
        return float(found)


def test_a_key_is_captured_when_it_comes_again(recording):
    cache = GraphCache(recording)
    assert [run(cache, "a", value) for value in (1, 2, 3)] == [2, 4, 6]
    assert (recording.made, len(cache)) == (1, 1)


def test_the_least_recently_used_is_dropped(recording):
    cache = GraphCache(recording, most=2)
    for key in "aabbacc":  # c drops b
        run(cache, key, 1)
    assert (recording.made, len(cache)) == (3, 2)
    for key in "acac":
        run(cache, key, 1)
    assert recording.made == 3
    for key in "bb":
        run(cache, key, 1)
    assert (recording.made, len(cache)) == (4, 2)


def test_more_keys_than_fit_are_captured_ever_more_rarely(recording):
    cache = GraphCache(recording, most=4)
    for _ in range(100):
        for key in "abcdef":
            run(cache, key, 1)
    assert recording.made < 40
    assert len(cache) == 4


def test_bounded_bytes(recording):
    cache = GraphCache(recording, most_bytes=25)
    for key in "aabbcc":
        run(cache, key, 1)
    assert (recording.made, len(cache)) == (3, 2)
    small = GraphCache(recording, most_bytes=5)
    run(small, "a", 1), run(small, "a", 1)
    assert len(small) == 1


def test_another_owner_drops_all(recording):
    cache = GraphCache(recording)
    for owner, made in (("one", 0), ("one", 1), ("other", 1), ("other", 2), ("other", 2)):
        run(cache, "a", 1, owner)
        assert recording.made == made
    assert len(cache) == 1


def test_what_cannot_be_captured_runs_as_usual(caplog):
    def refuse(function, inputs, neighbor):
        raise RuntimeError("CUDA error: no\nmore of it")

    cache = GraphCache(refuse)
    with caplog.at_level(logging.WARNING, "solo_infer"):
        assert [run(cache, "a", value) for value in range(4)] == [0, 2, 4, 6]
    assert [record.getMessage() for record in caplog.records] == [
        "No CUDA graph for this input, it runs without one: CUDA error: no"
    ]


def test_a_graph_is_free_again_after_an_error(recording):
    cache = GraphCache(recording)
    run(cache, "a", 1)
    with pytest.raises(ValueError, match="later"), cache.run("owner", "a", double, [torch.ones(1)]):
        raise ValueError("later")
    assert run(cache, "a", 5) == 10


def test_threads_wait_for_each_other(recording):
    cache = GraphCache(recording)
    start = threading.Barrier(6)

    def work(number):
        start.wait()
        found = []
        for step in range(10):
            value = float(number * 100 + step)
            with cache.run("owner", step % 2, double, [torch.tensor([value])]) as doubled:
                time.sleep(0.0005)
                found.append(float(doubled) == 2 * value)
        return all(found)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert recording.made == 2


@pytest.fixture
def fast_models(small_models, monkeypatch, recording):
    """The small models as they would run on CUDA, by recordings."""
    monkeypatch.setattr(solo_cuda, "graphs_allowed", lambda device: True)
    models = {}
    for head, model in small_models.items():
        models[head] = copy.copy(model)
        models[head]._fast_path = FastPath(model.config.architecture, recording)
    return models


@pytest.mark.parametrize("head", HEADS)
def test_results_of_replays(head, fast_models, small_models, recording):
    images = pictures(2)
    fast = fast_models[head]
    for _ in range(3):
        for image in images:
            found = fast(image)
            assert_close(found, small_models[head], image)
    assert recording.made == len({image.shape for image in images})


def assert_close(found, model, image, **options):
    """Compare with the ordinary way, of the same network."""
    ordinary = copy.copy(model)
    ordinary._fast_path = NeverFits()
    expected = ordinary(image, **options)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    different = (found.masks != expected.masks).flatten(1).sum(dim=1)
    assert (different <= 2).all() and different.sum() <= 5  # they lie on a threshold


class NeverFits:
    def fits(self, device, thresholds):
        return False


def test_many_threads_share_one_model(fast_models, small_models, recording):
    model = fast_models["decoupled_light"]
    images = pictures(4)
    alone = [model(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: model(images[index % 4]), range(16)))
    for index, result in enumerate(found):
        assert_equal(result, alone[index % 4])
    assert 1 <= recording.made <= 4


def test_thresholds_and_classes_have_their_own_graphs_or_inputs(fast_models, small_models, photo):
    model = fast_models["decoupled_light"]
    few, birds = PostprocessConfig(max_per_image=3, score_thr=0.2), ["bird"]
    for _ in range(3):
        assert_close(model(photo), small_models["decoupled_light"], photo)
        assert_close(model(photo, thresholds=few), small_models["decoupled_light"], photo, thresholds=few)
        assert_close(model.only(birds)(photo), small_models["decoupled_light"].only(birds), photo)
    assert len(model._fast_path.graphs) == 2


def test_changed_weights_are_captured_anew(fast_models, photo, recording):
    shared = fast_models["solo"]
    model = SOLO(shared.config, copy.deepcopy(shared.network))
    model._fast_path = FastPath(shared.config.architecture, recording)
    before = [model(photo) for _ in range(3)][-1]
    with torch.no_grad():
        model.network.mask_head.conv_cls.bias.sub_(1.0)
    after = [model(photo) for _ in range(3)]
    assert len(after[0]) == len(after[-1]) and float(after[-1].scores[0]) < float(before.scores[0])


def test_crowded_images_leave_the_graph_and_come_out_right(fast_models, small_models, photo, monkeypatch):
    monkeypatch.setattr(solo_cuda, "BUCKETS", (8, 16))
    for _ in range(3):
        assert_close(fast_models["decoupled"](photo), small_models["decoupled"], photo)


def test_copies_capture_their_own(fast_models, photo):
    model = fast_models["decoupled_light"]
    [model(photo) for _ in range(2)]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(other._fast_path.graphs) == 0
        assert_equal(other(photo), model(photo))


def test_no_graphs_on_the_cpu(small_model):
    assert not graphs_allowed(torch.device("cpu"))
    assert small_model._fast_path._capture is CudaGraph


def test_compiled_models_share_weights_and_find_the_same(small_model, photo, monkeypatch):
    """What is compiled is counted here, and run as it is; the compiler is torch's."""
    given = []

    def remember(module, **options):
        given.append((type(module), options))
        return module

    monkeypatch.setattr(torch, "compile", remember)
    compiled = small_model.compile(mode="reduce-overhead")
    found, expected = compiled(photo), small_model(photo)
    options = {"mode": "reduce-overhead"}
    assert given == [(ResNet, options), (torch.nn.Sequential, options), (torch.nn.Sequential, options)]
    assert compiled.network is small_model.network
    assert compiled._fast_path is not small_model._fast_path
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    assert isinstance(compiled.inference_network.mask_head.mask_convs, CompiledBranch)
    assert not isinstance(small_model.inference_network.mask_head.mask_convs, CompiledBranch)


@torch.no_grad()
def test_a_compiled_branch_is_the_branch():
    plain = branch(small_config("solo").architecture)
    compiled = CompiledBranch(plain, {"backend": "eager"})
    maps = [torch.randn(1, 32, side, side) for side in (6, 9)]
    for found, expected in zip(through(compiled, maps), through(plain, maps), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(compiled(maps[0]), plain(maps[0]))


def test_devices_that_cannot_compile_say_so(small_model, monkeypatch):
    from solo_infer.runtime import device

    monkeypatch.setattr(device, "compile_allowed", lambda where: False)
    with pytest.raises(DeviceError, match="torch.compile on cpu.*Use the model as it is"):
        small_model.compile()


@torch.no_grad()
def test_fused_layers_can_be_exported(small_models):
    branch = small_models["decoupled_light"].inference_network.mask_head.cls_convs
    assert any(isinstance(layer, GroupNormReLU) for layer in branch.modules())
    maps = torch.randn(1, 32, 10, 10)
    program = torch.export.export(branch, (maps,))
    torch.testing.assert_close(program.module()(maps), branch(maps))
