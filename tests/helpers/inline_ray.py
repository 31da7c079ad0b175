"""Stand-in for Ray that runs the workers of a data set in this process, one after the other."""

import pickle
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from solo_infer.integrations import batch_run, ray_cluster


class RayError(Exception):
    """Base class of Ray's errors."""


class Rows:
    """Data set of rows, which are dicts of texts."""

    def __init__(self, ray, rows, run=None):
        self.ray, self.rows, self.run = ray, rows, run

    def map_batches(self, worker, *, fn_constructor_args, batch_size, batch_format, **options):
        assert (batch_size, batch_format) == (1, "numpy")
        self.ray.calls.append(options)
        arguments = pickle.loads(pickle.dumps(fn_constructor_args))  # as on the way to another machine
        return Rows(self.ray, self.rows, worker(*arguments))

    def iter_rows(self):
        for row in self.rows:
            self.ray.before_part(row)
            columns = {name: np.array([value]) for name, value in row.items()}
            for (report,) in self.run(columns).values():
                yield {"report": report}


class InlineRay:
    """Stand-in for the module ``ray`` with a cluster of the given CPUs per node.

    Attributes:
        calls: Options of each call of ``map_batches``.
        before_part: Called with the row of each part before it is segmented; an error stops the run.
    """

    def __init__(self, *cpus):
        self.cpus, self.calls, self.before_part = cpus, [], lambda row: None
        context = SimpleNamespace(get_current=SimpleNamespace)
        self.data = SimpleNamespace(DataContext=context, Dataset=Rows, from_items=self.from_items)
        self.exceptions = SimpleNamespace(RayError=RayError)

    def from_items(self, items, *, override_num_blocks):
        assert override_num_blocks == len(items)
        return Rows(self, items)

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in self.cpus]

    def available_resources(self):
        return {"CPU": float(sum(self.cpus))}


def install(monkeypatch, *cpus):
    """Replace Ray by a stand-in, and return it."""
    ray = InlineRay(*(cpus or (2,)))

    @contextmanager
    def connection(address, *, verbose=False):
        yield ray

    monkeypatch.setattr(batch_run, "connection", connection)
    monkeypatch.setattr(ray_cluster, "require_ray", lambda: ray)
    return ray
