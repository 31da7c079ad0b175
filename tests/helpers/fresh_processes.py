"""New processes that need not import torch: a server that has imported it forks them.

An import of torch and torchvision takes seconds of a core, a fork milliseconds. The processes have nothing of
the test's process but the arguments and the environment variables.
"""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributed import TCPStore

from solo_infer.cli.main import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torchvision", "torch.distributed", "solo_infer.training"])
SECONDS = 300  # after which a process counts as hanging


def start(target, *arguments, environment=None):
    """Call ``target(*arguments)`` in a new process, and return the process and its output files."""
    files = []
    for _ in range(2):
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        files.append(Path(name))
    variables = {**os.environ, **(environment or {})}
    process = CONTEXT.Process(target=_call, args=(variables, files, target, arguments))
    process.start()
    return process, files


def finish(process, files):
    """Wait for a process of ``start``; return its ``returncode``, ``stdout`` and ``stderr``."""
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    out, err = (path.read_text(encoding="utf-8") for path in files)
    for path in files:
        path.unlink()
    return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err)


def run(target, *arguments):
    """Call ``target(*arguments)`` in a new process, and return how it ended, as ``finish`` does."""
    return finish(*start(target, *arguments))


def run_ranks(target, *arguments, world_size=2):
    """Call ``target(*arguments)`` in processes with the variables of torchrun; return how each ended."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world_size)}
    # As under torchrun, all processes are clients of the store of their parent.
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    started = [start(target, *arguments, environment=environment) for environment in ranks]
    return [finish(*process) for process in started]


def exit_with_main(arguments):
    """Run the command line and exit with its code, as the program does."""
    sys.exit(main(arguments))


def _call(environment, files, target, arguments):
    for descriptor, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)
