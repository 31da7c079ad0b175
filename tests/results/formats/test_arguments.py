"""Arguments of any type of the conversions and writers end in a typed error."""

import numpy as np
import pytest
import torch
from helpers.results import make_result

from solo_infer import Result
from solo_infer.errors import SoloInferError
from solo_infer.results.writers import CocoDataset, CsvFile, YoloFolder

ODD = [5, 1.5, object(), [], {"a": 1}, np.zeros(3), torch.zeros(2, 2), ("a", "b"), b"\x00"]
CALLS = {
    "shape": lambda value: make_result().to_label_studio(shape=value),
    "image": lambda value: make_result().to_label_studio(value),
    "from_name": lambda value: make_result().to_label_studio(from_name=value),
    "to_name": lambda value: make_result().to_label_studio(to_name=value),
    "image_path": lambda value: make_result().to_labelme(value),
    "values": Result.from_dict,
    "categories": lambda value: Result.from_dict(make_result().to_dict(), categories=value),
    "text": Result.from_json,
}


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_arguments_of_other_types(call, value):
    with pytest.raises(SoloInferError, match="expected"):
        call(value)


@pytest.mark.parametrize("value", [*ODD[:-1], None], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("writer", [CocoDataset, CsvFile, YoloFolder])
def test_targets_of_other_types(writer, value):
    with pytest.raises(SoloInferError, match="expected a path"):
        writer(value)


@pytest.mark.parametrize("value", ["x", 1.5, None, True, torch.tensor(5)])
def test_limits_of_other_types(value):
    with pytest.raises(SoloInferError, match="max_bytes is .*expected an integer"):
        Result.from_dict(make_result().to_dict(), max_bytes=value)
