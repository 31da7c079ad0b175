"""Real Ray clusters on this machine, and the processes of their workers."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

from helpers.paths import ROOT

OBJECT_STORE = 200_000_000  # bytes
TOKEN = "RUN_TOKEN"  # environment variable by which the processes of a cluster are recognized


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def variables(token=""):
    """Return the environment variables of the processes of a cluster and its drivers."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SOLO_INFER_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # otherwise nodes and drivers need the token of the first node
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_register_timeout_seconds": "600",  # on a busy machine everything takes long
        "RAY_health_check_timeout_ms": "60000",
        "RAY_health_check_failure_threshold": "20",
        TOKEN: token,
    }


@contextmanager
def cluster(folder, nodes):
    """Start a cluster of nodes with one CPU each, and yield its address and token.

    Args:
        folder: Folder of Ray's files; Ray needs a short path.
        nodes: Number of nodes.
    """
    port, token = free_port(), uuid.uuid4().hex
    common = [f"--object-store-memory={OBJECT_STORE}", f"--temp-dir={folder}", "--num-cpus=1"]
    for index in range(nodes):
        place = [f"--address=127.0.0.1:{port}"] if index else ["--head", f"--port={port}"]
        if not index:
            place += ["--include-dashboard=false", "--dashboard-agent-listen-port=0"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *place, *common]
        subprocess.run(ray, env=variables(token), check=True, capture_output=True, timeout=600)
    try:
        yield f"127.0.0.1:{port}", token
    finally:
        for pid in processes(token):
            kill(pid)


def processes(token, command=""):
    """Return the ids of the processes of a cluster whose command line contains a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has ended
                continue
            if f"{TOKEN}={token}\0".encode() in environment and command in line:
                found.append(int(entry.name))
    return found


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_for(condition, seconds=900):
    """Wait until a condition holds, and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")
