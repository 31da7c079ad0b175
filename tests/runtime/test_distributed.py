"""Processes of torchrun: whose card is whose, and an evaluation that they share."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import ROOT
from torch import distributed as torch_distributed

from solo_infer.errors import DeviceError
from solo_infer.runtime import distributed
from solo_infer.runtime.distributed import (
    backend,
    is_distributed,
    is_main_process,
    is_main_process_env,
    joined,
)

pytest_plugins = ["helpers.command_line_fixtures", "helpers.evaluation_fixtures"]


@pytest.fixture
def torchrun(monkeypatch):
    """The second of two processes, on a machine of two cards that are not really there."""
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
def test_each_process_has_its_own_card(device, torchrun):
    with joined(device) as where:
        assert where == torch.device("cuda:1")
        assert (torchrun.cards, torchrun.backends, torchrun.left) == ([where], ["nccl"], 0)
    assert torchrun.left == 1


def test_processes_on_the_cpu(torchrun):
    with joined("cpu") as where:
        assert where == torch.device("cpu")
    assert (torchrun.cards, torchrun.backends) == ([], ["gloo"])


def test_more_processes_than_cards(torchrun, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"Process 2 .* the 2 card\(s\) .*--nproc-per-node"), joined("cuda"):
        pass
    assert torchrun.backends == []


def test_cards_without_a_library_for_them(torchrun, monkeypatch):
    monkeypatch.setattr(torch_distributed, "is_nccl_available", lambda: False)
    assert backend(torch.device("cuda:0")) == "gloo"


def test_one_process_joins_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as where:
        assert where == torch.device("cpu") and not is_distributed() and is_main_process()


def test_the_chief_is_known_before_any_has_joined(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process_env()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process_env()


def test_two_processes_evaluate_as_one(run, saved, data_set, tmp_path):
    images, annotations = data_set
    verb = ["eval", "--model", saved, "--images", images, "--annotations", annotations, "--json"]
    code, out, _ = run(*verb)
    alone = json.loads(out)
    assert code == 0
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [*program, "-m", "solo_infer", *verb, "--device", "cpu", "--save-json", tmp_path / "all.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    together = json.loads(done.stdout)
    assert together["metrics"] == pytest.approx(alone["metrics"], abs=1e-3)
    assert together["images"] == alone["images"] == together["timings"]["images"]
    assert isinstance(json.loads((tmp_path / "all.json").read_bytes()), list)
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".shards")]


def test_only_one_process_scores_detections(run, data_set, tmp_path, monkeypatch):
    (tmp_path / "none.json").write_text("[]", encoding="utf-8")
    monkeypatch.setenv("RANK", "1")
    verb = ["eval", "--detections", tmp_path / "none.json", "--annotations", data_set[1]]
    assert run(*verb) == (0, "", "")
