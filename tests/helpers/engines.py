"""Engine sessions without an engine."""

from pathlib import Path

import torch

from solo_infer.config.families import family_of
from solo_infer.export.model_file import build_detector
from solo_infer.inference.engines.metadata import OUTPUT_NAMES, ExportedConfig


class TorchSession:
    """Session of the module that is exported, run by PyTorch without tracing it, which takes seconds."""

    name = "torch"
    dtype = torch.float32

    def __init__(self, model, size=None, pixels=False, source=""):
        self.path = Path("model.onnx")
        self.exported = ExportedConfig(model.config, size, pixels, source)
        self.detector = build_detector(model, pixels)

    @torch.no_grad()
    def run(self, inputs):
        outputs = self.detector(torch.from_numpy(inputs))
        return dict(zip(OUTPUT_NAMES, (output.numpy() for output in outputs), strict=True))


def engine_model(model, **options):
    """Return a model of the same family that runs in a ``TorchSession``."""
    family = family_of(model.config.architecture)
    return family.load("engine_segmenter")(TorchSession(model, **options))
