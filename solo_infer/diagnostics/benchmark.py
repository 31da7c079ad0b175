"""Latency by stage, throughput and peak memory of a model on one image.

    measurement = measure(SOLO.from_pretrained("decoupled_r50_3x"), "street.jpg", runs=20)
    print(format_table([measurement]))

Timings start with the decoded image and end with the ``Result``.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from solo_infer._version import __version__
from solo_infer.data import images
from solo_infer.data.images import LoadedImage
from solo_infer.data.sources import ImageSource
from solo_infer.errors import ConfigError, ResultError
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.ops import dispatch
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.runtime.cpu import cpu_name
from solo_infer.runtime.device import fast_paths
from solo_infer.runtime.messages import describe_error, escaped, quoted
from solo_infer.runtime.output_files import require_writable
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter
from solo_infer.segmenters.engine_model import EngineModel

STAGES = ("preprocess", "backbone", "pyramid", "classes", "masks", "post")
_ALL_STAGES = (*STAGES[:-1], "engine", STAGES[-1])  # an exported model has "engine" for those of the network


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of several runs, in milliseconds.

    Attributes:
        median: 50th percentile.
        p10: 10th percentile.
        p90: 90th percentile.
    """

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Measurement:
    """Measurement of one model on one image.

    Attributes:
        name: Name of the model.
        device: Device of the network.
        dtype: Dtype of the network.
        threads: CPU threads of torch.
        batch_size: Number of images per batch, all the same.
        runs: Number of timed batches.
        image: (height, width) of the image in pixels.
        input: (height, width) of the network input in pixels.
        candidates: (cell or anchor, class) pairs above the score threshold per image, None if unknown.
        instances: Instances per image.
        stages: Milliseconds per image by stage, each synchronized. An exported model has the stage "engine"
            instead of those of the network. On CUDA the stages run without CUDA
            graphs, so their sum exceeds the total.
        total: Milliseconds per image from the decoded image to the result, synchronized at the end only.
        images_per_second: Throughput at the median of the total.
        peak_memory: MiB, of tensors during the runs on CUDA and of the whole process on the CPU; None where
            the system does not report it.
        environment: Versions of the software and names of the hardware.
    """

    name: str
    device: str
    dtype: str
    threads: int
    batch_size: int
    runs: int
    image: tuple[int, int]
    input: tuple[int, int]
    candidates: int | None
    instances: int
    stages: dict[str, Percentiles]
    total: Percentiles
    images_per_second: float
    peak_memory: float | None
    environment: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def measure(
    model: Segmenter,
    source: ImageSource,
    *,
    name: str = "",
    batch_size: int = 1,
    runs: int = 10,
    warmup: int = 2,
) -> Measurement:
    """Time a model on one image.

    Args:
        model: Model on the device and in the dtype to measure.
        source: Image, as for ``Segmenter.__call__``.
        name: Name of the measurement. Defaults to a description of the model.
        batch_size: Number of copies of the image per batch.
        runs: Number of timed batches, once for the total and once more for the stages.
        warmup: Number of batches before them. On CUDA the second one captures the graph.

    Raises:
        ConfigError: A number is out of range.
        ImageError: The image cannot be read.
    """
    if min(batch_size, runs) < 1 or warmup < 0:
        raise ConfigError(f"batch_size={batch_size}, runs={runs}, warmup={warmup}: expected 1, 1, 0 or more.")
    image = images.load_image(source)
    batch = [image] * batch_size

    def run(synchronized: bool) -> tuple[dict[str, float], int]:
        stopwatch = Stopwatch(model.device)
        results = model.predict_batch(batch, synchronize=synchronized)
        stopwatch.mark("total")
        return {**results[0].timings, "total": stopwatch.seconds["total"] / batch_size}, len(results[0])

    for _ in range(warmup):
        run(synchronized=False)
    reset_peak_memory(model.device)
    total = percentiles([run(synchronized=False)[0]["total"] for _ in range(runs)])
    staged, (instances, *_) = zip(*(run(synchronized=True) for _ in range(runs)), strict=True)
    memory = peak_memory(model.device)
    return Measurement(
        name=name or repr(model),
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        batch_size=batch_size,
        runs=runs,
        image=image.pixels.shape[:2],
        input=plan(image.pixels, model.config.preprocessing).padded,
        candidates=count_candidates(model, image),
        instances=instances,
        stages={
            stage: percentiles([seconds[stage] for seconds in staged])
            for stage in _ALL_STAGES
            if stage in staged[0]
        },
        total=total,
        images_per_second=1000 / total.median,
        peak_memory=memory,
        environment=describe_environment(model.device),
    )


def count_candidates(model: Segmenter, image: LoadedImage) -> int | None:
    """Return the number of (cell or anchor, class) pairs of an image above the score threshold.

    None for an exported model, which does not return them.
    """
    if isinstance(model, EngineModel):
        return None
    settings = model.config.preprocessing
    inputs = prepare([image.pixels], [plan(image.pixels, settings)], settings, model.device, model.dtype)
    return model.count_candidates(inputs)[0]


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Return the percentiles of runs, in milliseconds."""
    ordered = sorted(1000 * value for value in seconds)
    last = len(ordered) - 1
    return Percentiles(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)])


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of ``peak_memory`` on CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float | None:
    """Return the peak memory in MiB: of the process on the CPU, of tensors since the last reset on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum / (2**20 if sys.platform == "darwin" else 2**10)


def describe_environment(device: torch.device) -> dict[str, str]:
    """Return the versions of the software and the names of the hardware."""
    import torchvision

    values = {
        "solo_infer": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": cpu_name(),
    }
    if device.type == "cuda":
        values["gpu"] = torch.cuda.get_device_name(device)
        supported = fast_paths(device)
        values["triton"] = ("all kernels" if supported.triton else "none") + "".join(
            f", not {name} ({reason})" for name, reason in dispatch.failures().items()
        )
        values["graphs"] = "on" if supported.graphs else "off"
    return values


def format_table(measurements: Sequence[Measurement]) -> str:
    """Return measurements as text: milliseconds per image by stage, one line each."""
    names = [escaped(entry.name) for entry in measurements]
    width = max(len("model"), *map(len, names))
    stages = [stage for stage in _ALL_STAGES if any(stage in entry.stages for entry in measurements)]
    head = f"{'model':<{width}}  batch " + "".join(f"{stage:>11}" for stage in (*stages, "total"))
    lines = ["milliseconds per image (median)", head + "   p10..p90      images/s  candidates  instances"]
    for name, entry in zip(names, measurements, strict=True):
        columns = "".join(
            f"{entry.stages[stage].median:>11.1f}" if stage in entry.stages else f"{'-':>11}"
            for stage in stages
        )
        lines.append(
            f"{name:<{width}}  {entry.batch_size:>5} {columns}{entry.total.median:>11.1f}"
            f"   {entry.total.p10:.1f}..{entry.total.p90:.1f}{entry.images_per_second:>12.2f}"
            f"{'-' if entry.candidates is None else entry.candidates:>12}{entry.instances:>11}"
        )
    first = measurements[0]
    memory = "unknown" if first.peak_memory is None else f"{first.peak_memory:.0f} MiB"
    lines.append(
        f"{first.device}, {first.dtype}, {first.threads} threads, input {first.input[0]} x {first.input[1]}, "
        f"{first.runs} runs, peak memory {memory}"
    )
    lines.append(", ".join(f"{name} {value}" for name, value in first.environment.items()))
    return "\n".join(lines)


def check_chart(path: Path) -> None:
    """Check that ``plot`` can write a chart to a path.

    Raises:
        ConfigError: matplotlib cannot be used, or has no image format of the suffix.
        ResultError: The path is that of a folder, or its folder does not exist or cannot be written.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except Exception as error:  # a broken installation, or a backend in MPLBACKEND that does not exist
        raise ConfigError(
            f"A chart needs matplotlib, which cannot be used ({describe_error(error)}): "
            "pip install 'solo-infer[train]'."
        ) from error
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        raise ConfigError(
            f"{quoted(path, 200)}: expected a file name that ends in .{', .'.join(sorted(formats))}."
        )
    require_writable("The chart", path)


def plot(measurements: Sequence[Measurement], path: Path) -> Path:
    """Draw the stages of measurements as a chart of stacked bars.

    Args:
        measurements: Measurements, one bar each.
        path: Path of the image file to write.

    Raises:
        ConfigError: matplotlib cannot be used, or has no image format of the suffix.
        ResultError: The file cannot be written.
    """
    check_chart(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.5 * len(measurements)), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{entry.name} ({entry.dtype}, batch {entry.batch_size})" for entry in measurements]
    left = [0.0] * len(measurements)
    for stage in dict.fromkeys(stage for entry in measurements for stage in entry.stages):
        widths = [entry.stages[stage].median if stage in entry.stages else 0.0 for entry in measurements]
        axes.barh(labels, widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel="milliseconds per image")
    axes.invert_yaxis()
    axes.legend(ncol=3, fontsize="small")
    try:
        return write_whole(path, lambda staged: figure.savefig(staged, dpi=110))
    except OSError as error:
        raise ResultError(f"The chart {quoted(path, 200)} cannot be written: {error}.") from error
