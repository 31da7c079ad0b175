"""Evaluation shared by several processes."""

import json

import pytest
from helpers.coco_sets import by_hand, content, write
from helpers.oracle_segmenter import OracleSegmenter

from solo_infer.errors import ConfigError, DataError, ResultError
from solo_infer.evaluation import sharding
from solo_infer.evaluation.evaluate import evaluate
from solo_infer.evaluation.sharding import evaluate_shard, merge_detections, score_shards

pytest_plugins = ["helpers.evaluation_fixtures"]


def read_entries(path):
    return json.loads(path.read_bytes())


@pytest.mark.parametrize("world_size", [1, 3, 6])
def test_shards_equal_one_process(model, data_set, tmp_path, world_size):
    single = evaluate(model, *data_set, output=tmp_path / "single.json")
    shards, output = tmp_path / "shards", tmp_path / "merged.json"
    for rank in reversed(range(world_size)):
        path = evaluate_shard(model, *data_set, shards, rank=rank, world_size=world_size)
        expected = [image["id"] for image in content()["images"]][rank::world_size]
        assert {entry["image_id"] for entry in read_entries(path)} <= set(expected)
    evaluation = score_shards(data_set[1], shards, world_size=world_size, output=output)
    assert (evaluation.metrics, evaluation.per_class, evaluation.images) == (
        single.metrics,
        single.per_class,
        4,
    )
    assert evaluation.timings.images == 4 and set(evaluation.timings.stages) == set(single.timings.stages)
    assert evaluation.detections == output

    def ordered(path):
        return sorted(read_entries(path), key=lambda entry: (entry["image_id"], -entry["score"]))

    assert ordered(output) == ordered(tmp_path / "single.json")
    assert list(evaluation.metrics.values()) == pytest.approx(by_hand(data_set[1], output), nan_ok=True)
    unmerged = score_shards(data_set[1], shards, world_size=world_size)
    assert unmerged.metrics == evaluation.metrics and unmerged.detections is None


def test_incomplete_or_different_shards_raise(model, data_set, tmp_path, monkeypatch):
    options = {"world_size": 2, "limit": 2}
    evaluate_shard(model, *data_set, tmp_path, rank=0, **options)
    with pytest.raises(DataError, match=r"1 of 2 shards .* \(detections-1-of-2.json\)"):
        score_shards(data_set[1], tmp_path, **options)
    evaluate_shard(model, *data_set, tmp_path, rank=1, **options)
    evaluation = score_shards(data_set[1], tmp_path, **options)
    assert evaluation.images == 2
    assert evaluation.metrics == evaluate(model, *data_set, limit=2).metrics
    with pytest.raises(DataError, match="hold 2 images, not 4: .*with the same limit"):
        score_shards(data_set[1], tmp_path, world_size=2)

    def fail(self, *arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(OracleSegmenter, "stream", fail)  # the old shard must not pass for the new one
    with pytest.raises(RuntimeError):
        evaluate_shard(model, *data_set, tmp_path, rank=1, **options)
    with pytest.raises(DataError, match="1 of 2 shards"):
        score_shards(data_set[1], tmp_path, **options)


def test_damaged_shards_raise(model, data_set, tmp_path):
    evaluate_shard(model, *data_set, tmp_path / "shards", rank=0, world_size=1)
    (record,) = (tmp_path / "shards").glob("*.timings.json")
    record.write_text("[]")
    with pytest.raises(DataError, match="does not hold the timings of a shard"):
        score_shards(data_set[1], tmp_path / "shards", world_size=1)
    (tmp_path / "file").touch()
    with pytest.raises(ResultError, match="Choose another"):
        evaluate_shard(model, *data_set, tmp_path / "file", rank=0, world_size=1)
    with pytest.raises(ResultError, match="cannot be written"):
        merge_detections([], tmp_path / "file" / "out.json")


@pytest.mark.parametrize("rank, world_size", [(-1, 2), (2, 2), (0, 0)])
def test_invalid_ranks_raise(model, data_set, tmp_path, rank, world_size):
    with pytest.raises(ConfigError, match=f"rank={rank}, world_size={world_size}"):
        evaluate_shard(model, *data_set, tmp_path, rank=rank, world_size=world_size)
    with pytest.raises(ConfigError, match="world_size=0"):
        score_shards(data_set[1], tmp_path, world_size=0)


def test_paths_may_be_strings(model, data_set, tmp_path):
    images, annotations = map(str, data_set)
    evaluate_shard(model, images, annotations, str(tmp_path), rank=0, world_size=1)
    output = str(tmp_path / "merged.json")
    evaluation = score_shards(annotations, str(tmp_path), world_size=1, output=output)
    assert evaluation.detections == tmp_path / "merged.json"


def test_shared_directory_of_a_new_output_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding.distributed, "broadcast_object_list", lambda names: None)
    with sharding._shared_directory(None, tmp_path / "new" / "detections.json") as shards:
        assert shards.is_dir() and shards.parent == tmp_path / "new"
    assert not shards.exists()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResultError, match="Pass shards"),
        sharding._shared_directory(None, tmp_path / "file" / "detections.json"),
    ):
        pass


def test_merge_empty_files(tmp_path):
    empty = [write(tmp_path / name, []) for name in ("1.json", "2.json")]
    assert read_entries(merge_detections(empty, tmp_path / "both.json")) == []
