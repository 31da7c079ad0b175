"""A real Ray on this machine: ``Predictor`` in a pipeline, and ``batch`` with its workers."""

import os

import pytest
from helpers.paths import ROOT

from solo_infer import load_image
from solo_infer.cli.main import main
from solo_infer.integrations.ray import Predictor

ray = pytest.importorskip("ray", reason="it needs Ray, of the extra ray")
pq = pytest.importorskip("pyarrow.parquet", reason="it needs pyarrow, of the extra ray")
pytest_plugins = ["helpers.command_line_fixtures"]


@pytest.fixture(scope="module")
def cluster():
    """Start Ray with two CPUs, whose workers find this checkout and its tests."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in (*variables, "RAY_USAGE_STATS_ENABLED")}
    os.environ.update(variables, RAY_USAGE_STATS_ENABLED="0")
    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False)
    yield
    ray.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_pipeline_and_command(cluster, photos, saved, loaded):
    import ray.data

    (photos / "bad.png").write_text("no image")
    pipeline = ray.data.read_binary_files(str(photos), include_paths=True).map_batches(
        Predictor, fn_constructor_args=[saved], batch_size=2, concurrency=1, num_cpus=1
    )
    # By path: the folder and its subfolder have a photo of the same name, in an order that Ray chooses.
    rows = {os.path.abspath(row["uri"]): row for row in pipeline.take_all()}
    assert "is not an image" in rows.pop(str(photos / "bad.png"))["error"]
    arguments = ["batch", str(photos), "--model", saved, "--device", "cpu", "--images-per-file", "2"]
    # Two workers have one thread each, as the pipeline and this process: the results are equal bit for bit.
    assert main([*arguments, "--output", "out", "--workers", "2"]) == 1
    table = pq.read_table("out/part-000000.parquet").to_pylist()
    table += pq.read_table("out/part-000001.parquet").to_pylist()
    assert [os.path.basename(row["uri"]) for row in table] == ["1.png", "2.jpg", "bad.png"]
    del table[2]
    for row in table:
        image = load_image(row["uri"]).pixels
        expected = loaded(image).to_dict(categories=False)["instances"]
        assert row["instances"] == rows[os.path.abspath(row["uri"])]["instances"] == expected
        assert (row["height"], row["width"]) == image.shape[:2]
