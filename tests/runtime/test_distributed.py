"""Processes of torchrun: devices, process group, and an evaluation that they share."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.fresh_processes import exit_with_main, run_ranks
from torch import distributed as torch_distributed

from solo_infer.errors import DeviceError
from solo_infer.runtime import distributed
from solo_infer.runtime.distributed import (
    backend,
    is_distributed,
    is_main_process,
    is_main_process_env,
    process_group,
    rank_and_world_size,
)

pytest_plugins = ["helpers.command_line_fixtures", "helpers.evaluation_fixtures"]


@pytest.fixture
def torchrun(monkeypatch):
    """Simulate the second of two processes on a machine with two simulated cards."""
    calls = SimpleNamespace(backends=[], cards=[], left=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", calls.cards.append)
    monkeypatch.setattr(distributed, "resolve_device", torch.device)
    monkeypatch.setattr(torch_distributed, "init_process_group", calls.backends.append)
    monkeypatch.setattr(torch_distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(
        torch_distributed, "destroy_process_group", lambda: setattr(calls, "left", calls.left + 1)
    )
    return calls


@pytest.mark.parametrize("device", [None, "auto", "cuda", "cuda:0", torch.device("cuda", 0)])
def test_each_process_gets_the_card_of_its_rank(device, torchrun):
    with process_group(device) as local_device:
        assert local_device == torch.device("cuda:1")
        assert (torchrun.cards, torchrun.backends, torchrun.left) == ([local_device], ["nccl"], 0)
    assert torchrun.left == 1


def test_processes_on_the_cpu_use_gloo(torchrun):
    with process_group("cpu") as local_device:
        assert local_device == torch.device("cpu")
    assert (torchrun.cards, torchrun.backends) == ([], ["gloo"])


def test_more_processes_than_cards_raise(torchrun, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with (
        pytest.raises(DeviceError, match=r"Process 2 .* the 2 device\(s\) .*--nproc-per-node"),
        process_group("cuda"),
    ):
        pass
    assert torchrun.backends == []


def test_gloo_without_nccl(torchrun, monkeypatch):
    monkeypatch.setattr(torch_distributed, "is_nccl_available", lambda: False)
    assert backend(torch.device("cuda:0")) == "gloo"


def test_single_process_has_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as local_device:
        assert local_device == torch.device("cpu") and not is_distributed() and is_main_process()
        assert rank_and_world_size() == (0, 1)


def test_main_process_before_the_group_exists(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process_env()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process_env()


def test_two_processes_equal_one(run, saved, data_set, tmp_path):
    images, annotations = data_set
    command = ["eval", "--model", saved, "--images", images, "--annotations", annotations, "--json"]
    code, out, _ = run(*command)
    single = json.loads(out)
    assert code == 0
    arguments = [*command, "--device", "cpu", "--save-json", tmp_path / "all.json"]
    first, second = run_ranks(exit_with_main, [str(argument) for argument in arguments])
    for process in (first, second):
        assert process.returncode == 0, process.stderr[-3000:]
    assert second.stdout == ""
    distributed_report = json.loads(first.stdout)
    assert distributed_report["metrics"] == pytest.approx(single["metrics"], abs=1e-3)
    assert distributed_report["images"] == single["images"] == distributed_report["timings"]["images"]
    assert isinstance(json.loads((tmp_path / "all.json").read_bytes()), list)
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".shards")]


def test_only_the_main_process_scores_detections(run, data_set, tmp_path, monkeypatch):
    (tmp_path / "none.json").write_text("[]", encoding="utf-8")
    monkeypatch.setenv("RANK", "1")
    command = ["eval", "--detections", tmp_path / "none.json", "--annotations", data_set[1]]
    assert run(*command) == (0, "", "")
