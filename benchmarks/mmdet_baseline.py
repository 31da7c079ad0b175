"""Speed of solo_infer relative to mmdet 3.3, with the same weights, image and threads.

    python benchmarks/mmdet_baseline.py street.jpg --model solo_r50_1x decoupled_r50_1x --dtype float32

mmdet must be installed in this environment and runs in float32. mmdet's SOLO head computes classes and masks
together; their time is reported as "masks".
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from solo_infer.config import PRESETS, ModelConfig
from solo_infer.data import images
from solo_infer.data.images import ImageSource, LoadedImage
from solo_infer.diagnostics.benchmark import (
    Measurement,
    describe_environment,
    format_table,
    measure,
    peak_memory,
    percentiles,
    reset_peak_memory,
)
from solo_infer.errors import ConfigError, SoloInferError
from solo_infer.inference.preprocess import plan
from solo_infer.runtime.device import DTYPES
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.auto import load_model
from solo_infer.segmenters.base import Segmenter
from solo_infer.weights.key_mapping import mmdet_name

# Configuration files in mmdet's package by name of the architecture; {depth} is that of the ResNet.
_CONFIG_FILES = {
    "solo": "solo/solo_r50_fpn_1x_coco.py",
    "decoupled": "solo/decoupled-solo_r50_fpn_1x_coco.py",
    "decoupled_light": "solo/decoupled-solo-light_r50_fpn_3x_coco.py",
    "solov2": "solov2/solov2_r50_fpn_1x_coco.py",
    "solov2_light": "solov2/solov2-light_r{depth}_fpn_ms-3x_coco.py",
    "yolact": "yolact/yolact_r50_1xb8-55e_coco.py",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each model and mmdet, print the measurements and the ratios, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        measurements = compare(
            options.image,
            options.model,
            dtypes=options.dtype,
            device=options.device,
            runs=options.runs,
            warmup=options.warmup,
        )
    except SoloInferError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([entry.to_dict() for entry in measurements], indent=1))
    else:
        print("\n".join([format_table(measurements), *ratio_lines(measurements)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", metavar="IMAGE", help="path or URL of an image")
    parser.add_argument(
        "--model", nargs="+", required=True, metavar="NAME", help="names or paths, as for from_pretrained"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="of solo_infer (default: float32)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="timed runs (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print machine-readable JSON")
    return parser


def compare(
    source: ImageSource,
    names: Sequence[str],
    *,
    dtypes: Sequence[str],
    device: str,
    runs: int,
    warmup: int,
) -> list[Measurement]:
    """Measure each model in each dtype, then mmdet with the same weights.

    Raises:
        SoloInferError: A model cannot be loaded, mmdet is not installed or a number is out of range.
    """
    _import_mmdet()  # before the first measurement, so that a missing package is reported early
    measurements = []
    for name in names:
        for dtype in dtypes:
            model = load_model(name, device=device, dtype=dtype)
            measurements.append(measure(model, source, name=name, runs=runs, warmup=warmup))
        model = load_model(name, device=device)
        mmdet_measurement = measure_mmdet(model, source, name=f"mmdet's {name}", runs=runs, warmup=warmup)
        measurements.append(mmdet_measurement)
    return measurements


def ratio_lines(measurements: Sequence[Measurement]) -> list[str]:
    """Return the speed relative to mmdet of each measurement that precedes one of mmdet."""
    lines: list[str] = []
    pending: list[Measurement] = []
    for entry in measurements:
        if "mmdet" not in entry.environment:
            pending.append(entry)
            continue
        for ours in pending:
            ratio = entry.total.median / ours.total.median
            lines.append(f"{ours.name} ({ours.dtype}, batch {ours.batch_size}): {ratio:.2f} times mmdet")
        pending = []
    return lines


def measure_mmdet(
    model: Segmenter, source: ImageSource, *, name: str = "mmdet", runs: int = 10, warmup: int = 2
) -> Measurement:
    """Time mmdet with the weights, thresholds and device of a model on one image.

    Args:
        model: Model of a published architecture, in float32.
        source: Image.
        name: Name of the measurement.
        runs: Number of timed runs.
        warmup: Number of runs before them.

    Raises:
        ConfigError: mmdet is not installed or has no such model.
    """
    run_mmdet = mmdet_runner(model)
    image = images.load_image(source)
    for _ in range(warmup):
        run_mmdet(image)
    reset_peak_memory(model.device)
    outputs = [run_mmdet(image) for _ in range(runs)]
    total = percentiles([sum(seconds.values()) for seconds, _, _ in outputs])
    stages, candidates, instances = outputs[0]
    return Measurement(
        name=name,
        device=str(model.device),
        dtype="float32",
        threads=torch.get_num_threads(),
        batch_size=1,
        runs=runs,
        image=image.pixels.shape[:2],
        input=plan(image.pixels, model.config.preprocessing).padded,
        candidates=candidates,
        instances=instances,
        stages={stage: percentiles([seconds[stage] for seconds, _, _ in outputs]) for stage in stages},
        total=total,
        images_per_second=1000 / total.median,
        peak_memory=peak_memory(model.device),
        environment={**describe_environment(model.device), "mmdet": _import_mmdet().__version__},
    )


def mmdet_runner(model: Segmenter) -> Callable[[LoadedImage], tuple[dict[str, float], int, int]]:
    """Return a function that runs mmdet with the weights, thresholds and device of a model on an image.

    The function returns the seconds of each stage, the number of candidates and the number of instances.

    Raises:
        ConfigError: mmdet is not installed or has no such model.
    """
    detector, pipeline = _build_detector(model), _build_pipeline(model.config)

    def run(image: LoadedImage) -> tuple[dict[str, float], int, int]:
        return _run(detector, pipeline, image.pixels[..., ::-1].copy(), model.device)

    return run


def _import_mmdet() -> Any:
    """Import mmdet. If mmcv lacks its compiled operators, which these models do not use, they are stubbed."""
    try:
        import mmcv

        try:
            import mmcv.ops  # noqa: F401
        except ImportError:
            _stub_operators(mmcv)
        import mmdet
        from mmdet.utils import register_all_modules
    except ImportError as error:
        raise ConfigError(
            f"mmdet cannot be imported: {error}. Install mmdet 3.3 in this environment."
        ) from error
    register_all_modules()
    return mmdet


class _Operators(types.ModuleType):
    """Module with a layer of any name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        layer = type(name, (torch.nn.Module,), {})
        setattr(self, name, layer)
        return layer


class _OperatorsFinder:
    """Finder that imports ``mmcv.ops`` and its submodules as stubs."""

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


def _stub_operators(mmcv: Any) -> None:
    for name in [name for name in sys.modules if name == "mmcv.ops" or name.startswith("mmcv.ops.")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _OperatorsFinder)
    import mmcv.ops as operators

    mmcv.ops = operators


def _mmdet_config(config: ModelConfig) -> Any:
    """Return mmdet's configuration of a model."""
    name = config.architecture.name
    if config.preprocessing == PRESETS["solov2_light_r50"].preprocessing:
        name = f"{name}_light"
    # Deformable convolutions are among the compiled operators of mmcv.
    published = {preset.architecture for preset_name, preset in PRESETS.items() if "dcn" not in preset_name}
    if name not in _CONFIG_FILES or config.architecture not in published:
        raise ConfigError(f"mmdet has no configuration of this {name} model: expected a published one.")
    mmdet = _import_mmdet()
    from mmengine.config import Config

    folder = Path(mmdet.__file__).parent / ".mim" / "configs"
    depth = int(config.architecture.backbone.removeprefix("resnet"))
    mmdet_config = Config.fromfile(str(folder / _CONFIG_FILES[name].format(depth=depth)))
    mmdet_config.model.backbone.init_cfg = None
    mmdet_config.model.backbone.depth = depth
    thresholds = dataclasses.asdict(cast(Any, config.thresholds))
    mmdet_config.model.test_cfg.update(max_per_img=thresholds.pop("max_per_image"), **thresholds)
    return mmdet_config


def _build_detector(model: Segmenter) -> Any:
    mmdet_config = _mmdet_config(model.config)
    from mmdet.registry import MODELS

    detector = MODELS.build(mmdet_config.model)
    weights = {mmdet_name(name): tensor.float() for name, tensor in model.network.state_dict().items()}
    detector.load_state_dict(weights, strict=True)
    return detector.to(model.device).eval()


def _build_pipeline(config: ModelConfig) -> Any:
    mmdet_config = _mmdet_config(config)
    from mmcv.transforms import Compose

    steps = [step for step in mmdet_config.test_pipeline if step.type != "LoadAnnotations"]
    steps[0].type = "mmdet.LoadImageFromNDArray"
    return Compose(steps)


@torch.inference_mode()
def _run(detector: Any, pipeline: Any, image: Any, device: torch.device) -> tuple[dict[str, float], int, int]:
    """Return seconds by stage, candidates and instances of one run."""
    from mmengine.dataset import pseudo_collate

    stopwatch = Stopwatch(device)
    data = detector.data_preprocessor(pseudo_collate([pipeline({"img": image, "img_id": 0})]), False)
    metas = [sample.metainfo for sample in data["data_samples"]]
    stopwatch.mark("preprocess")
    maps = detector.backbone(data["inputs"])
    stopwatch.mark("backbone")
    levels = detector.neck(maps)
    stopwatch.mark("pyramid")
    if detector.with_bbox:
        return _run_yolact(detector, levels, metas, stopwatch)
    outputs = detector.mask_head(levels)
    stopwatch.mark("masks")
    (instances,) = detector.mask_head.predict_by_feat(*outputs, batch_img_metas=metas)
    stopwatch.mark("post")
    threshold = detector.mask_head.test_cfg.score_thr
    # SOLOv2 returns kernels, class scores and mask features; the others return their class scores last.
    class_scores = outputs[1] if isinstance(outputs[-1], torch.Tensor) else outputs[-1]
    candidates = sum(int((scores[0] > threshold).sum()) for scores in class_scores)
    return stopwatch.seconds, candidates, len(instances.scores)


def _run_yolact(
    detector: Any, levels: Any, metas: Any, stopwatch: Stopwatch
) -> tuple[dict[str, float], int, int]:
    """Run the heads of YOLACT, which compute masks after the selection of boxes."""
    outputs = detector.bbox_head(levels)
    stopwatch.mark("classes")
    boxes = detector.bbox_head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=False)
    stopwatch.mark("post")
    masks, _ = detector.mask_head(levels, boxes)
    stopwatch.mark("masks")
    (instances,) = detector.mask_head.predict_by_feat(masks, None, boxes, metas, rescale=True)
    stopwatch.mark("post")
    threshold, classes = detector.bbox_head.test_cfg.score_thr, detector.bbox_head.cls_out_channels
    scores = torch.cat(
        [logits[0].unflatten(0, (-1, classes)).softmax(1)[:, :-1].flatten() for logits in outputs[0]]
    )
    return stopwatch.seconds, int((scores > threshold).sum()), len(instances.scores)


if __name__ == "__main__":
    sys.exit(main())
