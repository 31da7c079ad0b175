"""Script of a user, which type checkers read in their strictest mode; it is not run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from solo_infer import SOLO, Instance, Result, SoloInferError, evaluate, fine_tune, load_model
from solo_infer.training import FINE_TUNE, CocoFiles, YoloFiles

model: SOLO = SOLO.from_pretrained("tiny", device="cpu", dtype=torch.bfloat16)


def one_image(path: Path, pixels: np.ndarray, photo: Image.Image, tensor: torch.Tensor) -> list[Result]:
    single: Result = model("street.jpg")
    return [single, model(path), model(pixels, color="bgr"), model(photo), model(tensor), model(b"\xff\xd8")]


def several(names: list[str], paths: tuple[Path, ...], mixed: Sequence[str | Path | Image.Image]) -> int:
    results: list[Result] = model(names)
    more: list[Result] = model(paths, batch_size=2)
    sequence: list[Result] = model(mixed)
    frames: Iterator[Result] = model.stream(path for path in paths)
    return len(results) + len(more) + len(sequence) + sum(len(frame) for frame in frames)


def draw(result: Result, target: str | os.PathLike[str]) -> Image.Image:
    saved: Path = result.save(target, min_score=0.5, alpha=0.4, boxes=True, captions=False, font=None)
    print(saved.name, result.names, float(result.scores[0]))
    people: Result = result.filter(0.5)
    first: Instance = people[0]
    rest: Result = people[1:]
    masks: list[torch.Tensor] = [instance.mask for instance in rest]
    print(first.name, first.score, masks)
    return result.plot(min_score=0.3)


def train(description: Path) -> float:
    folder: Path = fine_tune(
        model, YoloFiles(description), "run", FINE_TUNE, validation=YoloFiles(description, "val")
    )
    fine_tune(model, CocoFiles("photos", "instances.json"), "other")
    evaluation = evaluate(load_model(folder), "photos", "instances.json", classes=["cat"])
    url: str = model.push_to_hub("me/nuts", private=True)
    print(url, model.save_pretrained("saved"))
    return evaluation.metrics["AP"] if evaluation is not None else 0.0


def handle(path: str) -> Result | None:
    try:
        return model.only(["person"]).predict(path)
    except SoloInferError as error:
        print(error)
        return None
