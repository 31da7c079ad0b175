"""Workers that a cluster has room for, and errors of Ray."""

import sys

import pytest

from solo_infer import ClusterError
from solo_infer.integrations import ray_cluster
from solo_infer.integrations.ray_cluster import Workers, connection, plan_workers


def cpus(*counts):
    return [{"CPU": float(count)} for count in counts]


PLANS = {
    "one node": (cpus(8), None, "auto", Workers(2, 4, 0)),
    "small nodes": (cpus(1, 1), None, "auto", Workers(2, 1, 0)),
    "large nodes": (cpus(16, 64), None, "cpu", Workers(20, 4, 0)),
    "all CPUs": (cpus(4, 4), 8, "auto", Workers(8, 1, 0)),
    "one worker": (cpus(4, 2), 1, "auto", Workers(1, 4, 0)),
    "unequal nodes": (cpus(4, 2), 2, "auto", Workers(2, 2, 0)),
    "three on two nodes": (cpus(4, 4), 3, "auto", Workers(3, 2, 0)),
    "head without CPUs": (cpus(0, 4), None, "auto", Workers(1, 4, 0)),
    "cards": ([{"CPU": 16, "GPU": 4}, {"CPU": 8}], None, "auto", Workers(4, 4, 1)),
    "some cards": ([{"CPU": 16, "GPU": 4}], 2, "cuda", Workers(2, 4, 1)),
    "cards unused": ([{"CPU": 16, "GPU": 4}], None, "cpu", Workers(4, 4, 0)),
    "more cards than CPUs": ([{"CPU": 2, "GPU": 4}], None, "auto", Workers(2, 1, 1)),
}


@pytest.mark.parametrize(("nodes", "count", "device", "expected"), PLANS.values(), ids=PLANS)
def test_every_worker_has_room(nodes, count, device, expected):
    workers = plan_workers(nodes, count, device)
    assert workers == expected
    if not workers.gpus:
        assert sum(int(node["CPU"]) // workers.cpus for node in nodes) >= workers.count


REFUSED = {
    "more workers than CPUs": (
        cpus(1, 1),
        3,
        "auto",
        "3 workers need one CPU each, and the 2 nodes .* have 2",
    ),
    "more workers than cards": ([{"CPU": 8, "GPU": 2}], 3, "auto", "3 workers need one GPU"),
    "no card": (cpus(8), None, "cuda:0", "has no GPU"),
    "no CPU": (cpus(0), None, "auto", "0 workers"),
    "no node": ([], 2, "auto", "2 workers"),
}


@pytest.mark.parametrize(("nodes", "count", "device", "message"), REFUSED.values(), ids=REFUSED)
def test_workers_that_would_wait_forever_are_refused(nodes, count, device, message):
    with pytest.raises(ClusterError, match=message):
        plan_workers(nodes, count, device)


def test_environment_of_a_worker(monkeypatch):
    monkeypatch.setenv("SOLO_INFER_MIRROR", "/mirror")
    variables = Workers(2, 3, 0).environment()
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "3"
    assert variables["SOLO_INFER_MIRROR"] == "/mirror"


@pytest.mark.parametrize("module", ["ray", "ray.data"])
def test_missing_package_is_named(monkeypatch, module):
    if module == "ray.data":
        monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ClusterError, match=r"pip install 'solo-infer\[ray\]'"), connection("local"):
        pass


def test_ray_sends_no_reports(monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError):
        ray_cluster.require_ray()
    assert ray_cluster.os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
