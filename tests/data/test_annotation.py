"""Optional keys of annotations: one rule for each, wherever an annotation is read."""

import math

import pytest

from solo_infer.data.annotation import check_number, is_listed, read_annotation

ENTRY = {"id": 5, "image_id": 30, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}


def read(**fields):
    return read_annotation({**ENTRY, **fields})


@pytest.mark.parametrize("key, name", [("iscrowd", "is_crowd"), ("ignore", "is_ignored")])
def test_flags(key, name):
    for value in (None, 0, 0.0, False, "0", "false", "False"):
        assert getattr(read(**{key: value}), name) is False
    for value in (1, 1.0, True, "1", "true", "TRUE"):
        assert getattr(read(**{key: value}), name) is True
    assert getattr(read(), name) is False
    for value in (2, -1, 0.5, math.nan, "", "yes", "2", "none", [], [0], {}, 10**400):
        with pytest.raises(ValueError, match=f'annotation 5 of image 30: "{key}" is .*: expected 0 or 1'):
            read(**{key: value})


def test_area():
    assert read().area is None and read(area=None).area is None
    assert (read(area=0).area, read(area=900).area, read(area=-2.5).area) == (0, 900, -2.5)
    for value in (math.nan, math.inf, "900.0", "", [], True, 10**400):
        with pytest.raises(
            ValueError, match='annotation 5 of image 30: "area" is .*: expected a finite number'
        ):
            read(area=value)


def test_box():
    assert [read(**fields).bbox for fields in ({}, {"bbox": None}, {"bbox": []})] == [None] * 3
    assert read(bbox=[1, 2.5, -3, 0]).bbox == (1, 2.5, -3, 0)
    nan = math.nan
    for value in (
        [nan] * 4,
        [1, 2, 3],
        [[1, 2, 3, 4]],
        ["1"] * 4,
        [1, 2, 3, None],
        [1, 2, 3, True],
        {},
        "",
        0,
        "1234",
    ):
        with pytest.raises(ValueError, match='annotation 5 of image 30: "bbox" is .*: expected x, y, width'):
            read(bbox=value)


def test_messages_name_annotations_without_an_id():
    with pytest.raises(ValueError, match="^annotation of image 30: "):
        read(id=None, area="x")
    with pytest.raises(ValueError) as caught:
        read(id="\x1b" * 1000, area="\n" * 1000)
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


def test_ids_of_any_type():
    assert is_listed(1, {1}) and is_listed(1.0, {1}) and is_listed("a", {"a"})
    assert not any(is_listed(value, {0, 1}) for value in (True, None, [1], {}, "1", math.nan, 2))


def test_numbers():
    assert check_number("score", 1) == 1.0
    with pytest.raises(ValueError, match='"score" is True'):
        check_number("score", True)
