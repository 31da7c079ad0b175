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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from solo_infer.errors import CheckpointError, ConfigError, SoloInferError, TrainingError
from solo_infer.models.target import Target
from solo_infer.runtime.atomic_files import write_text
from solo_infer.runtime.device import resolve_dtype
from solo_infer.runtime.distributed import is_distributed, is_main_process, process_group
from solo_infer.runtime.messages import describe_error
from solo_infer.runtime.progress import progress_bar
from solo_infer.segmenters.base import Segmenter
from solo_infer.training import checkpointing
from solo_infer.training.initialization import class_layers, prepare_for_training
from solo_infer.training.loader import Batch
from solo_infer.training.metrics_log import EvaluationLog, MetricsLogger, describe_losses, is_evaluated
from solo_infer.training.recipe import Recipe
from solo_infer.training.run_start import (
    data_differences,
    model_differences,
    recipe_differences,
    summarize,
)
from solo_infer.training.torch_state import deferred_interrupt, flushed_denormals, neutral_torch_state
from solo_infer.training.worker_processes import worker_errors
from solo_infer.weights.save import save_checkpoint

logger = logging.getLogger(__name__)

BEST_NAME = "best"  # directory of the model with the best evaluation so far
RECIPE_NAME = "recipe.json"

Evaluator = Callable[[Segmenter], dict[str, float]]


class Batches(Protocol):
    """Source of batches; each process gets its share of every batch.

    A method ``fingerprint()``, if there is one, returns JSON-ready values that identify the data set. A run
    is resumed only with the same ones.
    """

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
        TrainingError: A loss is not finite, the state in ``output`` belongs to another recipe, model or data
            set, or a process that loads images died.
        CheckpointError: A file of the run in ``output`` is damaged.
        CacheError: The directory cannot be written.
    """
    folder = Path(output)
    with process_group(device) as process_device, neutral_torch_state(), flushed_denormals(), worker_errors():
        run = _TrainingRun(model, batches, folder, recipe, process_device)
        if resume and (folder / checkpointing.STATE_NAME).is_file():
            run.restore()
        try:
            run.train(evaluate, progress)
        except KeyboardInterrupt:
            run.save_interrupted()
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
        self.fingerprint: dict[str, Any] = getattr(batches, "fingerprint", dict)()
        network = prepare_for_training(model.network.to(device), recipe)
        self.network = network.to(memory_format=torch.channels_last)  # a quarter faster, also on CPUs
        self.train_network: nn.Module = self.network
        if is_distributed():
            self.train_network = DistributedDataParallel(self.network)
        trainable = [item for item in self.network.named_parameters() if item[1].requires_grad]
        self.parameters = [parameter for _, parameter in trainable]
        outputs = class_layers(self.network, recipe)
        self.optimizer, self.parameter_names = _make_optimizer(trainable, recipe, outputs)
        # Not torch.amp.GradScaler: it needs float64 on the device, which CoreX lacks.
        self.scaler = checkpointing.LossScaler(recipe.autocast == "float16")
        self.average: checkpointing.WeightAverage | None = None
        if recipe.ema_decay:
            self.average = checkpointing.WeightAverage(self.network.state_dict(), recipe.ema_decay)
        self.iteration = 0
        self.metrics: MetricsLogger | None = None
        self._running_means: dict[str, Any] = {}  # of the metrics since the last row, in a resumed run
        self._saved_iteration = -1
        self._is_in_step = False  # the weights may be those of half a step

    @property
    def total(self) -> int:
        """Number of iterations of the whole run."""
        return min(self.recipe.epochs, self.recipe.last_epoch or self.recipe.epochs) * len(self.batches)

    def train(self, evaluate: Evaluator | None, progress: bool) -> None:
        """Run the remaining iterations of all epochs."""
        if is_main_process():
            with checkpointing.written(self.output):
                self.output.mkdir(parents=True, exist_ok=True)
                write_text(self.output / RECIPE_NAME, self.recipe.to_json())
            self.metrics = MetricsLogger(
                self.output, self.iteration, self.total, self.network.losses, self._running_means
            )
            self.evaluations = EvaluationLog(self.output, self.iteration, self.total)
        is_shown = progress and is_main_process()
        with progress_bar(total=self.total, initial=self.iteration, unit="it", enabled=is_shown) as bar:
            self._finish_epoch(evaluate)  # of a resumed run that ended before its evaluation
            while self.iteration < self.total:
                self._run_epoch(self.iteration // len(self.batches), bar)
                self.save()
                self._finish_epoch(evaluate)
        if self.metrics:
            self.metrics.close()

    def _finish_epoch(self, evaluate: Evaluator | None) -> None:
        """Evaluate and plot after the last iteration of an epoch, unless it is done already."""
        if self.iteration == 0 or self.iteration % len(self.batches):
            return
        if evaluate and self._is_evaluation_due():
            self._evaluate(evaluate)
        if self.metrics:
            self.metrics.plot()

    def _is_evaluation_due(self) -> bool:
        """Return whether to evaluate after the epoch that has just ended."""
        epochs = self.iteration // len(self.batches)
        is_last = self.iteration == self.total
        is_due = epochs % self.recipe.evaluate_every == 0 or is_last
        return is_due and not is_evaluated(self.output, self.iteration)

    def _run_epoch(self, epoch: int, bar: Any) -> None:
        per_epoch, metrics = len(self.batches), self.metrics
        start = time.perf_counter()
        for images, targets in self.batches.epoch(epoch, self.iteration - epoch * per_epoch):
            loaded = time.perf_counter()
            lr = self.recipe.lr_at(self.iteration, per_epoch)
            with deferred_interrupt():  # no step is saved by half, or counted without being made
                self._is_in_step = True
                losses = self._step(images, targets, lr)
                self.iteration += 1
                self._is_in_step = False
                end = time.perf_counter()
                bar.update()
                if metrics:
                    bar.set_postfix_str(
                        ", ".join(filter(None, (describe_losses(losses), self.evaluations.latest)))
                    )
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

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        """Let the network compute in the dtype of the recipe."""
        if self.recipe.autocast == "float32":
            yield
            return
        try:
            with torch.autocast(self.device.type, dtype=resolve_dtype(self.recipe.autocast)):
                yield
        finally:
            # Inside another autocast context, an exit keeps the cast weights, which the step changes.
            torch.clear_autocast_cache()

    def _evaluate(self, evaluate: Evaluator) -> None:
        """Evaluate the weights that are saved; all processes take part."""
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        try:
            if self.average:
                self.network.load_state_dict(self.average.weights)
            self.network.eval()
            metrics = evaluate(self.model)
        finally:
            with deferred_interrupt():
                self.network.load_state_dict(weights)
                self.network.train()
        if is_main_process():
            # The row comes last: a run that ends before it evaluates again when it is resumed.
            if self.evaluations.is_best(metrics):
                best = self.average.weights if self.average else self.network.state_dict()
                save_checkpoint(self.model.config, best, self.output / BEST_NAME)
            self.evaluations.add(self.iteration // len(self.batches), self.iteration, metrics)

    def save(self) -> None:
        """Write the model and the state of the run, each completely or not at all."""
        if is_main_process():
            self._write_state()
        self._saved_iteration = self.iteration

    def _write_state(self) -> None:
        with checkpointing.written(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
        weights = self.network.state_dict()
        average = self.average.weights if self.average else None
        save_checkpoint(self.model.config, average or weights, self.output)
        facts = {
            "iteration": self.iteration,
            "per_epoch": len(self.batches),
            "recipe": dataclasses.asdict(self.recipe),
            "model": self.model.config.to_dict(),
            "data": self.fingerprint,
            "scaler": self.scaler.state_dict(),
            "running_means": self.metrics.state_dict() if self.metrics else {},
        }
        path = self.output / checkpointing.STATE_NAME
        checkpointing.save_state(path, weights, average, self.optimizer, self.parameter_names, facts)

    def save_interrupted(self) -> None:
        """Write the state after Ctrl-C, unless the file has it already or a step is half done."""
        if not self._is_in_step and self._saved_iteration != self.iteration:
            self.save()
        logger.warning("Interrupted: resume continues after iteration %d.", max(self._saved_iteration, 0))

    def restore(self) -> None:
        """Load the saved state."""
        path = self.output / checkpointing.STATE_NAME
        groups, facts = checkpointing.load_state(path)
        try:
            self._require_same_start(facts)
            self.network.load_state_dict(groups["weights"])
            if self.average:
                average = groups["average"]
                self.average.weights = {name: average[name].to(self.device) for name in groups["weights"]}
            checkpointing.restore_optimizer(
                self.optimizer, self.parameter_names, groups["optimizer"], facts["optimizer_numbers"]
            )
            if facts["scaler"]:
                self.scaler.load_state_dict(facts["scaler"])
            means = facts.get("running_means", {})
            self._running_means = {
                "sums": {name: float(value) for name, value in means.get("sums", {}).items()},
                "count": int(means.get("count", 0)),
            }
            self.iteration = self._saved_iteration = facts["iteration"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, SoloInferError):
                raise
            raise CheckpointError(
                f"{path} does not fit the model ({describe_error(error)}): it is damaged or of another "
                "model. Remove it to start the run again, or choose another directory."
            ) from error

    def _require_same_start(self, facts: Mapping[str, Any]) -> None:
        """Check that the saved run had the same recipe, model and data set."""
        differences = recipe_differences(Recipe.from_dict(facts["recipe"]), self.recipe)
        if "model" in facts:
            differences += model_differences(facts["model"], self.model.config)
            if facts["data"] and self.fingerprint:
                differences += data_differences(facts["data"], self.fingerprint)
        else:
            logger.warning(
                "%s was saved by an earlier version: its classes, architecture and data set cannot be "
                "compared with the present ones.",
                self.output / checkpointing.STATE_NAME,
            )
        if facts["per_epoch"] != len(self.batches):
            differences.append(f"batches per epoch {facts['per_epoch']} -> {len(self.batches)}")
        if differences:
            raise TrainingError(
                f"{self.output} holds a run of another recipe, model or data set: {summarize(differences)}. "
                "Resume with the same ones, or choose another directory."
            )
        iteration = facts["iteration"]
        if not (isinstance(iteration, int) and 0 <= iteration <= self.total):
            raise ValueError(f"iteration {iteration} of {self.total}")


def _make_optimizer(
    parameters: Sequence[tuple[str, nn.Parameter]], recipe: Recipe, outputs: Sequence[str] = ()
) -> tuple[torch.optim.Optimizer, list[str]]:
    """Return the optimizer of named parameters, and their names in its order.

    ``outputs`` are the names of the layers that output class scores. The entry "lr_mult" of a parameter group
    is its multiplier of the learning rate.
    """
    members: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        members.setdefault(recipe.lr_mult_of(name, outputs), []).append((name, parameter))
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
