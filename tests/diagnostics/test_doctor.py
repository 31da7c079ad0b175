"""Diagnostic report: contents, problems and fixes, and robustness on broken machines."""

import copy
import errno
import json
from types import SimpleNamespace

import pytest
import torch
from helpers.doctor_reports import HEALTHY, make_report, single_problem
from helpers.faulty_server import forbid_sockets, redirect, running_server, status

from solo_infer.diagnostics import doctor, packages
from solo_infer.diagnostics.doctor import collect_report, find_problems, format_report
from solo_infer.diagnostics.packages import MODULES, PACKAGES
from solo_infer.errors import CacheError
from solo_infer.runtime import environment
from solo_infer.weights.manifest import ManifestEntry, Source


@pytest.fixture
def quick(monkeypatch):
    """Skip device probes and package imports, which are tested separately."""
    monkeypatch.setattr(doctor, "_describe_devices", lambda: copy.deepcopy(HEALTHY["devices"]))
    monkeypatch.setattr(doctor, "describe_torch", lambda: HEALTHY["torch"])
    monkeypatch.setattr(packages, "try_import", lambda module: "ok")


@pytest.fixture
def publish(monkeypatch):
    """Return a function that replaces the sources in the manifest."""

    def publish(*sources):
        entry = ManifestEntry("m", "solo", "solo_r50", "m.pth", sources, "", None, "MIT", True, 1.0, "us")
        monkeypatch.setattr(doctor, "load_manifest", lambda: {"m": entry})

    return publish


# --- The report


def test_report_of_this_machine(monkeypatch):
    monkeypatch.setenv(environment.OFFLINE, "1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    forbid_sockets(monkeypatch)
    report = collect_report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {*HEALTHY, "problems"}
    assert set(report["packages"]) == set(PACKAGES)
    assert report["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["imports"] == dict.fromkeys(MODULES, "ok")
    assert set(report["torch"]) == set(HEALTHY["torch"])
    assert report["devices"][0]["device"] == "cpu"
    assert report["devices"][0]["works"]["float32"] == "ok"
    assert report["devices"][0]["paths"]["GroupNorm"] == "torch (for CUDA only)"
    assert report["cache"]["writable"] and report["cache"]["free_bytes"] > 0
    assert report["offline"] and set(report["sources"].values()) == {"not tested (offline)"}
    assert {"https://download.openmmlab.com", "https://huggingface.co"} <= set(report["sources"])
    assert "Offline mode is on, and no published model" in format_report(report)


def test_text_contains_every_section():
    report = make_report(
        sources={"https://host": "unreachable: no route"}, environment={"HF_HOME": "/h"}, offline=True
    )
    report["problems"] = find_problems(report)
    text = format_report(report)
    for line in (
        "torch 1.0",
        "Not installed: triton",
        "build 12.1, available",
        "cuda:0: Card (9.0, 80.0 GiB)",
        "triton: GroupNorm\n",
        "torch (no compiler): Matrix-NMS\n",
        "on: CUDA graphs\n",
    ):
        assert line in text
    for line in ("bfloat16 ok", "/c (writable, 1024.0 GiB free)", "models: solo_r50_1x", "HF_HOME=/h"):
        assert line in text
    assert "https://host: unreachable: no route" in text
    assert f"- {report['problems'][0]['problem']}\n    Fix: {report['problems'][0]['fix']}" in text
    healthy = {**make_report(cache={"writable": False}), "problems": []}
    assert "NOT writable" in format_report(healthy)
    assert format_report(healthy).endswith("Problems: none")


def test_healthy_machine_has_no_problem():
    assert find_problems(make_report()) == []


# --- Packages


def test_missing_or_broken_package():
    problem = single_problem(
        make_report(imports={"filelock": "ModuleNotFoundError: No module"}, packages={"filelock": None})
    )
    assert problem["problem"].startswith("filelock (not installed) cannot be imported: ModuleNotFoundError")
    problem = single_problem(make_report(imports={"pycocotools": "ValueError: numpy.dtype size changed"}))
    assert problem["problem"].startswith("pycocotools (1.0) cannot be imported")


@pytest.mark.parametrize(
    "error", [ImportError("no\nthing"), OSError("libcublas.so.11: no such file"), ValueError]
)
def test_import_errors_are_reported(error, monkeypatch):
    def fail(module):
        raise error

    monkeypatch.setattr(packages.importlib, "import_module", fail)
    state = packages.try_import("torch")
    assert state in {"ImportError: no", "OSError: libcublas.so.11: no such file", "ValueError"}


def test_report_without_torch(monkeypatch):
    monkeypatch.setenv(environment.OFFLINE, "1")
    monkeypatch.setattr(packages, "try_import", lambda module: "OSError: gone" if module == "torch" else "ok")
    report = collect_report()
    assert (report["torch"], report["devices"]) == (None, [])
    assert "torch" in report["problems"][0]["problem"] and "OSError: gone" in report["problems"][0]["problem"]
    assert "CUDA: unknown" in format_report(report)


# --- The cache


def test_unwritable_cache(quick, publish, monkeypatch, tmp_path):
    publish()
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv(environment.HOME, str(tmp_path / "file" / "cache"))
    report = collect_report()
    assert not report["cache"]["writable"]
    problem = single_problem(report)
    assert str(tmp_path / "file" / "cache") in problem["problem"] and "Not a directory" in problem["problem"]
    assert environment.HOME in problem["fix"]


def test_read_only_cache(quick, publish, monkeypatch):
    def refuse(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    publish()
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert "Read-only file system" in single_problem(collect_report())["problem"]


def test_low_disk_space(quick, publish, monkeypatch):
    publish()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 << 20))
    problem = single_problem(collect_report())
    assert "only 50 MiB free" in problem["problem"]


def test_describing_the_cache_creates_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(environment.HOME, str(tmp_path / "a" / "b"))
    assert doctor.describe_cache()["writable"]
    assert list(tmp_path.iterdir()) == []


def test_cached_models_are_listed(monkeypatch, tmp_path):
    entry = doctor.load_manifest()["solo_r50_1x"]
    path = tmp_path / "weights" / entry.filename
    path.parent.mkdir()
    path.write_bytes(b"weights")
    monkeypatch.setenv(environment.HOME, str(tmp_path))
    assert doctor.describe_cache()["models"] == ["solo_r50_1x"]


def test_unreadable_cache(monkeypatch):
    def refuse(entry):
        raise CacheError("no")

    monkeypatch.setattr("solo_infer.weights.fetch.is_cached", refuse)
    assert doctor.describe_cache()["models"] == []


def test_offline_without_models():
    problem = single_problem(make_report(offline=True, cache={"models": []}))
    assert "no published model is in the cache" in problem["problem"]
    assert find_problems(make_report(offline=True)) == []
    assert find_problems(make_report(offline=True, cache={"models": []}, mirror="/mirror")) == []


# --- Sources


def test_each_host_gets_one_request(server, publish):
    server.at("/", status(403))
    publish(*(Source("url", url=f"{server.base}/{name}.pth") for name in "abc"))
    assert doctor.describe_sources() == {server.base: "reachable"}
    assert [request.method for request in server.requests] == ["HEAD"]


def test_states_of_hosts(server, publish, monkeypatch):
    monkeypatch.setattr(doctor, "_TIMEOUT_SECONDS", 0.2)
    with running_server() as failing, running_server() as silent, running_server() as gone:
        server.at("/", redirect(f"{server.base}/login"))
        server.at("/login", status(200))
        failing.at("/", status(502))
        silent.at("/", lambda handler: silent.stopping.wait(5))
        dead = gone.base
        bases = [server.base, failing.base, silent.base]
        gone.shutdown()
        gone.server_close()
        publish(*(Source("url", url=f"{base}/x") for base in [*bases, dead]))
        states = doctor.describe_sources()
    assert states[server.base] == "reachable"
    assert states[failing.base] == "unreachable: HTTP 502 Bad Gateway"
    assert states[silent.base] == "unreachable: timed out"
    assert "refused" in states[dead]


def test_proxy_is_used_and_its_error_reported(server, publish, monkeypatch):
    monkeypatch.setenv("http_proxy", server.base)
    server.at("http://weights.invalid/", status(407))
    publish(Source("url", url="http://weights.invalid/x.pth"))
    assert doctor.describe_sources() == {
        "http://weights.invalid": "unreachable: HTTP 407 Proxy Authentication Required"
    }


def test_custom_hub_endpoint_is_tested(server, publish, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.base)
    publish(Source("hub", repo="a/b", filename="c"))
    assert doctor.describe_sources() == {server.base: "reachable"}


def test_offline_mode_opens_no_socket(quick, publish, monkeypatch):
    forbid_sockets(monkeypatch)
    monkeypatch.setenv(environment.OFFLINE, "1")
    monkeypatch.setenv(environment.MIRROR, "https://mirror.invalid/solo")
    publish(Source("url", url="http://host.invalid/x"), Source("hub", repo="a/b", filename="c"))
    states = collect_report()["sources"]
    assert len(states) == 3
    assert set(states.values()) == {"not tested (offline)"}


def test_unreachable_source():
    problem = single_problem(make_report(sources={"https://host": "unreachable: no route"}))
    assert problem["problem"].startswith("https://host is unreachable: no route")
    assert environment.MIRROR in problem["fix"] and "solo-infer download NAME --output DIR" in problem["fix"]


def test_reachable_mirror_replaces_other_sources(quick, publish, monkeypatch, tmp_path):
    publish(Source("url", url="http://127.0.0.1:9/x"))
    for mirror in (str(tmp_path), f"file://{tmp_path}"):
        monkeypatch.setenv(environment.MIRROR, mirror)
        report = collect_report()
        assert report["sources"][mirror] == "reachable"
        assert report["sources"]["http://127.0.0.1:9"].startswith("unreachable")
        assert report["problems"] == []


@pytest.mark.parametrize(
    "mirror", ["missing/folder", "http://127.0.0.1:9/solo", "http://[", "ftp://host/solo"]
)
def test_missing_mirror(quick, publish, monkeypatch, mirror):
    publish()
    monkeypatch.setenv(environment.MIRROR, mirror)
    problem = single_problem(collect_report())
    assert problem["problem"].startswith("The mirror") and "unreachable" in problem["problem"]
    assert environment.MIRROR in problem["fix"]


def test_invalid_timeout(monkeypatch):
    monkeypatch.setenv(environment.TIMEOUT, "soon")
    problem = single_problem(make_report())
    assert "'soon'" in problem["problem"] and environment.TIMEOUT in problem["fix"]


def test_credentials_are_redacted(quick, publish, server, monkeypatch):
    server.at("/", status(200))
    publish(Source("url", url=server.base.replace("//", "//user:secret@") + "/x"))
    monkeypatch.setenv(environment.MIRROR, server.base.replace("//", "//me:secret@") + "/solo")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "secret")
    report = collect_report()
    assert "secret" not in json.dumps(report)
    assert report["environment"]["HTTPS_PROXY"] == "http://***@127.0.0.1:9"
    assert report["sources"] == {server.base: "reachable"}
    assert report["problems"] == []
