"""Training leaves the state of torch and of the process as it was, and does not depend on it."""

import contextlib
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from helpers.ambient_states import default_dtype
from helpers.training_runs import (
    ONE_LAYER,
    QUICK_FINE_TUNE,
    Noise,
    assert_equal_runs,
    one_layer_model,
    small_start,
    sum_of_weights,
    write_nuts_and_bolts,
)

from solo_infer.errors import TrainingError
from solo_infer.training import Recipe, fine_tune, fit
from solo_infer.training.initialization import prepare_for_training
from solo_infer.training.metrics_log import read_rows
from solo_infer.training.torch_state import deferred_interrupt, flushed_denormals, neutral_torch_state

QUICK = replace(QUICK_FINE_TUNE, epochs=1, augment="jitter", crop_size=64, copy_paste=1.0)


AMBIENT = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def torch_state():
    """Return the settings of torch in this thread."""
    denormal = torch.full((1,), 1e-40, dtype=torch.float32, device="cpu") * 1.0
    return (
        torch.get_default_dtype(),
        torch.empty(0).device.type,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu") if hasattr(torch, "get_autocast_dtype") else None,
        bool(denormal.count_nonzero()),
        torch.get_num_threads(),
        torch.default_generator.get_state().tolist(),
    )


def run(folder, model):
    return fit(model, Noise(), folder, ONE_LAYER, device="cpu", evaluate=sum_of_weights)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "expected", one_layer_model())


@pytest.mark.parametrize("name", AMBIENT)
def test_ambient_state_changes_nothing_and_stays(tmp_path, expected, name):
    model = one_layer_model()
    with AMBIENT[name]():
        before = torch_state()
        run(tmp_path, model)
        assert torch_state() == before
    assert_equal_runs(tmp_path, expected)


def test_state_is_restored_after_errors(tmp_path):
    def fail(epoch, index):
        raise TrainingError("stop")

    model = one_layer_model()
    before = torch_state()
    with pytest.raises(TrainingError, match="stop"):
        fit(model, Noise(before=fail), tmp_path, ONE_LAYER, device="cpu")
    assert torch_state() == before and before[5]


@pytest.mark.parametrize("is_flushed", [False, True])
def test_denormals_are_flushed_only_inside(is_flushed):
    number = torch.full((1 << 18,), 1e-40, dtype=torch.float32)
    torch.set_flush_denormal(is_flushed)
    try:
        with flushed_denormals():
            assert not (number[:1] * 1.0).any()
        assert bool((number[:1] * 1.0).any()) != is_flushed
    finally:
        torch.set_flush_denormal(False)
    assert (number * 1.0).all()  # in all threads


@pytest.mark.parametrize("is_nested", [False, True])
def test_autocast_uses_the_weights_of_the_last_step(tmp_path, is_nested):
    """Inside another autocast context, torch keeps the weights that it has cast."""
    rows = {}
    for autocast in ("float32", "bfloat16"):
        recipe = replace(ONE_LAYER, autocast=autocast, lr=0.2, warmup_iters=0, ema_decay=0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16) if is_nested else contextlib.nullcontext():
            folder = fit(one_layer_model(), Noise(8), tmp_path / autocast, recipe, device="cpu")
        rows[autocast] = [float(row["loss"]) for row in read_rows(folder / "training.csv")]
    assert rows["float32"][-1] < rows["float32"][0] / 4
    assert rows["bfloat16"] == pytest.approx(rows["float32"], abs=0.25)
    assert rows["bfloat16"][-1] < rows["bfloat16"][0] / 4


def test_default_device_that_the_machine_lacks():
    with torch.device("xpu:7"), neutral_torch_state():
        assert torch.empty(1).device.type == "cpu"


def test_fine_tuning_of_a_model_from_inference_mode_under_odd_defaults(tmp_path):
    """Data loading, augmentation, new layers, evaluation: nothing uses the defaults of the caller."""
    data = write_nuts_and_bolts(tmp_path / "data")
    with torch.inference_mode():
        model = small_start()
    for name in ("plain", "odd"):
        odd = default_dtype(torch.float64) if name == "odd" else contextlib.nullcontext()
        with odd, torch.device("meta") if name == "odd" else contextlib.nullcontext(), torch.no_grad():
            fine_tune(model, data, tmp_path / name, QUICK, validation=data, device="cpu")
    assert_equal_runs(tmp_path / "odd", tmp_path / "plain")


def test_networks_from_inference_mode_can_be_trained():
    with torch.inference_mode():
        model = small_start()
        network = model.network
        network.backbone.register_buffer("made_here", torch.zeros(1))
    prepare_for_training(network, Recipe(freeze_stem=False))
    tensors = [*network.parameters(), *network.buffers()]
    assert not any(tensor.is_inference() for tensor in tensors)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_interrupts_are_deferred_in_the_main_thread_only(default_ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("first")
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("never")
    assert done == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def use():
        with deferred_interrupt():
            done.append("thread")

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert done == ["first", "thread"]
