"""CPU quotas of control groups, usable cores, and the processor's name and units."""

import os

import pytest

from solo_infer.runtime import cpu
from solo_infer.runtime.cpu import cpu_quota, openmp_settings, quota_threads, usable_cores

V2 = "30 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate"
V1 = "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
GROUP = "sys/fs/cgroup"


@pytest.fixture
def make_root(tmp_path):
    """Return a function that makes a root directory with control groups and 4 cores."""

    def make(groups, mounts, files):
        texts = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return make


@pytest.fixture
def four_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


@pytest.mark.parametrize(
    "groups, mounts, files, quota",
    [
        ("0::/", V2, {f"{GROUP}/cpu.max": "150000 100000"}, 1.5),
        ("0::/", V2, {f"{GROUP}/cpu.max": "max 100000"}, None),
        ("0::/a/b", V2, {f"{GROUP}/a/b/cpu.max": "max 100000", f"{GROUP}/a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a", V2, {f"{GROUP}/a/cpu.max": "300000 100000", f"{GROUP}/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b", V2, {f"{GROUP}/a/b/cpu.max": "100000 100000", f"{GROUP}/a/cpu.max": "max 100000"}, 1.0),
        ("0::/../other", V2, {f"{GROUP}/cpu.max": "100000 50000", f"{GROUP}/other/cpu.max": "1 100"}, 2.0),
        ("0::/a", V2.replace("/ /sys", "/a /sys"), {f"{GROUP}/cpu.max": "100000 100000"}, 1.0),
        ("0::/b/c", V2.replace("/ /sys", "/a /sys"), {f"{GROUP}/cpu.max": "100000 100000"}, 1.0),
        (
            "0::/",
            V2.replace("/sys/fs/cgroup", r"/sys/c\040groups"),
            {"sys/c groups/cpu.max": "100000 100000"},
            1.0,
        ),
        (
            "4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n0::/",
            V1.replace("/ /sys", "/docker/x /sys"),
            {
                f"{GROUP}/cpu,cpuacct/cpu.cfs_quota_us": "250000",
                f"{GROUP}/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            "4:cpu,cpuacct:/x\n0::/y",
            f"{V1}\n{V2.replace('/sys/fs/cgroup', '/sys/fs/cgroup/unified')}",
            {
                f"{GROUP}/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                f"{GROUP}/cpu,cpuacct/cpu.cfs_period_us": "100000",
                f"{GROUP}/cpu,cpuacct/x/cpu.cfs_quota_us": "75000",
                f"{GROUP}/cpu,cpuacct/x/cpu.cfs_period_us": "50000",
            },
            1.5,
        ),
        ("3:cpuset:/x", V1, {f"{GROUP}/cpu,cpuacct/x/cpu.max": "100000 100000"}, None),
        ("", "", {}, None),
        ("no group", "no mount\n - \n- cgroup2", {}, None),
    ],
)
def test_quota(make_root, groups, mounts, files, quota):
    assert cpu_quota(make_root(groups, mounts, files)) == quota


@pytest.mark.parametrize(
    "text", ["", "lots", "-5 100000", "0 100000", "100000 0", "100000", "1e5 1e5", "² 1"]
)
def test_values_that_no_kernel_writes_are_no_quota(make_root, text):
    assert cpu_quota(make_root("0::/", V2, {f"{GROUP}/cpu.max": text})) is None


def test_system_without_control_groups(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    "quota, threads", [("10000", 1), ("100000", 1), ("150000", 2), ("300001", None), ("400000", None)]
)
def test_threads_are_the_quota_rounded_up(make_root, four_cpus, quota, threads):
    root = make_root("0::/", V2, {f"{GROUP}/cpu.max": f"{quota} 100000"})
    assert quota_threads(root) == threads


def test_threads_of_one_core_count_once(make_root, four_cpus):
    folder = "sys/devices/system/cpu"
    names = [f"{folder}/cpu{index}/topology/thread_siblings_list" for index in range(4)]
    siblings = dict(zip(names, ("0,2", "1,3", "0,2", "1,3"), strict=True))
    root = make_root("0::/", V2, {f"{GROUP}/cpu.max": "200000 100000", **siblings})
    assert usable_cores(root) == 2 and quota_threads(root) is None


def test_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5}, raising=False)
    assert usable_cores(tmp_path) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores(tmp_path) == os.cpu_count()


@pytest.mark.parametrize(
    "environment, settings",
    [
        ({}, {"OMP_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "3"}, {}),
        ({"MKL_NUM_THREADS": "3"}, {}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_NUM_THREADS": "2"}),
    ],
)
def test_openmp_settings_keep_those_of_the_user(make_root, four_cpus, environment, settings):
    root = make_root("0::/", V2, {f"{GROUP}/cpu.max": "150000 100000"})
    assert openmp_settings(environment, root) == settings


def test_openmp_settings_without_a_quota(tmp_path, four_cpus):
    assert openmp_settings({}, tmp_path) == {}


@pytest.mark.parametrize(
    "text, name, has_units, has_matrix_units",
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx2\nmodel name: other\n", "AMD EPYC", False, False),
        ("model name : EPYC\nflags : fpu avx512_bf16\n", "EPYC", True, False),
        ("model name : Xeon\nflags : fpu amx_bf16 avx512_bf16\n", "Xeon", True, True),
        ("processor : 0\nFeatures : fp asimd bf16 i8mm\n", "riscv64", True, False),
        ("processor : 0\nFeatures : fp asimd i8mm\n", "riscv64", False, False),
        ("processor : 0\n", "riscv64", None, None),
        (None, "riscv64", None, None),
    ],
)
def test_name_and_units(tmp_path, monkeypatch, text, name, has_units, has_matrix_units):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(cpu, "_PROC_CPUINFO", path)
    monkeypatch.setattr(cpu.platform, "processor", lambda: "")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "riscv64")
    assert (cpu.cpu_name(), cpu.has_bfloat16_units()) == (name, has_units)
    assert cpu.has_bfloat16_matrix_units() == has_matrix_units
