"""Training and evaluation on data sets in YOLO format."""

import dataclasses

import pytest
import torch
from helpers.training_runs import QUICK_FINE_TUNE, small_start
from helpers.yolo_sets import write_nuts_and_bolts

from solo_infer import SOLO, evaluate
from solo_infer.config import Categories
from solo_infer.errors import ResultError, TrainingError
from solo_infer.training import CocoDataset, CocoFiles, YoloFiles, fine_tune, replace_classifier
from solo_infer.training.metrics_log import read_rows


def test_fine_tune_and_resume(tmp_path):
    path = write_nuts_and_bolts(tmp_path / "data")
    recipe = dataclasses.replace(QUICK_FINE_TUNE, epochs=1)
    start, data, validation = small_start(), YoloFiles(path), YoloFiles(path, "val")
    folder = fine_tune(start, data, tmp_path / "run", recipe, validation=validation, device="cpu")
    assert SOLO.from_pretrained(folder).config.categories.names == ("nut", "bolt")
    assert len(read_rows(folder / "evaluation.csv")) == 1
    fine_tune(start, data, folder, recipe, validation=validation, device="cpu", resume=True)
    label = tmp_path / "data/labels/train/0.txt"
    label.write_text(label.read_text().replace("0.75", "0.8"))
    with pytest.raises(TrainingError, match="checksum of annotations"):
        fine_tune(start, data, folder, recipe, device="cpu", resume=True)


def test_evaluate_accepts_the_content(tmp_path):
    path = write_nuts_and_bolts(tmp_path)
    data = YoloFiles(str(path), "val").to_coco()
    model = replace_classifier(small_start(), Categories(("nut", "bolt")))
    metrics = evaluate(model, data.images, data.annotations, classes=["nut"], progress=False)
    assert metrics.images == 2 and [entry.name for entry in metrics.per_class] == ["nut"]


def test_samples_equal_those_of_a_coco_file(tmp_path):
    path = write_nuts_and_bolts(tmp_path)
    data = YoloFiles(path).to_coco()
    sample = CocoDataset(data.images, data.annotations)[0]
    assert sample.target["labels"].tolist() == [0, 1]
    expected = torch.tensor([[12.0, 9, 72, 54]])
    assert torch.equal(sample.target["boxes"].as_subclass(torch.Tensor)[1:], expected)


def test_the_description_is_not_overwritten(tmp_path):
    path = write_nuts_and_bolts(tmp_path / "data")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").symlink_to(path)
    with pytest.raises(ResultError, match="annotations"):
        fine_tune(small_start(), YoloFiles(path), folder, QUICK_FINE_TUNE, device="cpu", resume=True)
    assert CocoFiles("a", "b").to_coco() == CocoFiles("a", "b")
