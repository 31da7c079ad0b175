"""Several processes that evaluate one data set."""

import json

import pytest
from helpers.coco_sets import by_hand, content, write
from helpers.oracle_segmenter import OracleSegmenter

from solo_infer.errors import ConfigError, DataError, ResultError
from solo_infer.evaluation.evaluate import evaluate, evaluate_shard, merge_detections, score_shards

pytest_plugins = ["helpers.evaluation_fixtures"]


def entries_of(path):
    return json.loads(path.read_bytes())


@pytest.mark.parametrize("world_size", [1, 3, 6])
def test_shards_give_the_same_as_one_process(model, data_set, tmp_path, world_size):
    alone = evaluate(model, *data_set, output=tmp_path / "alone.json")
    shards, output = tmp_path / "shards", tmp_path / "merged.json"
    for rank in reversed(range(world_size)):
        path = evaluate_shard(model, *data_set, shards, rank=rank, world_size=world_size)
        expected = [image["id"] for image in content()["images"]][rank::world_size]
        assert {entry["image_id"] for entry in entries_of(path)} <= set(expected)
    found = score_shards(data_set[1], shards, world_size=world_size, output=output)
    assert (found.metrics, found.per_class, found.images) == (alone.metrics, alone.per_class, 4)
    assert found.timings.images == 4 and set(found.timings.stages) == set(alone.timings.stages)
    assert found.detections == output

    def ordered(path):
        return sorted(entries_of(path), key=lambda entry: (entry["image_id"], -entry["score"]))

    assert ordered(output) == ordered(tmp_path / "alone.json")
    assert list(found.metrics.values()) == pytest.approx(by_hand(data_set[1], output), nan_ok=True)
    unmerged = score_shards(data_set[1], shards, world_size=world_size)
    assert unmerged.metrics == found.metrics and unmerged.detections is None


def test_shards_that_do_not_fit(model, data_set, tmp_path, monkeypatch):
    options = {"world_size": 2, "limit": 2}
    evaluate_shard(model, *data_set, tmp_path, rank=0, **options)
    with pytest.raises(DataError, match=r"1 of 2 shards .* \(detections-1-of-2.json\)"):
        score_shards(data_set[1], tmp_path, **options)
    evaluate_shard(model, *data_set, tmp_path, rank=1, **options)
    found = score_shards(data_set[1], tmp_path, **options)
    assert found.images == 2
    assert found.metrics == evaluate(model, *data_set, limit=2).metrics
    with pytest.raises(DataError, match="hold 2 images, not 4: .*with the same limit"):
        score_shards(data_set[1], tmp_path, world_size=2)

    def fail(self, *arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(OracleSegmenter, "stream", fail)  # the old shard must not be taken for the new one
    with pytest.raises(RuntimeError):
        evaluate_shard(model, *data_set, tmp_path, rank=1, **options)
    with pytest.raises(DataError, match="1 of 2 shards"):
        score_shards(data_set[1], tmp_path, **options)


def test_damaged_shards(model, data_set, tmp_path):
    evaluate_shard(model, *data_set, tmp_path / "shards", rank=0, world_size=1)
    (record,) = (tmp_path / "shards").glob("*.timings.json")
    record.write_text("[]")
    with pytest.raises(DataError, match="are no timings of a shard"):
        score_shards(data_set[1], tmp_path / "shards", world_size=1)
    (tmp_path / "file").touch()
    with pytest.raises(ResultError, match="Choose another"):
        evaluate_shard(model, *data_set, tmp_path / "file", rank=0, world_size=1)
    with pytest.raises(ResultError, match="cannot be written"):
        merge_detections([], tmp_path / "file" / "out.json")


@pytest.mark.parametrize("rank, world_size", [(-1, 2), (2, 2), (0, 0)])
def test_ranks_that_cannot_be(model, data_set, tmp_path, rank, world_size):
    with pytest.raises(ConfigError, match=f"rank={rank}, world_size={world_size}"):
        evaluate_shard(model, *data_set, tmp_path, rank=rank, world_size=world_size)
    with pytest.raises(ConfigError, match="world_size=0"):
        score_shards(data_set[1], tmp_path, world_size=0)


def test_merging_nothing(tmp_path):
    empty = [write(tmp_path / name, []) for name in ("1.json", "2.json")]
    assert entries_of(merge_detections(empty, tmp_path / "both.json")) == []
