"""The fuzzing harness repeats its inputs, and notices what a function must not do."""

import time

import pytest
from helpers.fuzzing import campaign, case, message_problem, mutate_bytes, mutate_json, only_typed_errors

from solo_infer.errors import DataError

VALUE = {"images": [{"id": 1, "file_name": "a.jpg"}], "n": [1.5, None, True, "x"]}


def test_inputs_depend_only_on_the_seed_and_their_number():
    first, second = ([repr(mutate_json(VALUE, case(3, n))) for n in range(200)] for _ in range(2))
    assert first == second and len(set(first)) > 100
    assert VALUE == {"images": [{"id": 1, "file_name": "a.jpg"}], "n": [1.5, None, True, "x"]}
    data = b'{"a": [1, 2, 3]}' * 5
    changed = [mutate_bytes(data, case(3, n)) for n in range(200)]
    assert changed == [mutate_bytes(data, case(3, n)) for n in range(200)] and len(set(changed)) > 100


def test_campaign_ends_in_time():
    start = time.monotonic()
    names = [rng.name for rng in campaign(7, seconds=0.05)]
    assert time.monotonic() - start < 1 and names[:2] == ["seed 7, input 0", "seed 7, input 1"]


def test_typed_errors_pass_and_others_fail(tmp_path):
    with only_typed_errors(case(0, 0), watched=tmp_path) as outcome:
        raise DataError("No file: expected one.")
    assert isinstance(outcome.error, DataError)
    with only_typed_errors(case(0, 0), watched=tmp_path) as outcome:
        pass
    assert outcome.error is None
    with pytest.raises(AssertionError, match="seed 0, input 5: KeyError"), only_typed_errors(case(0, 5)):
        raise KeyError("a")


def test_slow_calls_and_new_files_fail(tmp_path):
    with pytest.raises(AssertionError, match="took"), only_typed_errors(case(0, 0), seconds=0.0):
        pass
    with (
        pytest.raises(AssertionError, match="files changed"),
        only_typed_errors(case(0, 0), watched=tmp_path),
    ):
        (tmp_path / "new").touch()


@pytest.mark.parametrize("text", ["", "x" * 1500, "a\x1b[0m", "\u202eb", "\ud800", "a\x00", "a\rb", "\u2028"])
def test_unreadable_messages_fail(text):
    assert message_problem(text)
    with pytest.raises(AssertionError), only_typed_errors(case(0, 0)):
        raise DataError(text)
    assert not message_problem("süß: 図\nsecond line")
