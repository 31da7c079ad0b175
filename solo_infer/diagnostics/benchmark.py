"""How fast a model is on this machine: stage by stage, warmed up, synchronized, with what it was measured on.

    measured = measure(SOLO.from_pretrained("decoupled_r50_3x"), "street.jpg", runs=20)
    print(format_table([measured]))

Timings start from the decoded image and end with the ``Result``.
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
from solo_infer.data.prefetch import PrefetchedImage
from solo_infer.data.sources import ImageSource
from solo_infer.errors import ConfigError
from solo_infer.inference.preprocess import plan
from solo_infer.ops import dispatch
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.runtime.device import fast_paths
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter

STAGES = ("preprocess", "backbone", "pyramid", "classes", "masks", "post")


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds of several runs.

    Attributes:
        median: Of the runs.
        p10: A tenth of the runs was at least as fast.
        p90: A tenth of the runs was at least as slow.
    """

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Measurement:
    """One model on one image.

    Attributes:
        name: Of what was measured.
        device: Where.
        dtype: What the network computed in.
        threads: Of torch on the CPU.
        batch_size: Images handed over together, all the same.
        runs: Of such batches, after the warm-up.
        image: Height and width in pixels.
        input: Height and width of the network's input.
        candidates: (cell or anchor, class) pairs above the score threshold, per image; None if unknown.
        instances: Found per image.
        stages: Milliseconds an image by stage, each synchronized. On CUDA they run without
            graphs, so that they add up to more than the total.
        total: Milliseconds an image from the decoded array to the result, synchronized at its end only.
        images_per_second: Of the median.
        peak_memory: MiB: on CUDA of tensors during the runs, on the CPU of the process so far; None where the
            system does not tell.
        environment: Versions and names.
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
        model: Where it lies and in its dtype.
        source: The image, as for a call.
        name: What to call it.
        batch_size: Times the image is handed over at once.
        runs: Timed runs, each of a whole batch: so many for the total, and so many again for the stages.
        warmup: Runs before them that are not timed; on CUDA the second one captures the graph.

    Raises:
        ConfigError: A number is out of range.
        ImageError: The image cannot be read.
    """
    if min(batch_size, runs) < 1 or warmup < 0:
        raise ConfigError(f"batch_size={batch_size}, runs={runs}, warmup={warmup}: expected 1, 1, 0 or more.")
    loaded = images.load_image(source)
    batch = [PrefetchedImage(loaded, {})] * batch_size
    thresholds = model.config.thresholds

    def run(synchronized: bool) -> dict[str, float]:
        watch = Stopwatch(model.device)
        results = model._segment(batch, thresholds, synchronized)
        watch.mark("total")
        return {**results[0].timings, "total": watch.seconds["total"] / batch_size}

    for _ in range(warmup):
        run(synchronized=False)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    totals = [run(synchronized=False)["total"] for _ in range(runs)]
    staged = [run(synchronized=True) for _ in range(runs)]
    total = spread(totals)
    geometry = plan(loaded.pixels, model.config.preprocessing)
    return Measurement(
        name=name or repr(model),
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        batch_size=batch_size,
        runs=runs,
        image=(loaded.pixels.shape[0], loaded.pixels.shape[1]),
        input=geometry.padded,
        candidates=_count_candidates(model, batch),
        instances=len(model._segment(batch[:1], thresholds)[0]),
        stages={stage: spread([found[stage] for found in staged]) for stage in STAGES},
        total=total,
        images_per_second=1000 / total.median,
        peak_memory=peak_memory(model.device),
        environment=environment(model.device),
    )


def spread(seconds: Sequence[float]) -> Percentiles:
    """Return median and tenths of runs, in milliseconds."""
    ordered = sorted(1000 * value for value in seconds)
    last = len(ordered) - 1
    return Percentiles(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)])


@torch.no_grad()
def _count_candidates(model: Segmenter, batch: list[Any]) -> int:
    """Return how many (cell or anchor, class) pairs of the image pass the score threshold."""
    from solo_infer.inference.preprocess import prepare

    pixels, preprocessing = batch[0][0].pixels, model.config.preprocessing
    inputs = prepare(pixels, plan(pixels, preprocessing), preprocessing, model.device)[None].to(model.dtype)
    return int((model.class_scores(inputs) > model.config.thresholds.score_thr).sum())


def peak_memory(device: torch.device) -> float | None:
    """Return MiB: of the process so far on the CPU, of tensors since the last reset on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def environment(device: torch.device) -> dict[str, str]:
    """Return versions and names that a figure means nothing without."""
    import torchvision

    found = {
        "solo_infer": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        allowed = fast_paths(device)
        found["triton"] = ("all kernels" if allowed.triton else "none") + "".join(
            f", not {name} ({reason})" for name, reason in dispatch.failures().items()
        )
        found["graphs"] = "on" if allowed.graphs else "off"
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def format_table(measured: Sequence[Measurement]) -> str:
    """Return measurements as text: milliseconds an image by stage, a line each."""
    width = max(len("model"), *(len(found.name) for found in measured))
    head = f"{'model':<{width}}  batch " + "".join(f"{stage:>11}" for stage in (*STAGES, "total"))
    lines = ["milliseconds an image (median)", head + "   p10..p90      images/s  candidates  instances"]
    for found in measured:
        cells = "".join(
            f"{found.stages[stage].median:>11.1f}" if stage in found.stages else f"{'-':>11}"
            for stage in STAGES
        )
        lines.append(
            f"{found.name:<{width}}  {found.batch_size:>5} {cells}{found.total.median:>11.1f}"
            f"   {found.total.p10:.1f}..{found.total.p90:.1f}{found.images_per_second:>12.2f}"
            f"{'-' if found.candidates is None else found.candidates:>12}{found.instances:>11}"
        )
    lines += _ratio_lines(measured)
    first = measured[0]
    lines.append(
        f"{first.device}, {first.dtype}, {first.threads} threads, input {first.input[0]} x {first.input[1]}, "
        f"{first.runs} runs, peak memory {_mebibytes(first.peak_memory)}"
    )
    lines.append(", ".join(f"{name} {value}" for name, value in first.environment.items()))
    return "\n".join(lines)


def _ratio_lines(measured: Sequence[Measurement]) -> list[str]:
    """Return how many times as fast as mmdet each measurement is, where it was measured after it."""
    lines, pending = [], []
    for found in measured:
        if "mmdet" not in found.environment:
            pending.append(found)
            continue
        for ours in pending:
            times = found.total.median / ours.total.median
            lines.append(f"{ours.name} ({ours.dtype}, batch {ours.batch_size}): {times:.2f} times mmdet")
        pending = []
    return lines


def _mebibytes(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} MiB"


def plot(measured: Sequence[Measurement], path: Path) -> Path:
    """Draw the stages of measurements as stacked bars.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "A chart needs matplotlib, which is not installed: pip install 'solo-infer[train]'."
        ) from error
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(measured)), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{found.name} ({found.dtype}, batch {found.batch_size})" for found in measured]
    left = [0.0] * len(measured)
    for stage in dict.fromkeys(stage for found in measured for stage in found.stages):
        spans = [found.stages[stage].median if stage in found.stages else 0.0 for found in measured]
        axes.barh(labels, spans, left=left, label=stage)
        left = [start + span for start, span in zip(left, spans, strict=True)]
    axes.set(xlabel="milliseconds an image")
    axes.invert_yaxis()
    axes.legend(ncol=3, fontsize="small")
    return write_whole(path, lambda staged: figure.savefig(staged, dpi=110))
