"""The training loop: steps, validation, checkpoints, health."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlpconv.data import Split
from mlpconv.data.sampler import Batch, prefetch
from mlpconv.errors import Interrupted, NonFiniteError
from mlpconv.models.base import Network
from mlpconv.text import option, resume_hint
from mlpconv.training import checkpoint, health
from mlpconv.training.freeze import freeze
from mlpconv.training.progress import EpochMetrics, Progress
from mlpconv.training.recipe import Recipe
from mlpconv.training.schedule import lr_factor
from mlpconv.training.state import State
from mlpconv.training.step import BatchLoader, Outcome, autocast, train_step
from mlpconv.training.stop import StopRequest

__all__ = ["Trainer"]

CHECK_EVERY = {"cpu": 1, "cuda": 50}  # steps between two looks at the loss: a look makes a GPU wait
MAX_REPAIRS = 8
SLOW_START = 150  # steps in which a network may learn nothing before that is called stuck
RECOVERY = 30  # steps over which the rate rises again after a repair
EVAL_BATCH = 256


class Trainer:
    """Moves a State through the steps of a recipe; tells `keep` each best network and `record` the history so far."""

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
    ) -> None:
        self.state, self.loader, self.validation, self.recipe = state, loader, validation, recipe
        self.folder, self.keep, self.record, self.progress = folder, keep, record, progress
        self.per_epoch = loader.sampler.steps_per_epoch
        self.steps = recipe.epochs * self.per_epoch
        self.watch = health.CollapseWatch(loader.labels, self.per_epoch, state.guesses)
        self.check_every = CHECK_EVERY.get(loader.device.type, 50)
        self.clock = self.epoch_clock = time.perf_counter()
        self.cpu_clock = time.process_time()
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.epoch_images = 0
        self.stop = StopRequest()

    def run(self) -> None:
        """Train to the end; raises CollapseError, NonFiniteError, CheckpointError or Interrupted."""
        state = self.state
        state.model.train()
        self.progress.begin(self.steps, state.step, self.recipe.epochs)
        try:
            with self.stop:
                self.finish_previous_epoch()
                for batch in prefetch(self.loader, state.step, self.steps, self.recipe.workers):
                    self.advance(batch)
                    self.save_if_due()
                    self.stop_if_requested()
        finally:
            self.progress.end()

    def finish_previous_epoch(self) -> None:
        """Do what an earlier process had begun when it ended: write metrics.csv, or validate at the end of an epoch."""
        state = self.state
        if state.history:
            self.record(state.history)
        if state.step and state.step % self.per_epoch == 0 and state.totals.any():
            self.end_epoch()

    def advance(self, batch: Batch) -> None:
        """One step, and what comes with it: averages, sums, health, and the end of an epoch."""
        state, recipe = self.state, self.recipe
        state.optimizers.set_lr(self.lr(state.step))
        freeze(state.model, recipe.freeze, state.step / self.steps)
        outcome = train_step(state.model, state.optimizers, batch, recipe, state.step, state.precision)
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

    def lr(self, step: int) -> float:
        """The rate of a step, lower and rising again after a repair."""
        state = self.state
        factor = lr_factor(self.recipe, step, self.steps, self.per_epoch) * state.lr_factor
        if state.repaired_at is not None:
            factor *= min(1.0, max(1, step - state.repaired_at + 1) / RECOVERY)
        return self.recipe.lr * factor

    def check_step(self, outcome: Outcome, batch: Batch) -> None:
        """See whether the loss is a number and whether the network still tells images apart."""
        state, loss = self.state, float(outcome.loss)
        if not math.isfinite(loss):
            raise self.non_finite_error(f"the loss became {loss}")
        total, correct, seen = state.totals.tolist()
        self.progress.step(state.step, total / seen, correct / seen, self.epoch_images)
        if self.watch.collapsed(loss, self.steps_since_check(), state.model, batch.images):
            if self.recipe.on_collapse == "stop" or state.repairs >= MAX_REPAIRS:
                raise health.collapse_error(loss, state.model.num_classes, state.step)
            again = state.repaired_at is not None and state.step - state.repaired_at < 2 * RECOVERY
            self.repair("every image got the same answer", batch.images, anew=again)
        state.guesses = self.watch.count

    def check_epoch(self, batch: Batch) -> None:
        """See whether an epoch taught nothing at all: a warning, or a repair where the recipe asks for repairs."""
        state = self.state
        total, correct, seen = state.totals.tolist()
        steps = state.step - (state.repaired_at or 0)
        if steps < SLOW_START or not self.watch.nothing_learned(total / seen, correct / seen):
            return
        if self.recipe.on_collapse == "repair" and state.repairs < MAX_REPAIRS:
            self.repair(f"nothing was learned in {steps} steps", batch.images, anew=True)
        else:
            cures = [option("on_collapse", "repair"), option("norm", "batch"), option("init", "he")]
            self.progress.warn(
                f"step {state.step}: the loss of this epoch ({total / seen:.4f}) is still that of guessing. If it "
                f"stays there, train again with {cures[0]}, {cures[1]} or {cures[2]}."
            )

    def steps_since_check(self) -> int:
        """The steps between this look and the one before, from the step's number alone."""
        before = self.state.step - 1
        return self.state.step - max(before - before % self.check_every, before - before % self.per_epoch)

    def repair(self, why: str, images: Tensor, anew: bool) -> None:
        """Bring the network back to life, or make it anew, and go on at half the rate."""
        state = self.state
        revived = health.repair(state.model, images, self.recipe.seed, state.step, anew=anew)
        state.optimizers.forget()
        state.repairs, state.repaired_at = state.repairs + 1, state.step
        state.lr_factor *= 0.5
        if state.ema is not None:
            state.ema.module.load_state_dict(state.model.state_dict())
        which = "all" if anew else "the dead"
        self.progress.warn(
            f"step {state.step}: training had collapsed (a loss of guessing; {why}): {which} channels, {revived} of "
            "them, were given new weights, and the rate was halved."
        )

    def end_epoch(self) -> None:
        """Validate, note the epoch, and keep the network if it is the best so far."""
        state, recipe = self.state, self.recipe
        if not state.finite():
            raise self.non_finite_error("a weight became NaN or infinite")
        total, correct, seen = state.totals.tolist()
        speed = self.images_per_second(seen)
        row: EpochMetrics = {"epoch": state.step // self.per_epoch, "step": state.step}
        row |= {"train_loss": total / seen, "train_accuracy": correct / seen, "val_loss": None, "val_accuracy": None}
        last = state.step == self.steps
        if self.validation is not None and (last or row["epoch"] % recipe.eval_every == 0):
            row["val_loss"], row["val_accuracy"] = self.validate(self.validation)
            if not math.isfinite(row["val_loss"]):
                raise self.non_finite_error(f"the validation loss became {row['val_loss']}")
        self.tick()
        row |= {"lr": self.lr(state.step - 1), "images_per_second": round(speed, 1)}
        row |= {"seconds": round(state.seconds, 3), "cpu_seconds": round(state.cpu_seconds, 3)}
        state.totals.zero_()
        state.history.append(row)
        if self.is_best(row):
            state.best = row
            self.keep(state.eval_model, row)
        self.save()
        self.record(state.history)
        self.progress.epoch(row, recipe.epochs)
        self.epoch_clock, self.epoch_images = time.perf_counter(), 0

    def images_per_second(self, seen: float) -> float:
        """The speed of this epoch's training; where an earlier process did all of it, by the run's own clock."""
        if self.epoch_images:
            return self.epoch_images / (time.perf_counter() - self.epoch_clock)
        before = self.state.history[-1]["seconds"] if self.state.history else 0.0
        return seen / max(self.state.seconds - before, 1e-3)  # the column has whole milliseconds

    def is_best(self, row: EpochMetrics) -> bool:
        """Whether no epoch before was as good; without validation the newest counts."""
        if self.validation is None:
            return True
        if row["val_accuracy"] is None:
            return False
        best = self.state.best
        return best is None or (row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"])

    def validate(self, split: Split) -> tuple[float, float]:
        """Mean loss and share of right answers of the judged weights on a split."""
        model, preprocessing, device = self.state.eval_model, self.loader.preprocessing, self.loader.device
        model.eval()
        loss, correct = 0.0, 0
        with torch.inference_mode(), autocast(self.state.precision, device):
            for start in range(0, len(split), EVAL_BATCH):
                part = slice(start, start + EVAL_BATCH)
                images = preprocessing(torch.from_numpy(np.array(split.images[part])).to(device))
                labels = torch.from_numpy(np.array(split.labels[part])).to(device)
                logits = model(images.contiguous(memory_format=torch.channels_last)).float()
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
                correct += int((logits.argmax(1) == labels).sum())
                self.stop_if_requested()
        self.state.model.train()
        return loss / len(split), correct / len(split)

    def tick(self) -> None:
        """Bring the seconds of the run, its own and the processor's, up to now."""
        now, cpu = time.perf_counter(), time.process_time()
        self.state.seconds += now - self.clock
        self.state.cpu_seconds += cpu - self.cpu_clock
        self.clock, self.cpu_clock = now, cpu

    def save(self) -> Path:
        """Write a checkpoint; raises NonFiniteError before one with a broken weight could take a good one's place."""
        if not self.state.finite():
            raise self.non_finite_error("a weight became NaN or infinite")
        self.tick()
        path = checkpoint.save(self.folder, self.state.step, *self.state.to_checkpoint())
        self.saved_at, self.saved_step = time.monotonic(), self.state.step
        return path

    def save_if_due(self) -> None:
        if time.monotonic() - self.saved_at >= self.recipe.checkpoint_minutes * 60 and self.state.step % self.per_epoch:
            self.save()

    def stop_if_requested(self) -> None:
        """Save and leave where a signal asked for it, after a step or in the middle of validation."""
        if self.stop.signal is None:
            return
        if self.saved_step != self.state.step:
            self.save()
        folder = self.folder.parent
        stopped = f"stopped after step {self.state.step} of {self.steps}; everything up to there is saved."
        raise Interrupted(f"{stopped} {resume_hint(folder)}", self.stop.signal, folder)

    def non_finite_error(self, what: str) -> NonFiniteError:
        state = self.state
        return NonFiniteError(
            f"{what} at step {state.step} (epoch {-(-state.step // self.per_epoch)}): training has stopped, and the "
            f"checkpoints before it are kept in {self.folder}. Train again with a lower rate (now "
            f"lr={self.recipe.lr:g}), or {option('clip', 1)}."
        )
