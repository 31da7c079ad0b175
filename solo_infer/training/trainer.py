"""Training loop: from batches to a directory that ``from_pretrained`` loads.

It runs in one process or, under torchrun, in several that share each batch. Any source of images and targets
can drive it; see the protocol ``Batches``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from solo_infer.errors import ConfigError, TrainingError
from solo_infer.models.target import Target
from solo_infer.runtime.atomic_files import write_text
from solo_infer.runtime.device import resolve_dtype
from solo_infer.runtime.distributed import is_distributed, is_main_process, process_group
from solo_infer.runtime.progress import progress_bar
from solo_infer.segmenters.base import Segmenter
from solo_infer.training import checkpointing
from solo_infer.training.initialization import prepare_for_training
from solo_infer.training.loader import Batch
from solo_infer.training.metrics_log import EvaluationLog, MetricsLogger, plot_run
from solo_infer.training.recipe import Recipe
from solo_infer.weights.save import save_checkpoint

logger = logging.getLogger(__name__)

BEST_NAME = "best"  # directory of the model with the best evaluation so far
RECIPE_NAME = "recipe.json"

Evaluator = Callable[[Segmenter], dict[str, float]]


class Batches(Protocol):
    """Source of batches; each process gets its share of every batch."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch, equal in all processes."""

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 0) without the first ``start``.

        Each is (N, 3, H, W) float32 normalized and padded, and N targets. The same arguments must give the
        same batches, so that a resumed run repeats an uninterrupted one.
        """


def fit(
    model: Segmenter,
    batches: Batches,
    output: str | os.PathLike[str],
    recipe: Recipe,
    *,
    device: str | torch.device | None = None,
    evaluate: Evaluator | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a model and write it, the state of the run and its metrics to a directory.

    Args:
        model: Initial model, which is trained in place.
        batches: Images and targets.
        output: Directory of the run: config.json, model.safetensors (the moving average, if there is one),
            recipe.json, training.csv, training.png, training_state.safetensors; with ``evaluate`` also
            evaluation.csv and ``best``, the model with the best evaluation.
        recipe: Settings of the run.
        device: As in ``SOLO.from_pretrained``; under torchrun each process uses its own GPU.
        evaluate: Function that is called with the model in eval mode after every ``recipe.evaluate_every``
            epochs, in all processes. The metrics of the main process are recorded; the first of them decides
            which model is best.
        resume: Whether to continue from the state in ``output``, if there is one.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        The directory.

    Raises:
        TrainingError: A loss is not finite, or the state in ``output`` belongs to another recipe.
        CacheError: The directory cannot be written.
    """
    folder = Path(output)
    with process_group(device) as process_device:
        run = _TrainingRun(model, batches, folder, recipe, process_device)
        if resume and (folder / checkpointing.STATE_NAME).is_file():
            run.restore()
        try:
            run.train(evaluate, progress)
        except KeyboardInterrupt:
            run.save()
            logger.warning("Interrupted after iteration %d: resume continues from there.", run.iteration)
            raise
    return folder


class _TrainingRun:
    """Network, optimizer, moving average and iteration of a training run."""

    def __init__(
        self, model: Segmenter, batches: Batches, output: Path, recipe: Recipe, device: torch.device
    ) -> None:
        if len(batches) == 0:
            raise ConfigError(
                "No batch of training images: expected at least as many images as the batch size."
            )
        self.model, self.batches, self.output = model, batches, output
        self.recipe, self.device = recipe, device
        network = prepare_for_training(model.network.to(device), recipe)
        self.network = network.to(memory_format=torch.channels_last)  # a quarter faster, also on CPUs
        self.train_network: nn.Module = self.network
        if is_distributed():
            self.train_network = DistributedDataParallel(self.network)
        trainable = [item for item in self.network.named_parameters() if item[1].requires_grad]
        self.parameters = [parameter for _, parameter in trainable]
        self.optimizer, self.parameter_names = _make_optimizer(trainable, recipe)
        # Not torch.amp.GradScaler: it needs float64 on the device, which CoreX lacks.
        self.scaler = checkpointing.LossScaler(recipe.autocast == "float16")
        self.average: checkpointing.WeightAverage | None = None
        if recipe.ema_decay:
            self.average = checkpointing.WeightAverage(self.network.state_dict(), recipe.ema_decay)
        self.iteration = 0
        # Vanishing gradients are full of denormal numbers, which slow CPUs down many times.
        torch.set_flush_denormal(True)

    @property
    def total(self) -> int:
        """Number of iterations of the whole run."""
        return min(self.recipe.epochs, self.recipe.last_epoch or self.recipe.epochs) * len(self.batches)

    def train(self, evaluate: Evaluator | None, progress: bool) -> None:
        """Run the remaining iterations of all epochs."""
        metrics = None
        if is_main_process():
            self.output.mkdir(parents=True, exist_ok=True)
            write_text(self.output / RECIPE_NAME, self.recipe.to_json())
            metrics = MetricsLogger(self.output, self.iteration, self.total, self.network.losses)
            self.evaluations = EvaluationLog(self.output, self.iteration)
        is_shown = progress and is_main_process()
        with progress_bar(total=self.total, initial=self.iteration, unit="it", enabled=is_shown) as bar:
            while self.iteration < self.total:
                self._run_epoch(self.iteration // len(self.batches), metrics, bar)
                self.save()
                if evaluate and self._is_evaluation_due():
                    self._evaluate(evaluate)
                if metrics:
                    plot_run(self.output)
        if metrics:
            metrics.close()

    def _is_evaluation_due(self) -> bool:
        """Return whether to evaluate after the epoch that has just ended."""
        epochs = self.iteration // len(self.batches)
        return epochs % self.recipe.evaluate_every == 0 or self.iteration == self.total

    def _run_epoch(self, epoch: int, metrics: MetricsLogger | None, bar: Any) -> None:
        per_epoch = len(self.batches)
        start = time.perf_counter()
        for images, targets in self.batches.epoch(epoch, self.iteration - epoch * per_epoch):
            loaded = time.perf_counter()
            lr = self.recipe.lr_at(self.iteration, per_epoch)
            losses = self._step(images, targets, lr)
            self.iteration += 1
            end = time.perf_counter()
            bar.update()
            if metrics:
                metrics.add({**losses, "time": end - start, "data_time": loaded - start})
                if self.iteration % self.recipe.log_every == 0 or self.iteration % per_epoch == 0:
                    metrics.flush(epoch + 1, self.iteration, lr)
            if self.iteration % self.recipe.save_every == 0:
                self.save()
            start = time.perf_counter()

    def _step(self, images: Tensor, targets: list[Target], lr: float) -> dict[str, float]:
        """Update the weights with one batch, and return its losses and the norm of the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_mult"]
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        targets = [_to_device(target, self.device) for target in targets]
        with self._autocast():
            losses = self.train_network(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        values = {name: _mean_over_processes(value) for name, value in [*losses.items(), ("loss", loss)]}
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"The loss is {values['loss']} at iteration {self.iteration + 1} (lr {lr:.3g}): lower the "
                "learning rate, clip the gradient, or use float32. The last checkpoint is intact."
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.recipe.grad_clip_norm or math.inf))
        self.scaler.step(self.optimizer, norm)
        if self.average:
            self.average.update(self.network.state_dict(), self.iteration + 1)
        return {**values, "grad_norm": norm}

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the network computes in the dtype of the recipe."""
        if self.recipe.autocast == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=resolve_dtype(self.recipe.autocast))

    def _evaluate(self, evaluate: Evaluator) -> None:
        """Evaluate the weights that are saved; all processes take part."""
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        try:
            if self.average:
                self.network.load_state_dict(self.average.weights)
            self.network.eval()
            metrics = evaluate(self.model)
        finally:
            self.network.load_state_dict(weights)
            self.network.train()
        if is_main_process():
            self.evaluations.add(self.iteration // len(self.batches), self.iteration, metrics)
            if self.evaluations.is_best:
                best = self.average.weights if self.average else self.network.state_dict()
                save_checkpoint(self.model.config, best, self.output / BEST_NAME)

    def save(self) -> None:
        """Write the model and the state of the run, each completely or not at all."""
        if not is_main_process():
            return
        self.output.mkdir(parents=True, exist_ok=True)
        weights = self.network.state_dict()
        average = self.average.weights if self.average else None
        save_checkpoint(self.model.config, average or weights, self.output)
        facts = {
            "iteration": self.iteration,
            "per_epoch": len(self.batches),
            "recipe": dataclasses.asdict(self.recipe),
            "scaler": self.scaler.state_dict(),
        }
        path = self.output / checkpointing.STATE_NAME
        checkpointing.save_state(path, weights, average, self.optimizer, self.parameter_names, facts)

    def restore(self) -> None:
        """Load the saved state."""
        groups, facts = checkpointing.load_state(self.output / checkpointing.STATE_NAME)
        saved = Recipe.from_dict(facts["recipe"])
        if saved.resume_key() != self.recipe.resume_key() or facts["per_epoch"] != len(self.batches):
            raise TrainingError(
                f"{self.output} holds a run of another recipe or data set ({saved}, {facts['per_epoch']} "
                "batches per epoch): resume with the same ones, or choose another directory."
            )
        self.network.load_state_dict(groups["weights"])
        if self.average:
            self.average.weights = {name: value.to(self.device) for name, value in groups["average"].items()}
        checkpointing.restore_optimizer(
            self.optimizer, self.parameter_names, groups["optimizer"], facts["optimizer_numbers"]
        )
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        self.iteration = facts["iteration"]


def _make_optimizer(
    parameters: Sequence[tuple[str, nn.Parameter]], recipe: Recipe
) -> tuple[torch.optim.Optimizer, list[str]]:
    """Return the optimizer of named parameters, and their names in its order.

    The entry "lr_mult" of a parameter group is its multiplier of the learning rate.
    """
    members: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        members.setdefault(recipe.lr_mult_of(name), []).append((name, parameter))
    groups: list[dict[str, Any]] = [
        {"params": [parameter for _, parameter in group], "lr_mult": lr_mult}
        for lr_mult, group in members.items()
    ]
    names = [name for group in members.values() for name, _ in group]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay), names
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay), names


def _to_device(target: Target, device: torch.device) -> Target:
    moved = {name: value.to(device, non_blocking=True) for name, value in target.items()}  # type: ignore[attr-defined]
    return moved  # type: ignore[return-value]


def _mean_over_processes(value: Tensor) -> float:
    value = value.detach()
    if is_distributed():
        value = value.clone()
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return float(value)
