"""mmdet itself on the same weights, image and threads, where it is installed: what ratios are taken to."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import torch

from solo_infer.config import PRESETS, ModelConfig
from solo_infer.data import images
from solo_infer.data.images import ImageSource
from solo_infer.diagnostics.benchmark import Measurement, environment, peak_memory, spread
from solo_infer.errors import ConfigError
from solo_infer.inference.preprocess import plan
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter
from solo_infer.weights.key_mapping import mmdet_name

# Of the presets' heads, inside mmdet's package.
_CONFIGS = {
    "solo": "solo/solo_r50_fpn_1x_coco.py",
    "decoupled": "solo/decoupled-solo_r50_fpn_1x_coco.py",
    "decoupled_light": "solo/decoupled-solo-light_r50_fpn_3x_coco.py",
    "yolact": "yolact/yolact_r50_1xb8-55e_coco.py",
}


def measure_mmdet(
    model: Segmenter, source: ImageSource, *, name: str = "mmdet", runs: int = 10, warmup: int = 2
) -> Measurement:
    """Time mmdet 3.x with the weights, thresholds and device of a model, on one image.

    SOLO's head computes classes and masks together there: their time is under "masks".

    Args:
        model: One of the published architectures in float32.
        source: The image.
        name: What to call it.
        runs: Timed runs.
        warmup: Runs before them.

    Raises:
        ConfigError: mmdet is not installed, or has no such model.
    """
    detector, pipeline = _detector(model), _pipeline(model.config)
    loaded = images.load_image(source)
    bgr = loaded.pixels[..., ::-1].copy()

    def run() -> tuple[dict[str, float], int, int]:
        return _run(detector, pipeline, bgr, model.device)

    for _ in range(warmup):
        run()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    found = [run() for _ in range(runs)]
    total = spread([sum(seconds.values()) for seconds, _, _ in found])
    return Measurement(
        name=name,
        device=str(model.device),
        dtype="float32",
        threads=torch.get_num_threads(),
        batch_size=1,
        runs=runs,
        image=(loaded.pixels.shape[0], loaded.pixels.shape[1]),
        input=plan(loaded.pixels, model.config.preprocessing).padded,
        candidates=found[0][1],
        instances=found[0][2],
        stages={stage: spread([seconds[stage] for seconds, _, _ in found]) for stage in found[0][0]},
        total=total,
        images_per_second=1000 / total.median,
        peak_memory=peak_memory(model.device),
        environment={**environment(model.device), "mmdet": _import_mmdet().__version__},
    )


def _import_mmdet() -> Any:
    """Import mmdet; its models here need no compiled operators of mmcv: stand-ins do where they lack."""
    try:
        import mmcv

        try:
            import mmcv.ops  # noqa: F401
        except ImportError:
            _stand_in_for_ops(mmcv)
        import mmdet
        from mmdet.utils import register_all_modules
    except ImportError as error:
        raise ConfigError(
            f"--against mmdet needs mmdet 3.3 in this environment, which cannot be imported: {error}."
        ) from error
    register_all_modules()
    return mmdet


class _Operators(types.ModuleType):
    """A module that has a layer of any name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        layer = type(name, (torch.nn.Module,), {})
        setattr(self, name, layer)
        return layer


class _OperatorsFinder:
    """Imports ``mmcv.ops`` and all modules below it as stand-ins."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "mmcv.ops" and not name.startswith("mmcv.ops."):
            return None
        return importlib.machinery.ModuleSpec(name, _OperatorsFinder, is_package=True)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Operators(spec.name)

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        module.__path__ = []


def _stand_in_for_ops(mmcv: Any) -> None:
    for name in [name for name in sys.modules if name == "mmcv.ops" or name.startswith("mmcv.ops.")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _OperatorsFinder)
    import mmcv.ops as operators

    mmcv.ops = operators


def _config(config: ModelConfig) -> Any:
    """Return mmdet's configuration of a model."""
    head = config.architecture.head
    published = {preset.architecture for name, preset in PRESETS.items() if "_dcn_" not in name}
    if head not in _CONFIGS or config.architecture not in published:
        raise ConfigError(f"mmdet has no configuration of this {head} model: expected a published one.")
    mmdet = _import_mmdet()
    from mmengine.config import Config

    folder = Path(mmdet.__file__).parent / ".mim" / "configs"
    found = Config.fromfile(str(folder / _CONFIGS[head]))
    found.model.backbone.init_cfg = None
    found.model.backbone.depth = int(config.architecture.backbone.removeprefix("resnet"))
    settings = dataclasses.asdict(config.thresholds)
    found.model.test_cfg.update(max_per_img=settings.pop("max_per_image"), **settings)
    return found


def _detector(model: Segmenter) -> Any:
    found = _config(model.config)
    from mmdet.registry import MODELS

    detector = MODELS.build(found.model)
    weights = {mmdet_name(name): tensor.float() for name, tensor in model.network.state_dict().items()}
    detector.load_state_dict(weights, strict=True)
    return detector.to(model.device).eval()


def _pipeline(config: ModelConfig) -> Any:
    found = _config(config)
    from mmcv.transforms import Compose

    steps = [step for step in found.test_pipeline if step.type != "LoadAnnotations"]
    steps[0].type = "mmdet.LoadImageFromNDArray"
    return Compose(steps)


@torch.inference_mode()
def _run(detector: Any, pipeline: Any, image: Any, device: torch.device) -> tuple[dict[str, float], int, int]:
    """Return seconds by stage, candidates and instances of one run."""
    from mmengine.dataset import pseudo_collate

    watch = Stopwatch(device)
    data = detector.data_preprocessor(pseudo_collate([pipeline({"img": image, "img_id": 0})]), False)
    metas = [sample.metainfo for sample in data["data_samples"]]
    watch.mark("preprocess")
    maps = detector.backbone(data["inputs"])
    watch.mark("backbone")
    levels = detector.neck(maps)
    watch.mark("pyramid")
    if detector.with_bbox:
        return _run_yolact(detector, levels, metas, watch)
    outputs = detector.mask_head(levels)
    watch.mark("masks")
    (found,) = detector.mask_head.predict_by_feat(*outputs, batch_img_metas=metas)
    watch.mark("post")
    threshold = detector.mask_head.test_cfg.score_thr
    candidates = sum(int((scores[0] > threshold).sum()) for scores in outputs[-1])
    return watch.seconds, candidates, len(found.scores)


def _run_yolact(
    detector: Any, levels: Any, metas: Any, watch: Stopwatch
) -> tuple[dict[str, float], int, int]:
    """Run the heads of YOLACT, whose masks wait for the chosen boxes."""
    outputs = detector.bbox_head(levels)
    watch.mark("classes")
    boxes = detector.bbox_head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=False)
    watch.mark("post")
    masks, _ = detector.mask_head(levels, boxes)
    watch.mark("masks")
    (found,) = detector.mask_head.predict_by_feat(masks, None, boxes, metas, rescale=True)
    watch.mark("post")
    threshold, classes = detector.bbox_head.test_cfg.score_thr, detector.bbox_head.cls_out_channels
    scores = torch.cat(
        [logits[0].unflatten(0, (-1, classes)).softmax(1)[:, :-1].flatten() for logits in outputs[0]]
    )
    return watch.seconds, int((scores > threshold).sum()), len(found.scores)
