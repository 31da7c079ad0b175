"""CSV files: exact values, and no formulas."""

import csv

import pytest
from helpers.results import HEIGHT, WIDTH, make_result

from solo_infer import Categories
from solo_infer.results.formats.csv_table import COLUMNS
from solo_infer.results.writers import CsvFile
from solo_infer.runtime.csv_text import csv_text


def write(path, *results, **options):
    with CsvFile(path, **options) as file:
        for result in results:
            file.add(result)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows(tmp_path):
    result = make_result()
    rows = write(tmp_path / "t.csv", result, make_result(source="empty")[:0])
    assert len(rows) == 5 and tuple(rows[0]) == COLUMNS
    areas = result.masks.sum(dim=(1, 2)).tolist()
    for index, (row, instance, area) in enumerate(zip(rows, result, areas, strict=True)):
        assert row["source"] == "pets/süß.jpg" and int(row["instance"]) == index
        assert (int(row["image_height"]), int(row["image_width"])) == (HEIGHT, WIDTH)
        assert (int(row["label"]), row["name"]) == (instance.label, instance.name)
        assert int(row["category_id"]) == result.categories.ids[instance.label]
        assert float(row["score"]) == instance.score and int(row["area"]) == area
        assert tuple(float(row[key]) for key in ("x1", "y1", "x2", "y2")) == instance.box


def test_min_score_and_line_ends(tmp_path):
    assert len(write(tmp_path / "t.csv", make_result(), min_score=0.4)) == 3
    assert (tmp_path / "t.csv").read_bytes().count(b"\r\n") == 4
    assert write(tmp_path / "none.csv") == []


FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\u3000=1",
    "＝1",
    "＋1",
    "－1",
    "＠x",
    "\ufeff=1",
]


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_formulas_are_written_as_text(tmp_path, text):
    categories = Categories((text, "dog", "bird"))
    rows = write(tmp_path / "t.csv", make_result(source=f"{text}.png", categories=categories))
    assert rows[1]["name"] == f"'{text}" and rows[0]["source"] == f"'{text}.png"


@pytest.mark.parametrize("text", ["cat", "", "a=b", "x-y", 'say "hi", you', "two\nlines", "a\rb", "犬"])
def test_other_texts_are_unchanged(tmp_path, text):
    assert csv_text(text) == text
    rows = write(tmp_path / "t.csv", make_result(categories=Categories((text, "d", "e"))))
    assert rows[1]["name"] == text


def test_names_that_are_not_unicode(tmp_path):
    rows = write(tmp_path / "t.csv", make_result(source="z\udce9.png"))
    assert rows[0]["source"] == "z\\udce9.png"
