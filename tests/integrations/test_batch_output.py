"""The folder of a run: what is done, what is missing, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from helpers.results import PETS, assert_same, make_result

from solo_infer import ClusterError, DataError, ResultError
from solo_infer.integrations.batch_output import MANIFEST, MAX_ATTEMPTS, PLAN, BatchOutput, Part, RunManifest
from solo_infer.results.formats.parquet import error_row, to_result, to_row

pq = pytest.importorskip("pyarrow.parquet", reason="tables need pyarrow, of the extra ray")

FACTS = RunManifest("pets", "f" * 64, {"min_score": 0.5, "tile": [64, 16]}, PETS, "/home")
URIS = [f"/photos/{number}.jpg" for number in range(7)]


@pytest.fixture(params=["folder", "memory", "file"])
def output(request, tmp_path):
    fsspec.filesystem("memory").store.clear()
    places = {"folder": tmp_path / "run", "memory": "memory://run", "file": (tmp_path / "run").as_uri()}
    return BatchOutput(places[request.param])


def rows_of(part, errors=()):
    return [
        error_row(uri, ValueError("bad")) if uri in errors else to_row(make_result(), uri)
        for uri in part.uris
    ]


def start(output, uris=URIS, facts=FACTS, size=3):
    parts = output.begin(facts, uris)
    known = {uri for part in parts for uri in part.uris}
    return output.extend(parts, [uri for uri in uris if uri not in known], size)


def test_plan_lists_every_image_once(output):
    parts = start(output)
    assert [len(part.uris) for part in parts] == [3, 3, 1]
    assert [part.file for part in parts] == [f"part-00000{number}.parquet" for number in range(3)]
    assert [uri for part in parts for uri in part.uris] == URIS
    assert output.read_plan() == parts and output.read_manifest() == FACTS
    assert output.done(parts, FACTS) == set()


def test_complete_files_are_done_and_others_are_not(output):
    parts = start(output)
    output.write_part(parts[1], rows_of(parts[1]), FACTS)
    assert output.done(parts, FACTS) == {parts[1].file}
    assert start(output) == parts  # a second run has the same plan
    short = replace(parts[0], uris=parts[0].uris[:2])
    output.write_part(short, rows_of(short), FACTS)  # of a plan that has changed
    assert output.done(parts, FACTS) == {parts[1].file}


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_damaged_file_is_not_done(output, size):
    parts = start(output)
    output.write_part(parts[0], rows_of(parts[0]), FACTS)
    with output.open_file(parts[0].file) as file:
        content = file.read()
    output.write(parts[0].file, content[:size])
    assert output.done(parts, FACTS) == set()
    assert start(output) == parts


def test_new_images_are_appended(output):
    parts = start(output)
    output.write_part(parts[0], rows_of(parts[0]), FACTS)
    more = start(output, ["/new.jpg", *URIS[2:], "/z.jpg"], size=1)
    assert more[:3] == parts
    assert more[3:] == [Part("part-000003.parquet", ("/new.jpg",)), Part("part-000004.parquet", ("/z.jpg",))]


CHANGES = {
    "model": ({"fingerprint": "0" * 64, "model": "birds"}, "model 'birds'.* instead of 'pets'"),
    "option": ({"settings": {"min_score": 0.2, "tile": [64, 16]}}, "min_score 0.2 instead of 0.5"),
    "new option": ({"settings": {**FACTS.settings, "nms": "greedy"}}, "nms 'greedy' instead of None"),
}


@pytest.mark.parametrize(("changes", "message"), CHANGES.values(), ids=CHANGES)
def test_two_models_are_not_mixed(output, changes, message):
    parts = start(output)
    other = replace(FACTS, **changes)
    assert len(start(output, facts=other)) == 3  # nothing was written yet: it is replaced
    assert start(output) == parts
    output.write_part(parts[0], rows_of(parts[0]), FACTS)
    with pytest.raises(ResultError, match=f"another run: {message}"):
        start(output, facts=other)
    assert output.read_manifest() == FACTS and output.read_plan() == parts


def test_file_of_another_model_is_refused(output):
    parts = start(output)
    output.write_part(parts[0], rows_of(parts[0]), replace(FACTS, fingerprint="0" * 64))
    with pytest.raises(ResultError, match="results of another model"):
        output.done(parts, FACTS)


def test_other_folders_are_refused(output):
    output.write("table.parquet", b"data")
    with pytest.raises(ResultError, match=r"holds 'table\.parquet', but no run"):
        start(output)


def test_relative_paths_stay_relative_to_one_folder(output):
    parts = start(output, ["photos/1.jpg"])
    output.write_part(parts[0], rows_of(parts[0]), FACTS)
    with pytest.raises(ResultError, match="relative to '/home'.*runs in '/elsewhere'"):
        start(output, ["photos/1.jpg"], replace(FACTS, root="/elsewhere"))
    assert FACTS.source_of("photos/1.jpg") == "/home/photos/1.jpg"
    assert FACTS.source_of("/a.jpg") == "/a.jpg" and FACTS.source_of("s3://b/a.jpg") == "s3://b/a.jpg"


def test_absolute_paths_may_continue_elsewhere(output):
    parts = start(output)
    output.write_part(parts[0], rows_of(parts[0]), FACTS)
    assert start(output, facts=replace(FACTS, root="/elsewhere", version="9.9")) == parts


@pytest.mark.parametrize("name", [MANIFEST, PLAN])
@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b'{"format": "other"}', b"\xff"])
def test_damaged_records_are_refused(output, name, content):
    parts = start(output)
    output.write_part(parts[0], rows_of(parts[0]), FACTS)
    output.write(name, content)
    with pytest.raises(DataError):
        start(output)


def test_errors_can_be_repeated(output):
    parts = start(output)
    for part in parts:
        output.write_part(part, rows_of(part, URIS[:1]), FACTS)
    assert output.done(parts, FACTS) == {part.file for part in parts}
    assert output.done(parts, FACTS, retry_errors=True) == {part.file for part in parts[1:]}


def test_rows_give_the_results_back(output):
    (part,) = start(output, ["pets/süß.jpg"])
    result = make_result()
    output.write_part(part, [to_row(result, "pets/süß.jpg")], FACTS)
    (row,) = output.read_rows(part)
    assert_same(to_result(row, PETS), result)


def test_metadata_name_the_model(output):
    (part,) = start(output, URIS[:2])
    output.write_part(part, rows_of(part, URIS[:1]), FACTS)
    with output.open_file(part.file) as file:
        facts = json.loads(pq.read_metadata(file).metadata[b"solo_infer"])
    assert facts["schema_version"] == 1 and facts["fingerprint"] == FACTS.fingerprint
    assert facts["settings"] == FACTS.settings and facts["errors"] == 1
    assert facts["categories"] == {"names": ["cat", "dog", "bird"], "ids": [17, 18, 16]}


def test_schema():
    from solo_infer.results.formats.parquet import arrow_schema

    instance = (
        "struct<label: int32, category_id: int64, name: string, score: float, box: list<item: float>, "
        "mask: struct<size: list<item: int32>, counts: string>>"
    )
    assert [(field.name, str(field.type)) for field in arrow_schema()] == [
        ("uri", "string"),
        ("width", "int32"),
        ("height", "int32"),
        ("error", "string"),
        ("instances", f"list<item: {instance}>"),
    ]


def test_equal_rows_give_equal_files(output):
    (part,) = start(output, URIS[:2])
    contents = set()
    for _ in range(2):
        output.write_part(part, rows_of(part), FACTS)
        with output.open_file(part.file) as file:
            contents.add(file.read())
    assert len(contents) == 1


def test_part_that_kills_its_workers_is_given_up(output):
    part, other = start(output)[:2]
    for _ in range(MAX_ATTEMPTS):
        output.begin_attempt(part)
    output.begin_attempt(other)
    with pytest.raises(ClusterError, match=r"4 workers have died.*part-000000\.parquet.*/photos/0\.jpg"):
        output.begin_attempt(part)
    output.end_attempts(other)
    output.remove_leftovers()
    assert output.names() == {MANIFEST, PLAN}
    output.begin_attempt(part)


def test_leftovers_of_killed_workers_are_removed(tmp_path):
    output = BatchOutput(tmp_path)
    start(output)
    for name in (".123-0123456789ab.parquet", ".123-0123456789ab", ".bashrc", "notes.txt"):
        (tmp_path / name).write_text("x")
    output.remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, PLAN, ".bashrc", "notes.txt"}


def test_one_run_at_a_time(tmp_path):
    first, second = BatchOutput(tmp_path), BatchOutput(tmp_path / ".." / tmp_path.name)
    with first.lock():
        with pytest.raises(ResultError, match="Another run is writing"), second.lock():
            pass
    with second.lock():
        pass


@pytest.mark.parametrize("place", ["file.txt", "file.txt/run", "s3://bucket/run"])
def test_output_that_cannot_be_written(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("x")
    monkeypatch.setenv("SOLO_INFER_OFFLINE", "1")
    output = BatchOutput(place)
    with pytest.raises(ResultError), output.lock():
        output.begin(FACTS, URIS)


@pytest.mark.parametrize("location", ["ftp://host/run", "https://host/run", "unknown://run", "a::s3://b"])
def test_uris_that_are_no_folders_are_refused(location, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResultError, match="is not a folder"):
        BatchOutput(location)
    assert not list(tmp_path.iterdir())
