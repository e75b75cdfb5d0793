"""The training loop: steps, validation, checkpoints, health."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlpconv.data import Split
from mlpconv.data.balance import drawn_labels
from mlpconv.data.sampler import Batch, prefetch
from mlpconv.errors import Interrupted, NonFiniteError
from mlpconv.models.base import Network
from mlpconv.text import option, resume_hint
from mlpconv.training import checkpoint, health
from mlpconv.training.freeze import freeze, train_mode
from mlpconv.training.progress import EpochMetrics, Progress
from mlpconv.training.recipe import Recipe
from mlpconv.training.schedule import lr_factor
from mlpconv.training.selection import is_kept
from mlpconv.training.state import State
from mlpconv.training.step import BatchLoader, Logits, Outcome, autocast, forward_pass, logits_of
from mlpconv.training.step_engine import Mode, StepEngine
from mlpconv.training.stop import StopRequest

__all__ = ["Trainer"]

CHECK_EVERY = {"cpu": 1, "cuda": 50}  # steps between checks of the loss: a check synchronises the GPU
MAX_REPAIRS = 8
SLOW_START = 150  # steps before a chance-level loss counts as stuck
RECOVERY = 30  # warm-up steps after a repair
EVAL_BATCH = 256


class Trainer:
    """Run the steps of a recipe on a State.

    `keep` is called with every network to keep and its metrics, `record` with the history after every epoch.
    """

    def __init__(
        self,
        state: State,
        loader: BatchLoader,
        validation: Split | None,
        recipe: Recipe,
        folder: Path,
        keep: Callable[[Network, EpochMetrics], None],
        record: Callable[[list[EpochMetrics]], None],
        progress: Progress,
        engine: Mode = "eager",
    ) -> None:
        self.state, self.loader, self.validation, self.recipe = state, loader, validation, recipe
        self.folder, self.keep, self.record, self.progress = folder, keep, record, progress
        self.logits: Logits = logits_of if loader.frozen is None else loader.frozen.logits
        forward = forward_pass if loader.frozen is None else loader.frozen.forward
        self.engine = StepEngine(state.model, state.optimizers, recipe, state.precision, engine, forward=forward)
        self.per_epoch = loader.sampler.steps_per_epoch
        self.steps = recipe.epochs * self.per_epoch
        self.watch = health.CollapseWatch(drawn_labels(loader.sampler, loader.labels), self.per_epoch, state.guesses)
        self.check_every = CHECK_EVERY.get(loader.device.type, 50)
        self.clock = self.epoch_clock = time.perf_counter()
        self.cpu_clock = time.process_time()
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.epoch_images = 0
        self.stop = StopRequest()

    def run(self) -> None:
        """Train to the last step; raises CollapseError, NonFiniteError, CheckpointError or Interrupted."""
        state = self.state
        train_mode(state.model, self.recipe)
        self.progress.begin(self.steps, state.step, self.recipe.epochs)
        try:
            with self.stop:
                self.finish_previous_epoch()
                for batch in self.batches():
                    self.advance(batch)
                    self.save_if_due()
                    self.stop_if_requested()
        finally:
            self.progress.end()

    def batches(self) -> Iterator[Batch]:
        """Yield the remaining batches; report how long the loop waits for each."""
        start = time.perf_counter()
        for batch in prefetch(self.loader, self.state.step, self.steps, self.loader.workers):
            self.progress.batch(time.perf_counter() - start)
            yield batch
            start = time.perf_counter()

    def finish_previous_epoch(self) -> None:
        """Complete what an earlier process left open: write metrics.csv, or validate at the end of an epoch."""
        state = self.state
        if state.history:
            self.record(state.history)
        if state.step and state.step % self.per_epoch == 0 and state.totals.any():
            self.end_epoch()

    def advance(self, batch: Batch) -> None:
        """Run one step, and update the EMA, the sums of the epoch, the health checks and the end of the epoch."""
        state, recipe = self.state, self.recipe
        state.optimizers.set_lr(self.lr(state.step))
        freeze(state.model, recipe.freeze, state.step / self.steps)
        outcome = self.run_step(batch)
        state.step += 1
        if state.ema is not None and state.step % recipe.ema_every == 0:
            state.ema.update_parameters(state.model)
        n = len(batch.labels)
        state.totals[:2] += torch.stack([outcome.loss.double() * n, outcome.correct.double()])
        state.totals[2] += n
        self.epoch_images += n
        if state.step % self.check_every == 0 or state.step % self.per_epoch == 0:
            self.check_step(outcome, batch)
        if state.step % self.per_epoch == 0:
            self.check_epoch(batch)
            self.end_epoch()

    def run_step(self, batch: Batch) -> Outcome:
        """Update the weights once."""
        return self.engine(batch, self.state.step)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step; after a repair it is lower, with a warm-up."""
        state = self.state
        factor = lr_factor(self.recipe, step, self.steps, self.per_epoch) * state.lr_factor
        if state.repaired_at is not None:
            factor *= min(1.0, max(1, step - state.repaired_at + 1) / RECOVERY)
        return self.recipe.lr * factor

    def check_step(self, outcome: Outcome, batch: Batch) -> None:
        """Check that the loss is finite and that the network has not collapsed."""
        state, loss = self.state, float(outcome.loss)
        if not math.isfinite(loss):
            raise self.non_finite_error(f"the loss became {loss}")
        total, correct, images = state.totals.tolist()
        self.progress.step(state.step, total / images, correct / images, self.epoch_images)
        if self.watch.collapsed(loss, self.steps_since_check(), state.model, batch.images, self.logits):
            if self.recipe.on_collapse == "stop" or state.repairs >= MAX_REPAIRS:
                raise health.collapse_error(loss, state.model.num_classes, state.step)
            repeated = state.repaired_at is not None and state.step - state.repaired_at < 2 * RECOVERY
            self.repair("the logits of all images are the same", batch.images, all_channels=repeated)
        state.guesses = self.watch.count

    def check_epoch(self, batch: Batch) -> None:
        """Warn if an epoch has learned nothing, or repair the network if the recipe says so."""
        state = self.state
        total, correct, images = state.totals.tolist()
        steps = state.step - (state.repaired_at or 0)
        if steps < SLOW_START or not self.watch.nothing_learned(total / images, correct / images):
            return
        if self.recipe.on_collapse == "repair" and state.repairs < MAX_REPAIRS:
            self.repair(f"nothing was learned in {steps} steps", batch.images, all_channels=True)
        else:
            remedies = [option("on_collapse", "repair"), option("norm", "batch"), option("init", "he")]
            self.progress.warn(
                f"step {state.step}: the loss of this epoch ({total / images:.4f}) is still at chance level. If it "
                f"stays there, retrain with {remedies[0]}, {remedies[1]} or {remedies[2]}."
            )

    def steps_since_check(self) -> int:
        """Return the number of steps since the previous check, from the step number alone."""
        previous = self.state.step - 1
        return self.state.step - max(previous - previous % self.check_every, previous - previous % self.per_epoch)

    def repair(self, reason: str, images: Tensor, all_channels: bool) -> None:
        """Reinitialise the dead channels, or all, and continue at half the learning rate."""
        state = self.state
        count = health.repair(state.model, images, self.recipe.seed, state.step, all_channels=all_channels)
        state.optimizers.reset()
        self.engine.reset()
        state.repairs, state.repaired_at = state.repairs + 1, state.step
        state.lr_factor *= 0.5
        if state.ema is not None:
            state.ema.module.load_state_dict(state.model.state_dict())
        which = "all" if all_channels else "dead"
        self.progress.warn(
            f"step {state.step}: training collapsed (chance-level loss; {reason}); reinitialised {count} channels "
            f"({which}) and halved the learning rate."
        )

    def end_epoch(self) -> None:
        """Validate, record the metrics, and keep the network if it is about as good as the best so far."""
        state, recipe = self.state, self.recipe
        if not state.finite():
            raise self.non_finite_error("a weight became NaN or infinite")
        total, correct, images = state.totals.tolist()
        speed = self.images_per_second(images)
        row: EpochMetrics = {"epoch": state.step // self.per_epoch, "step": state.step}
        row |= {
            "train_loss": total / images,
            "train_accuracy": correct / images,
            "val_loss": None,
            "val_accuracy": None,
        }
        last = state.step == self.steps
        if self.validation is not None and (last or row["epoch"] % recipe.eval_every == 0):
            row["val_loss"], row["val_accuracy"] = self.validate(self.validation)
            if not math.isfinite(row["val_loss"]):
                raise self.non_finite_error(f"the validation loss became {row['val_loss']}")
        self.update_clocks()
        row |= {"lr": self.lr(state.step - 1), "images_per_second": round(speed, 1)}
        row |= {"seconds": round(state.seconds, 3), "cpu_seconds": round(state.cpu_seconds, 3)}
        state.totals.zero_()
        state.history.append(row)
        if self.is_kept(row):
            self.keep(state.eval_model, row)
        self.save()
        self.record(state.history)
        self.progress.epoch(row, recipe.epochs)
        self.epoch_clock, self.epoch_images = time.perf_counter(), 0

    def images_per_second(self, images: float) -> float:
        """Return the training throughput of this epoch; if an earlier process ran it, from the seconds of the run."""
        if self.epoch_images:
            return self.epoch_images / (time.perf_counter() - self.epoch_clock)
        start = self.state.history[-1]["seconds"] if self.state.history else 0.0
        return images / max(self.state.seconds - start, 1e-3)  # the column has a resolution of 1 ms

    def is_kept(self, row: EpochMetrics) -> bool:
        """Return whether the network of the newest epoch is kept; without validation, it always is."""
        if self.validation is None:
            return True
        if row["val_accuracy"] is None:
            return False
        accuracies = [past["val_accuracy"] for past in self.state.history if past["val_accuracy"] is not None]
        return is_kept(accuracies, len(self.validation))

    def validate(self, split: Split) -> tuple[float, float]:
        """Return mean loss and accuracy of the weights to evaluate (the EMA if there is one) on a split."""
        self.state.eval_model.eval()
        with torch.inference_mode(), autocast(self.state.precision, self.loader.device):
            scores = self.scores(split)
        train_mode(self.state.model, self.recipe)
        return sum(loss for loss, _ in scores) / len(split), sum(correct for _, correct in scores) / len(split)

    def scores(self, split: Split) -> list[tuple[float, int]]:
        """Return the sum of the loss and the correct predictions of each chunk of a split."""
        scores = []
        for start in range(0, len(split), EVAL_BATCH):
            scores.append(self.score(split, start))
            self.stop_if_requested()
        return scores

    def score(self, split: Split, start: int) -> tuple[float, int]:
        """Return the sum of the loss and the correct predictions of one chunk of a split."""
        batch, device = slice(start, start + EVAL_BATCH), self.loader.device
        if self.loader.frozen is not None:
            images = self.loader.frozen.validation(batch)
        else:
            images = self.loader.preprocessing(torch.from_numpy(np.array(split.images[batch])).to(device))
        labels = torch.from_numpy(np.array(split.labels[batch])).to(device)
        logits = self.logits(self.state.eval_model, images.contiguous(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return float(loss), int((logits.argmax(1) == labels).sum())

    def update_clocks(self) -> None:
        """Update wall-clock and CPU seconds of the run."""
        now, cpu = time.perf_counter(), time.process_time()
        self.state.seconds += now - self.clock
        self.state.cpu_seconds += cpu - self.cpu_clock
        self.clock, self.cpu_clock = now, cpu

    def save(self) -> Path:
        """Write a checkpoint; raises NonFiniteError if a weight is not finite, so that good checkpoints are kept."""
        if not self.state.finite():
            raise self.non_finite_error("a weight became NaN or infinite")
        self.update_clocks()
        path = checkpoint.save(self.folder, self.state.step, *self.state.to_checkpoint())
        self.saved_at, self.saved_step = time.monotonic(), self.state.step
        return path

    def save_if_due(self) -> None:
        """Write a checkpoint within an epoch if `checkpoint_minutes` have passed since the last one."""
        if time.monotonic() - self.saved_at >= self.recipe.checkpoint_minutes * 60 and self.state.step % self.per_epoch:
            self.save()

    def stop_if_requested(self) -> None:
        """Save and raise Interrupted if a signal was received, after a step or during validation."""
        if self.stop.signal is None:
            return
        if self.saved_step != self.state.step:
            self.save()
        folder = self.folder.parent
        message = f"stopped after step {self.state.step} of {self.steps}; progress up to this step is saved."
        raise Interrupted(f"{message} {resume_hint(folder)}", self.stop.signal, folder)

    def non_finite_error(self, what: str) -> NonFiniteError:
        """Return the error for a NaN or infinite value, with remedies."""
        state = self.state
        return NonFiniteError(
            f"{what} at step {state.step} (epoch {-(-state.step // self.per_epoch)}): training has stopped; earlier "
            f"checkpoints are kept in {self.folder}. Retrain with a lower learning rate (now "
            f"lr={self.recipe.lr:g}), or with {option('clip', 1)}."
        )
