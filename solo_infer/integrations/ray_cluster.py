"""Ray clusters: connection, resources of the workers, and errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from solo_infer.errors import ClusterError
from solo_infer.runtime.messages import shortened

INSTALL = "pip install 'solo-infer[ray]'"
CPUS_PER_WORKER = 4  # by default, without GPUs
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Workers:
    """Number of worker processes and the resources of each.

    Attributes:
        count: Number of workers.
        cpus: CPUs of a worker, which are also its threads.
        gpus: GPUs of a worker, 0 or 1.
    """

    count: int
    cpus: int
    gpus: int

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a worker: its threads, and the settings of this process."""
        settings = {name: value for name, value in os.environ.items() if name.startswith("SOLO_INFER_")}
        return {**settings, **dict.fromkeys(_THREAD_VARIABLES, str(self.cpus))}


def plan_workers(
    nodes: Sequence[Mapping[str, float]], count: int | None, device: str | None = None
) -> Workers:
    """Return workers that a cluster can run at the same time.

    A worker runs on one node. The CPUs of the nodes are divided so that every worker has room: a worker that
    Ray could never place would let the run wait forever.

    Args:
        nodes: "CPU" and "GPU" of each node.
        count: Number of workers. Defaults to one for each GPU, or one for each ``CPUS_PER_WORKER`` CPUs.
        device: Device of the models: "auto", "cpu", "cuda", ... With "auto", GPUs are used if there are any.

    Raises:
        ClusterError: The cluster has no GPU for a CUDA device, or fewer CPUs or GPUs than workers.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    kind = (device or "auto").partition(":")[0]
    if kind == "cuda" and not any(gpus):
        raise ClusterError(f"--device {device}: the Ray cluster has no GPU. Pass --device cpu, or add nodes.")
    uses_gpus = any(gpus) and kind in ("auto", "cuda")
    if uses_gpus:
        pairs = [(cpu, gpu) for cpu, gpu in zip(cpus, gpus, strict=True) if gpu and cpu]
        slots = sum(min(cpu, gpu) for cpu, gpu in pairs)
        unit = "GPU (with a CPU)"
    else:
        slots, unit = sum(cpus), "CPU"
    wanted = count or (slots if uses_gpus else sum(max(cpu // CPUS_PER_WORKER, 1) for cpu in cpus if cpu))
    if not 1 <= wanted <= slots:
        raise ClusterError(
            f"{wanted} workers need one {unit} each, and the {len(nodes)} nodes of the Ray cluster have "
            f"{slots}: they would wait forever. Pass a lower number as --workers, or add nodes."
        )
    if uses_gpus:
        return Workers(wanted, min(max(cpu // gpu, 1) for cpu, gpu in pairs), 1)
    share = next(share for share in range(max(cpus), 0, -1) if sum(cpu // share for cpu in cpus) >= wanted)
    return Workers(wanted, share, 0)


def require_ray() -> Any:
    """Return the package ray, with its module ``data``.

    Raises:
        ClusterError: It is not installed, or is broken.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send reports to its publisher
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(f"solo-infer batch needs the package ray ({error}): {INSTALL}.") from error
    return ray


@contextmanager
def connection(address: str | None, *, verbose: bool = False) -> Iterator[Any]:
    """Connect to a Ray cluster and yield the module ``ray``. A connection that exists is used and kept.

    Args:
        address: Address of the cluster, "auto" for the one of this machine, "local" for a new one that ends
            with the block. Defaults to ``RAY_ADDRESS``, the one of this machine, or a new one.
        verbose: Whether to show Ray's own messages, and those of the workers.

    Raises:
        ClusterError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=verbose, logging_level=level, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(
            f"The Ray cluster {address or 'of this machine'} cannot be used ({shortened(error)}): check "
            "--address and that 'ray start' has run there, or pass --address local."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def node_resources(ray: Any) -> list[dict[str, float]]:
    """Return "CPU" and "GPU" of each node that is alive."""
    return [dict(node["Resources"]) for node in ray.nodes() if node.get("Alive", True)]
