"""Iluvatar BI-V100: recognition, operation checks, plain PyTorch in float32, and no float64 tensors."""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.fake_corex import CARD, SimulatedCard, report_as_corex
from helpers.forbid_float64 import Float64Error, NoFloat64
from helpers.models import HEADS
from helpers.training_runs import (
    QUICK,
    QUICK_FINE_TUNE,
    Rectangles,
    losses,
    small_start,
    write_nuts_and_bolts,
)

from solo_infer import SOLO
from solo_infer.diagnostics import problems
from solo_infer.diagnostics.device_checks import OPERATIONS, describe_devices, is_needed, probe_operations
from solo_infer.diagnostics.doctor import describe_torch
from solo_infer.errors import DeviceError
from solo_infer.evaluation.evaluate import evaluate
from solo_infer.runtime import device as device_module
from solo_infer.runtime.device import cuda_problem, fast_paths, is_corex, resolve_device
from solo_infer.training import fine_tune
from solo_infer.training.trainer import fit

pytest_plugins = ["helpers.evaluation_fixtures"]
pytestmark = pytest.mark.usefixtures("no_plots")

QUICK_EPOCH = replace(QUICK, epochs=1)


@pytest.fixture
def corex(monkeypatch):
    """CoreX build of torch with one working card."""
    report_as_corex(monkeypatch)
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it raises
    yield
    device_module._fast_paths.cache_clear()


@pytest.fixture
def card(corex):
    """Simulate a card that rejects float64."""
    with SimulatedCard(forbid_float64=True) as card:
        yield card


def test_corex_is_recognized_and_has_no_fast_paths(corex):
    assert is_corex() and cuda_problem() == ""
    for name in ("cuda", "cuda:0"):
        assert fast_paths(torch.device(name)) == device_module.NO_FAST_PATHS
    assert device_module.NO_FAST_PATHS.dtype == torch.float32
    assert not fast_paths(torch.device("cpu")).compile


def test_card_is_recognized_by_name(corex, monkeypatch):
    monkeypatch.setattr(torch, "corex", False)
    monkeypatch.setattr(device_module.metadata, "version", lambda name: "2.1.0")
    assert not is_corex()
    assert fast_paths(torch.device("cuda")) == device_module.NO_FAST_PATHS
    device_module._fast_paths.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
    assert fast_paths(torch.device("cuda")).graphs


def test_mismatched_driver_and_sdk(monkeypatch):
    report_as_corex(monkeypatch, usable=False)
    assert resolve_device("auto") == torch.device("cpu")
    assert "driver and SDK versions differ (CUDA driver version is insufficient" in cuda_problem()
    with pytest.raises(
        DeviceError, match="'cuda' is not available: torch detects a device but cannot use it"
    ):
        resolve_device("cuda")
    facts = describe_torch()
    assert (facts["corex"], facts["cuda_available"], facts["cuda_devices_seen"]) == (True, False, 1)
    assert "Install matching versions" in problems._cuda_fix(facts, {})


def test_unsupported_operations_are_found(corex):
    with SimulatedCard() as card:
        states = probe_operations(torch.device("cuda"))
    assert card.num_transfers > len(OPERATIONS)
    assert states.pop("float64 copy") == "becomes zeros"
    assert states.pop("float64 matmul").startswith("fails: CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")
    assert {state for name, state in states.items() if is_needed(name)} == {"ok"}


def test_description_of_the_card(corex):
    with SimulatedCard():
        _, card = describe_devices()
    assert (card["name"], card["capability"], card["warp_size"]) == (CARD.name, "7.0", 64)
    assert card["corex"] and card["works"]["float32"] == "ok"
    paths = {"triton": False, "graphs": False, "compile": False, "dtype": "float32"}
    assert card["fast_paths"] == paths
    assert card["operations"]["float64 copy"] == "becomes zeros"


@pytest.mark.parametrize("head", HEADS)
def test_predictions_on_the_card(head, small_models, card, photo):
    model = small_models[head]
    expected = model(photo)
    moved = SOLO(model.config, _copy(model.network)).to("cuda")
    assert moved.device == torch.device("cuda:0")
    assert card.num_transfers >= len(model.network.state_dict())
    result = moved(photo).cpu()
    assert torch.equal(result.labels, expected.labels)
    differences = (result.scores - expected.scores).abs()
    assert float(differences.max()) < 5e-3 and int((differences > 2e-5).sum()) <= 0.05 * len(result)
    assert result.to_coco(1)[0]["segmentation"]["size"] == list(photo.shape[:2])


def _copy(network):
    """Return a copy, because moving a network changes it in place."""
    return copy.deepcopy(network)


def test_float64_weights_are_converted_to_float32(small_model, card, tmp_path):
    from safetensors.torch import save_file

    folder = small_model.save_pretrained(tmp_path / "model")
    doubles = {name: value.double() for name, value in small_model.network.state_dict().items() if value.ndim}
    integers = {name: value for name, value in small_model.network.state_dict().items() if not value.ndim}
    save_file(doubles | integers, folder / "model.safetensors")
    model = SOLO.from_pretrained(folder, device="cuda")
    assert (model.dtype, model.device.type) == (torch.float32, "cuda")


def test_training_on_the_card(card, tmp_path):
    fit(small_start(), Rectangles(1), tmp_path / "card", QUICK_EPOCH, device="cuda")
    assert card.num_transfers > 300
    fit(small_start(), Rectangles(1), tmp_path / "cpu", QUICK_EPOCH, device="cpu")
    for row, expected in zip(losses(tmp_path / "card"), losses(tmp_path / "cpu"), strict=True):
        assert [float(value) for value in row] == pytest.approx(
            [float(value) for value in expected], rel=1e-3
        )


def test_fine_tuning_on_the_card_from_files(card, tmp_path):
    """Move images and targets of a data set to the card, train and evaluate there."""
    data = write_nuts_and_bolts(tmp_path / "data")
    recipe = replace(QUICK_FINE_TUNE, epochs=1)
    run = fine_tune(small_start(), data, tmp_path / "run", recipe, validation=data, device="cuda")
    assert card.num_transfers > 300
    assert (run / "evaluation.csv").is_file() and (run / "model.safetensors").is_file()


def test_evaluation_on_the_card(card, real, data_set):
    expected = evaluate(real, *data_set).metrics
    model = SOLO(real.config, _copy(real.network)).to("cuda")
    assert evaluate(model, *data_set).metrics == pytest.approx(expected, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("head", HEADS)
def test_no_float64_in_predicting(head, small_models, photo, photo_path):
    model = SOLO(small_models[head].config, _copy(small_models[head].network))
    with NoFloat64() as guard:
        result = model([photo, photo_path, photo / 255.0])[0]
        result.filter(0.2).to_coco(1)
        assert len(result.masks) == len(result)
    assert guard.num_operators > 1000


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "autocast": "bfloat16"}], ids=str)
def test_no_float64_in_training(changes, tmp_path):
    with NoFloat64() as guard:
        fit(small_start(), Rectangles(), tmp_path, replace(QUICK_EPOCH, **changes), device="cpu")
    assert guard.num_operators > 10_000


def test_no_float64_in_evaluating(real, data_set):
    with NoFloat64() as guard:
        evaluate(real, *data_set)
    assert guard.num_operators > 1000


@pytest.mark.parametrize(
    "act",
    [
        lambda: torch.ones(2, dtype=torch.float64),
        lambda: torch.ones(2) * torch.tensor([1.0, 2.0], dtype=torch.float64),
        lambda: torch.ones(2).double(),
        lambda: torch.ones(2).sum(dtype=torch.float64),
    ],
)
def test_guard_rejects_float64(act):
    with pytest.raises(Float64Error), NoFloat64():
        act()


def test_simulated_card_behaves_like_the_real_one():
    with SimulatedCard(), pytest.raises(RuntimeError, match="cublasDgemm"):
        numbers = torch.ones(2, 2, dtype=torch.float64, device="cuda")
        numbers @ numbers
    with SimulatedCard(forbid_float64=True), pytest.raises(AssertionError, match="float64"):
        torch.ones(2).double().to("cuda:0")
    with SimulatedCard():
        moved = torch.arange(3.0, dtype=torch.float64).to(torch.device("cuda"))
        assert moved.cpu().tolist() == [0, 0, 0]
        assert (moved.device.type, moved.cpu().device.type) == ("cuda", "cpu")
    assert SimpleNamespace(**vars(CARD)).warp_size == 64
