"""Arguments of any type and value: the public functions and the command line raise only typed errors."""

import os
import pathlib
import sys

import numpy as np
import pytest
import torch
from helpers.fuzzing import (
    NUMBERS,
    ODD_NUMBERS,
    ODD_TEXTS,
    OTHERS,
    TEXTS,
    any_value,
    campaign,
    only_typed_errors,
)
from PIL import Image

from solo_infer import (
    SOLO,
    Categories,
    ModelConfig,
    PostprocessConfig,
    PreprocessConfig,
    evaluate,
    export_onnx,
    load_image,
)
from solo_infer.cli.main import main

pytest_plugins = ["helpers.command_line_fixtures"]
pytestmark = pytest.mark.fuzz


class NoPath:
    """Object that claims to be a path."""

    def __fspath__(self):
        return 3


def objects():
    """Return values of types that no JSON document has."""
    arrays = (np.zeros(0), np.zeros((2, 2)), np.array("a"), np.array(3), np.array([1, 2]), np.array([None]))
    tensors = (torch.zeros(()), torch.zeros(2), torch.tensor([1, 2]), torch.tensor(True))
    others = (
        b"",
        b"x",
        bytearray(b"x"),
        (),
        (1,),
        {"a"},
        object(),
        object,
        1j,
        slice(None),
        slice("a", None),
    )
    torch_values = (torch.device("cpu"), torch.float32, torch.float64, torch.device("cuda", 99))
    return [
        *arrays,
        *tensors,
        *others,
        *torch_values,
        np.int64(1),
        np.float32(0.5),
        range(3),
        ...,
        NoPath(),
    ] + [
        Image.new("L", (2, 2)),
        pathlib.Path("x"),
        iter([1]),
        ValueError("x"),
    ]


def calls(model, result, pixels):
    """Return the calls of one argument by name."""
    categories, tiny = model.config.categories, {"device": "cpu", "offline": True}
    return {
        "Categories.names": Categories,
        "Categories.ids": lambda value: Categories(("a", "b"), value),
        "Categories.labels": categories.labels,
        "ModelConfig": ModelConfig,
        "ModelConfig.categories": lambda value: ModelConfig(categories=value),
        "ModelConfig.from_dict": ModelConfig.from_dict,
        "PreprocessConfig": lambda value: PreprocessConfig(short_side=value),
        "PostprocessConfig.nms": lambda value: PostprocessConfig(nms=value),
        "PostprocessConfig.score_thr": lambda value: PostprocessConfig(score_thr=value),
        "filter": result.filter,
        "filter.classes": lambda value: result.filter(0.0, value),
        "to": result.to,
        "to_coco": result.to_coco,
        "to_labelme": result.to_labelme,
        "to_label_studio": result.to_label_studio,
        "to_label_studio.shape": lambda value: result.to_label_studio(shape=value),
        "from_dict": type(result).from_dict,
        "from_json": type(result).from_json,
        "plot": result.plot,
        "plot.min_score": lambda value: result.plot(min_score=value),
        "plot.alpha": lambda value: result.plot(alpha=value),
        "save": result.save,
        "from_pretrained": lambda value: SOLO.from_pretrained(value, **tiny),
        "from_pretrained.device": lambda value: SOLO.from_pretrained("missing", device=value),
        "from_pretrained.dtype": lambda value: SOLO.from_pretrained("missing", dtype=value),
        "from_pretrained.config": lambda value: SOLO.from_pretrained("missing", config=value, **tiny),
        "from_pretrained.revision": lambda value: SOLO.from_pretrained("missing", revision=value, **tiny),
        "SOLO": lambda value: SOLO(value, model.network),
        "SOLO.network": lambda value: SOLO(model.config, value),
        "only": model.only,
        "with_thresholds": model.with_thresholds,
        "model": model,
        "model.color": lambda value: model([], color=value),
        "model.batch_size": lambda value: model([], batch_size=value),
        "model.thresholds": lambda value: model([], thresholds=value),
        "model.min_score": lambda value: model([], min_score=value),
        "model.input_size": lambda value: model([], input_size=value),
        "model.across_classes": lambda value: model([], across_classes=value),
        "model.to": lambda value: model.to(dtype=value) if value is not torch.float64 else None,
        "predict_batch": model.predict_batch,
        "load_image": load_image,
        "load_image.color": lambda value: load_image(pixels, color=value),
        "evaluate": lambda value: evaluate(value, ".", "missing.json"),
        "evaluate.images": lambda value: evaluate(model, value, "missing.json"),
        "evaluate.annotations": lambda value: evaluate(model, ".", value),
        "evaluate.output": lambda value: evaluate(model, ".", "missing.json", output=value),
        "evaluate.max_detections": lambda value: evaluate(model, ".", "missing.json", max_detections=value),
        "export_onnx": lambda value: export_onnx(value, "x.onnx", size=(64, 64)),
        "export_onnx.size": lambda value: export_onnx(model, "nowhere/x.onnx", size=value),
    }


def test_public_functions(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((20, 30, 3), np.uint8)
    functions = calls(small_model, small_model(pixels), pixels)
    values = [*objects(), *NUMBERS, *ODD_NUMBERS, *TEXTS, *ODD_TEXTS, *OTHERS]
    for rng in campaign(1):
        name = rng.choice(list(functions))
        value = rng.choice(values) if rng.random() < 0.8 else any_value(rng)
        rng.name += f", {name}({value!r:.100})"
        with only_typed_errors(rng):
            functions[name](value)
    assert small_model.dtype == torch.float32


VERBS = ("predict", "eval", "benchmark", "train", "models", "info", "download", "convert", "export", "verify")
OPTIONS = (
    "--model --output --save-json --save-chart --json --no-save --classes --min-score --nms --nms-iou "
    "--across-classes "
    "--device --dtype --batch-size --images --annotations --detections --limit --max-detections --runs "
    "--warmup --quiet --verbose --input-size --depth --opset --image-ids --offline --recipe --epochs "
    "--workers --config --help"
).split()
WORDS = (
    "missing.jpg",
    "missing",
    "0",
    "1",
    "-1",
    "1e9",
    "nan",
    "cpu",
    "cuda:99",
    "[",
    "http://[",
    "~x",
    "",
    "é",
)


def test_command_line(tmp_path, monkeypatch, capsys):
    """No command has its files here, so that each one ends early, with an exit code and no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOLO_INFER_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["solo-infer"])
    for rng in campaign(2):
        words = [rng.choice(VERBS)]
        for _ in range(rng.randrange(8)):
            texts = [text for text in ODD_TEXTS if "\0" not in text]
            words.append(rng.choice(rng.choice((OPTIONS, WORDS, TEXTS, texts, ["missing.jpg"]))))
        if words[0] == "verify":
            words += ["--model", "missing"]  # without a model it would run for minutes
        rng.name += f", {words!r:.300}"
        with only_typed_errors(rng, seconds=20):
            assert main(words) in (0, 1, 2), rng.name
        out, err = capsys.readouterr()
        assert "Traceback" not in err, rng.name
        assert all(char.isprintable() or char in "\n" for char in out), rng.name
    assert not os.path.exists("~x")
