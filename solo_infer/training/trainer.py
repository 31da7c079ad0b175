"""The training loop: batches in, a directory that ``from_pretrained`` takes out.

Runs in one process or, under torchrun, in several that share each batch. What it needs of the data is
small (``Batches``), so that any source of images and targets can drive it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from solo_infer.errors import ConfigError, TrainingError
from solo_infer.models.solo.objective import Target
from solo_infer.runtime.atomic_files import write_text
from solo_infer.runtime.device import resolve_dtype
from solo_infer.runtime.distributed import is_distributed, is_main_process, process_group
from solo_infer.segmenters.base import Segmenter
from solo_infer.training import checkpointing
from solo_infer.training.initialization import prepare_for_training
from solo_infer.training.loss_scale import LossScaler
from solo_infer.training.metrics_log import Record, Scores, plot_run
from solo_infer.training.recipe import Recipe
from solo_infer.weights.save import save_checkpoint

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, list[Target]]
BEST_NAME = "best"  # the directory of the model that scored highest so far


class Batches(Protocol):
    """Where training images come from: this process's part of each batch."""

    def __len__(self) -> int:
        """Return the batches of an epoch, equal in all processes."""

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 0) after the first ``start``.

        Each is (N, 3, H, W) float32 normalized and padded, and N targets. The same arguments must give the
        same batches, so that a resumed run repeats an uninterrupted one.
        """


def fit(
    model: Segmenter,
    batches: Batches,
    output: Path,
    recipe: Recipe,
    *,
    device: str | torch.device | None = None,
    evaluate: Callable[[Segmenter], dict[str, float]] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train a model and write it, the state of the run and its records to a directory.

    Args:
        model: Where to start; it is trained in place.
        batches: Images and targets.
        output: The directory: config.json, model.safetensors (the moving average, if there is one),
            recipe.json, training.csv, training.png, training_state.safetensors; with ``evaluate`` also
            evaluation.csv and ``best``, the model that scored highest.
        recipe: How to train.
        device: As in ``SOLO.from_pretrained``; under torchrun each process's own card.
        evaluate: Called with the model in eval mode after every ``recipe.evaluate_every`` epochs, in all
            processes; the first one's metrics are recorded, and the first of them decides what is best.
        resume: Go on from the state in ``output``, if there is one.
        progress: Show a progress bar, on a terminal.

    Returns:
        The directory.

    Raises:
        TrainingError: A loss is not finite, or the state in ``output`` is of another recipe.
        CacheError: The directory cannot be written.
    """
    with process_group(device) as where:
        run = _Run(model, batches, output, recipe, where)
        if resume and (output / checkpointing.STATE_NAME).is_file():
            run.restore()
        try:
            run.train(evaluate, progress)
        except KeyboardInterrupt:
            run.save()
            logger.warning("Interrupted after iteration %d: resume goes on from there.", run.iteration)
            raise
    return output


class _Run:
    """A training run: its network, optimizer, average and place."""

    def __init__(
        self, model: Segmenter, batches: Batches, output: Path, recipe: Recipe, device: torch.device
    ) -> None:
        self.model, self.batches, self.output, self.recipe, self.device = (
            model,
            batches,
            output,
            recipe,
            device,
        )
        if len(batches) == 0:
            raise ConfigError("No batch of training images: fewer images than the batch size?")
        network = prepare_for_training(model.network.to(device), recipe.freeze_stem)
        self.network = network.to(memory_format=torch.channels_last)  # a quarter faster on CPUs too
        self.trained: nn.Module = self.network
        if is_distributed():
            self.trained = DistributedDataParallel(self.network)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.network, recipe)
        self.scaler = LossScaler(recipe.autocast == "float16")
        weights = self.network.state_dict()
        self.average = checkpointing.WeightAverage(weights, recipe.ema) if recipe.ema else None
        self.iteration = 0
        # Denormal numbers, which vanishing gradients are full of, make CPUs many times slower.
        torch.set_flush_denormal(True)

    @property
    def total(self) -> int:
        """Iterations of the whole run."""
        return min(self.recipe.epochs, self.recipe.last_epoch or self.recipe.epochs) * len(self.batches)

    def train(self, evaluate: Callable[[Segmenter], dict[str, float]] | None, progress: bool) -> None:
        """Run what is left of all epochs."""
        from tqdm import tqdm

        record = None
        if is_main_process():
            self.output.mkdir(parents=True, exist_ok=True)
            write_text(self.output / "recipe.json", self.recipe.to_json())
            record = Record(self.output, self.iteration, self.total, self.network.losses)
            self.scores = Scores(self.output, self.iteration)
        shown = None if progress and is_main_process() else True
        with tqdm(total=self.total, initial=self.iteration, unit="it", disable=shown) as bar:
            while self.iteration < self.total:
                self._epoch(self.iteration // len(self.batches), record, bar)
                self.save()
                if evaluate and self._is_due():
                    self._evaluate(evaluate)
                if record:
                    plot_run(self.output)
        if record:
            record.close()

    def _is_due(self) -> bool:
        """Return whether the epoch that has just ended is one to evaluate after."""
        epochs = self.iteration // len(self.batches)
        return epochs % self.recipe.evaluate_every == 0 or self.iteration == self.total

    def _epoch(self, epoch: int, record: Record | None, bar: Any) -> None:
        per_epoch = len(self.batches)
        mark = time.perf_counter()
        for images, targets in self.batches.epoch(epoch, self.iteration - epoch * per_epoch):
            loaded = time.perf_counter()
            lr = self.recipe.lr_at(self.iteration, per_epoch)
            losses = self._step(images, targets, lr)
            self.iteration += 1
            now = time.perf_counter()
            bar.update()
            if record:
                record.add({**losses, "time": now - mark, "data_time": loaded - mark})
                if self.iteration % self.recipe.log_every == 0 or self.iteration % per_epoch == 0:
                    record.flush(epoch + 1, self.iteration, lr)
            if self.iteration % self.recipe.save_every == 0:
                self.save()
            mark = time.perf_counter()

    def _step(self, images: Tensor, targets: list[Target], lr: float) -> dict[str, float]:
        """Change the weights by one batch and return its losses and the norm of its gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        targets = [_to(target, self.device) for target in targets]
        with self._autocast():
            losses = self.trained(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        values = {name: _mean_over_processes(value) for name, value in [*losses.items(), ("loss", loss)]}
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"The loss is {values['loss']} at iteration {self.iteration + 1} (lr {lr:.3g}): lower the "
                "learning rate, clip the gradient, or use float32. The last checkpoint is whole."
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip or math.inf))
        self.scaler.step(self.optimizer, norm)
        if self.average:
            self.average.update(self.network.state_dict(), self.iteration + 1)
        return {**values, "grad_norm": norm}

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the network computes in the recipe's dtype."""
        if self.recipe.autocast == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=resolve_dtype(self.recipe.autocast))

    def _evaluate(self, evaluate: Callable[[Segmenter], dict[str, float]]) -> None:
        """Evaluate the weights that are saved; all processes take part."""
        own = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        if self.average:
            self.network.load_state_dict(self.average.weights)
        self.network.eval()
        try:
            metrics = evaluate(self.model)
        finally:
            self.network.load_state_dict(own)
            self.network.train()
        if is_main_process():
            self.scores.add(self.iteration // len(self.batches), self.iteration, metrics)
            if self.scores.last_is_best:
                weights = self.average.weights if self.average else self.network.state_dict()
                save_checkpoint(self.model.config, weights, self.output / BEST_NAME)

    def save(self) -> None:
        """Write the state of the run and the model, each whole."""
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
        checkpointing.save_state(
            self.output / checkpointing.STATE_NAME, weights, average, self.optimizer, facts
        )

    def restore(self) -> None:
        """Go back to the saved state."""
        groups, facts = checkpointing.load_state(self.output / checkpointing.STATE_NAME)
        before = Recipe.from_dict(facts["recipe"])
        if before.essence() != self.recipe.essence() or facts["per_epoch"] != len(self.batches):
            raise TrainingError(
                f"{self.output} holds a run of another recipe or data set ({before}, {facts['per_epoch']} "
                "batches an epoch): resume with the same one, or choose another directory."
            )
        self.network.load_state_dict(groups["weights"])
        if self.average:
            self.average.weights = {name: value.to(self.device) for name, value in groups["average"].items()}
        checkpointing.restore_optimizer(self.optimizer, groups["optimizer"], facts["optimizer_numbers"])
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        self.iteration = facts["iteration"]


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer; each group's "share" is its part of the learning rate."""
    body: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (body if name.startswith("backbone.") else rest).append(parameter)
    groups = [{"params": body, "share": recipe.body_lr}, {"params": rest, "share": 1.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _to(target: Target, device: torch.device) -> Target:
    moved = {name: value.to(device, non_blocking=True) for name, value in target.items()}  # type: ignore[attr-defined]
    return moved  # type: ignore[return-value]


def _mean_over_processes(value: Tensor) -> float:
    value = value.detach()
    if is_distributed():
        value = value.clone()
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return float(value)
