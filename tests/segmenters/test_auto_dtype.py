"""The dtype "auto"."""

import json
import os
import threading

import pytest
import torch

from solo_infer import load_model
from solo_infer.errors import DeviceError
from solo_infer.ops.dtype_speed import DtypeSpeed
from solo_infer.runtime import environment
from solo_infer.segmenters import auto_dtype
from solo_infer.segmenters.auto_dtype import choose_dtype, resolve_network_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Machine:
    """A simulated CPU; ``measurements`` counts the measurements."""

    def __init__(self):
        self.speedup, self.has_units, self.is_steady, self.state = 2.0, True, True, "ok"
        self.name, self.measurements = "CPU 1", 0

    def measure(self, dtypes):
        self.measurements += 1
        speeds = {torch.float32: 1.0, torch.bfloat16: self.speedup}
        return {dtype: DtypeSpeed(speeds[dtype], speeds[dtype], self.is_steady) for dtype in dtypes}


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(auto_dtype, "_measured", {})
    monkeypatch.setattr(auto_dtype, "measure_speeds", machine.measure)
    monkeypatch.setattr(auto_dtype, "has_bfloat16_units", lambda: machine.has_units)
    monkeypatch.setattr(auto_dtype, "cpu_name", lambda: machine.name)
    monkeypatch.setattr(auto_dtype, "probe", lambda device, dtype: machine.state)
    return machine


def forget():
    """Forget the measurements of this process, as a new process would."""
    auto_dtype._measured.clear()


def cache_file():
    return environment.cache_home() / "dtype_speed.json"


@pytest.mark.parametrize(
    "speedup, has_units, state, dtype, reason, measurements",
    [
        (2.04, True, "ok", torch.bfloat16, "bfloat16 is 2.0 times as fast as float32", 1),
        (1.31, True, "ok", torch.bfloat16, "1.3 times", 1),
        (1.2, True, "ok", torch.float32, "1.2 times", 1),
        (1.5, None, "ok", torch.bfloat16, "1.5 times", 1),
        (0.2, None, "ok", torch.float32, "0.2 times", 1),
        (9.0, False, "ok", torch.float32, "the processor has no bfloat16 units", 0),
        (9.0, True, "fails: no kernel", torch.float32, "bfloat16 fails: no kernel", 0),
        (9.0, True, "wrong by 3", torch.float32, "bfloat16 wrong by 3", 0),
    ],
)
def test_choice_on_the_cpu(machine, speedup, has_units, state, dtype, reason, measurements):
    machine.speedup, machine.has_units, machine.state = speedup, has_units, state
    choice = choose_dtype(CPU)
    assert choice.dtype == dtype and reason in choice.reason
    assert str(choice) == f"{str(dtype).removeprefix('torch.')} ({choice.reason})"
    assert machine.measurements == measurements


def test_measurement_is_cached(machine):
    assert choose_dtype(CPU) == choose_dtype(CPU)
    forget()
    machine.speedup = 0.5
    assert choose_dtype(CPU).dtype == torch.bfloat16 and machine.measurements == 1
    assert list(json.loads(cache_file().read_text()).values()) == [2.0]


@pytest.mark.parametrize("change", ["name", "threads", "torch"])
def test_another_machine_measures_again(machine, monkeypatch, change):
    choose_dtype(CPU)
    machine.speedup = 0.5
    if change == "name":
        machine.name = "CPU 2"
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert choose_dtype(CPU).dtype == torch.float32 and machine.measurements == 2
    assert sorted(json.loads(cache_file().read_text()).values()) == [0.5, 2.0]


def test_disturbed_measurement_is_not_cached_for_other_processes(machine):
    machine.is_steady = False
    choose_dtype(CPU)
    choose_dtype(CPU)
    assert machine.measurements == 1 and not cache_file().exists()
    forget()
    choose_dtype(CPU)
    assert machine.measurements == 2


def test_cache_that_cannot_be_written(machine, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(environment.HOME, str(tmp_path / "file"))
    assert choose_dtype(CPU).dtype == torch.bfloat16
    assert choose_dtype(CPU).dtype == torch.bfloat16 and machine.measurements == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "[" * 30_000, '{"KEY": NaN}', '{"KEY": -1}', '{"KEY": 0}', '{"KEY": true}']
    + ['{"KEY": "2"}', '{"KEY": [2]}', '{"KEY": 1e999}', '{"KEY": ' + "9" * 400 + "}", "\x00\xff"],
)
def test_damaged_cache_is_replaced(machine, text):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text.replace("KEY", auto_dtype._cache_key()), encoding="latin-1")
    machine.speedup = 3.0
    assert choose_dtype(CPU).dtype == torch.bfloat16 and machine.measurements == 1
    assert json.loads(cache_file().read_text()) == {auto_dtype._cache_key(): 3.0}


def test_cache_is_bounded(machine):
    for index in range(50):
        machine.name = f"CPU {index}"
        choose_dtype(CPU)
    content = json.loads(cache_file().read_text())
    assert len(content) == 32 and any(key.startswith("CPU 49") for key in content)


def test_concurrent_loads_measure_once(machine):
    threads = [threading.Thread(target=choose_dtype, args=(CPU,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert machine.measurements == 1


@pytest.mark.parametrize(
    "capability, corex, states, dtype",
    [
        ((9, 0), False, {}, torch.float16),
        ((7, 0), False, {}, torch.float16),
        ((8, 0), False, {torch.float16: "wrong by 2"}, torch.bfloat16),
        ((7, 5), False, {torch.float16: "wrong by 2"}, torch.float32),
        ((8, 0), False, dict.fromkeys(DTYPES, "fails: no kernel"), torch.float32),
        ((6, 1), False, {}, torch.float32),
        ((7, 0), True, {}, torch.float32),
    ],
)
def test_choice_on_cuda(machine, monkeypatch, capability, corex, states, dtype):
    recommended = torch.float16 if capability >= (7, 0) else torch.float32
    paths = auto_dtype.fast_paths(CPU).__class__(True, True, True, recommended)
    monkeypatch.setattr(auto_dtype, "fast_paths", lambda device: paths)
    monkeypatch.setattr(auto_dtype, "is_corex_card", lambda index: corex)
    monkeypatch.setattr(auto_dtype, "probe", lambda device, dtype: states.get(dtype, "ok"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert choose_dtype(CUDA).dtype == dtype and machine.measurements == 0


def test_other_devices_compute_in_float32(machine):
    assert choose_dtype(torch.device("mps")).dtype == torch.float32


def test_loading_and_moving(machine, tmp_path):
    model = load_model("tiny", device="cpu", dtype="auto")
    assert model.dtype == torch.bfloat16
    folder = model.save_pretrained(tmp_path / "saved")
    assert not any(b'"auto"' in path.read_bytes() for path in folder.rglob("*.json"))
    machine.has_units = False
    assert model.to(dtype="auto").dtype == torch.float32
    assert load_model("tiny", device="cpu").dtype == torch.float32


@pytest.mark.parametrize("dtype", ["Auto", "half", "", None, torch.int8])
def test_error_lists_auto(dtype):
    with pytest.raises(DeviceError, match=r"expected one of float32, float16, bfloat16, auto\.$"):
        resolve_network_dtype(dtype, CPU)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_cache_is_a_normal_file(machine):
    choose_dtype(CPU)
    assert [path.name for path in cache_file().parent.iterdir()] == ["dtype_speed.json"]
