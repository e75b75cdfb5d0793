"""The training loop on a small data set: metrics, evaluation, checkpoints, and errors."""

from __future__ import annotations

import copy
import math
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mlpconv.data import Split
from mlpconv.data.sampler import Sampler
from mlpconv.errors import CollapseError, Interrupted, NonFiniteError
from mlpconv.models import create_model
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing
from mlpconv.training import Progress, Recipe, checkpoint, loop
from mlpconv.training.loop import Trainer
from mlpconv.training.optim import make_optimizers
from mlpconv.training.progress import COLUMNS, EpochMetrics
from mlpconv.training.schedule import lr_factor
from mlpconv.training.state import State, make_ema
from mlpconv.training.step import BatchLoader, train_step
from mlpconv.training.stop import StopRequest

K, N = 3, 37
BASE = Recipe(epochs=3, batch_size=8, lr=0.05, precision="fp32", norm="batch", weight_decay=1e-4)
PER_EPOCH = 5


def pictures(n: int = N, seed: int = 0) -> Split:
    """Return 7x7 images of K classes that differ in the colour of a stripe."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % K
    images = draw.integers(0, 60, (n, 3, 7, 7), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label, :, 2 * label : 2 * label + 2] += 150
    return Split(images, labels)


def network(recipe: Recipe, **options: Any) -> Network:
    torch.manual_seed(recipe.seed)
    norm = None if recipe.norm == "none" else recipe.norm
    model = create_model("nin_tiny", num_classes=K, in_channels=3, width=0.25, norm=norm, **options)
    return model.to(memory_format=torch.channels_last)


class Events(Progress):
    """Record all events, and act after a step on request."""

    def __init__(self, act: Any = None) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.act = act

    def begin(self, steps: int, done: int, epochs: int) -> None:
        self.events.append(("begin", steps, done, epochs))

    def batch(self, seconds: float) -> None:
        self.events.append(("batch", seconds))

    def step(self, step: int, loss: float, accuracy: float, images: int) -> None:
        self.events.append(("step", step, loss, accuracy, images))
        if self.act is not None:
            self.act(step)

    def epoch(self, row: EpochMetrics, epochs: int) -> None:
        self.events.append(("epoch", row["epoch"], epochs))

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def end(self) -> None:
        self.events.append(("end",))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [entry[1:] for entry in self.events if entry[0] == kind]


class Case:
    """A trainer with state, data and callbacks, in a folder."""

    def __init__(
        self, folder: Path, recipe: Recipe = BASE, *, validate: bool = True, act: Any = None, **options: Any
    ) -> None:
        split = pictures()
        chain = Preprocessing.create(["standardize"], 3, (7, 7)).fit(split.images)
        order = Sampler(N, recipe.batch_size, recipe.seed)
        self.loader = BatchLoader(split, chain, recipe, order, recipe.epochs * order.steps_per_epoch)
        model = network(recipe, **options)
        totals = torch.zeros(3, dtype=torch.float64)
        self.state = State(model, make_ema(model, recipe), make_optimizers(model, recipe), "fp32", totals)
        self.kept: list[tuple[EpochMetrics, dict[str, torch.Tensor]]] = []
        self.recorded: list[list[EpochMetrics]] = []
        self.progress, self.folder = Events(act), folder
        self.validation = pictures(20, seed=1) if validate else None
        found, _ = checkpoint.latest(folder)
        if found is not None:
            self.state.restore(found)
        parts = (self.state, self.loader, self.validation, recipe, folder)
        self.trainer = Trainer(*parts, self.keep, lambda rows: self.recorded.append(copy.deepcopy(rows)), self.progress)

    def keep(self, model: Network, row: EpochMetrics) -> None:
        self.kept.append((row, copy.deepcopy(model.state_dict())))

    def run(self) -> Case:
        self.trainer.run()
        return self

    def saved(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))


# --- what is noted


def test_a_run_learns_and_records_every_epoch(tmp_path: Path):
    case = Case(tmp_path).run()
    history = case.state.history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert [row["step"] for row in history] == [5, 10, 15]
    assert all(tuple(row) == COLUMNS for row in history)
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["val_accuracy"] > 0.8
    assert case.recorded[-1] == history
    assert [len(rows) for rows in case.recorded] == [1, 2, 3]
    assert case.saved() == [5, 10, 15]
    assert history[0]["seconds"] < history[1]["seconds"] < history[2]["seconds"]


def test_the_loss_and_accuracy_of_an_epoch_are_means_over_its_images(tmp_path: Path):
    row = Case(tmp_path, BASE.with_settings(epochs=1)).run().state.history[0]
    plain, recipe = Case(tmp_path / "other"), BASE.with_settings(epochs=1)
    loss = correct = 0.0
    for step in range(PER_EPOCH):
        batch = plain.loader(step)
        plain.state.optimizers.set_lr(recipe.lr * lr_factor(recipe, step, PER_EPOCH, PER_EPOCH))
        outcome = train_step(plain.state.model.train(), plain.state.optimizers, batch, recipe, step, "fp32")
        loss += float(outcome.loss) * len(batch.labels)
        correct += float((outcome.logits.argmax(1) == batch.labels).sum())
    assert row["train_loss"] == pytest.approx(loss / N, rel=1e-6)
    assert row["train_accuracy"] == correct / N


def test_the_learning_rate_of_an_epoch_is_that_of_its_last_step(tmp_path: Path):
    recipe = BASE.with_settings(schedule="steps", milestones=(1, 2), lr=0.01)
    rates = [row["lr"] for row in Case(tmp_path, recipe).run().state.history]
    assert rates == pytest.approx([0.01, 0.001, 0.0001])
    linear = [row["lr"] for row in Case(tmp_path / "b", BASE.with_settings(schedule="linear")).run().state.history]
    assert linear == pytest.approx([0.05 * (1 - (step + 0.5) / 15) for step in (4, 9, 14)])


def test_progress_receives_all_events_in_order(tmp_path: Path):
    case = Case(tmp_path, BASE.with_settings(epochs=2)).run()
    kinds = [entry[0] for entry in case.progress.events]
    assert kinds == ["begin", *["batch", "step"] * 5, "epoch", *["batch", "step"] * 5, "epoch", "end"]
    assert all(seconds >= 0 for (seconds,) in case.progress.of("batch"))
    assert case.progress.of("begin") == [(10, 0, 2)]
    steps = case.progress.of("step")
    assert [step for step, *_ in steps] == list(range(1, 11))
    assert [images for *_, images in steps][:5] == [8, 16, 23, 30, 37]
    assert steps[4][1] == case.state.history[0]["train_loss"]


# --- evaluation and the best epoch


def test_validation_is_the_plain_mean_and_changes_nothing(tmp_path: Path):
    case = Case(tmp_path, dropout=0.5)
    model, split = case.state.model.train(), case.validation
    for step in range(2):
        train_step(model, case.state.optimizers, case.loader(step), BASE, step, "fp32")
    before = copy.deepcopy(model.state_dict())
    loss, accuracy = case.trainer.validate(split)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(case.loader.preprocessing(split.images))
    labels = torch.from_numpy(split.labels)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()


def test_validation_does_not_depend_on_the_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = Case(tmp_path)
    whole = case.trainer.validate(case.validation)
    monkeypatch.setattr(loop, "EVAL_BATCH", 7)
    assert case.trainer.validate(case.validation) == pytest.approx(whole, rel=1e-5)


def test_an_epoch_is_kept_unless_clearly_worse_than_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = Case(tmp_path, BASE.with_settings(epochs=5))
    error = (0.8 * 0.2 / len(case.validation)) ** 0.5
    results = iter([(1.0, 0.3), (1.0, 0.8), (1.0, 0.81 - error), (9.0, 0.79 - error), (0.1, 0.75 - error)])
    monkeypatch.setattr(Trainer, "validate", lambda *_: next(results))
    case.run()
    assert [row["epoch"] for row, _ in case.kept] == [1, 2, 3]  # the loss does not matter


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path):
    case = Case(tmp_path, BASE, validate=False).run()
    assert [row["epoch"] for row, _ in case.kept] == [1, 2, 3]
    assert all(row["val_loss"] is None and row["val_accuracy"] is None for row in case.state.history)


def test_eval_every_always_includes_the_last_epoch(tmp_path: Path):
    case = Case(tmp_path, BASE.with_settings(epochs=5, eval_every=2)).run()
    assert [row["val_loss"] is not None for row in case.state.history] == [False, True, False, True, True]
    assert {row["epoch"] for row, _ in case.kept} <= {2, 4, 5}


# --- EMA


def test_the_ema_follows_its_formula_and_is_evaluated(tmp_path: Path):
    recipe = BASE.with_settings(epochs=1, ema=0.9, ema_every=2)
    case = Case(tmp_path, recipe).run()
    plain = Case(tmp_path / "other", recipe)
    average: dict[str, np.ndarray] = {}
    for step in range(PER_EPOCH):
        plain.state.optimizers.set_lr(recipe.lr * lr_factor(recipe, step, PER_EPOCH, PER_EPOCH))
        train_step(plain.state.model.train(), plain.state.optimizers, plain.loader(step), recipe, step, "fp32")
        if (step + 1) % 2:
            continue
        count = (step + 1) // 2 - 1  # updates before this one
        decay = min(0.9, (1 + count) / (10 + count)) if count else 0.0
        for name, value in plain.state.model.state_dict().items():
            now = value.numpy().astype(np.float64)
            average[name] = (
                now if name not in average or "num_batches" in name else decay * average[name] + (1 - decay) * now
            )
    (_, kept) = case.kept[0]
    assert set(kept) == set(average)
    for name, value in kept.items():
        np.testing.assert_allclose(value.numpy(), average[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert not torch.equal(kept["blocks.0.convs.0.weight"], case.state.model.state_dict()["blocks.0.convs.0.weight"])


def test_an_ema_that_was_never_updated_is_not_evaluated(tmp_path: Path):
    case = Case(tmp_path, BASE.with_settings(ema=0.9, ema_every=1000)).run()
    row, kept = case.kept[-1]
    assert case.state.eval_model is case.state.model
    assert row["epoch"] == 3
    assert all(torch.equal(value, kept[name]) for name, value in case.state.model.state_dict().items())
    assert case.state.history[-1]["val_accuracy"] > 0.8


# --- checkpoints


def test_checkpoints_are_written_on_time_and_after_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps: list[int] = []
    real = checkpoint.save

    def noting(folder: Path, step: int, *rest: Any) -> Path:
        steps.append(step)
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", noting)
    Case(tmp_path / "always", BASE.with_settings(epochs=2, checkpoint_minutes=0)).run()
    assert steps == list(range(1, 11))
    steps.clear()
    Case(tmp_path / "rarely", BASE.with_settings(epochs=2, checkpoint_minutes=60)).run()
    assert steps == [5, 10]


EVERYTHING = {"flip": "random", "crop": 1, "cutout": 2, "mixup": 0.2, "ema": 0.9, "workers": 2, "optimizer": "muon"}


@pytest.mark.parametrize("stop", [3, 5, 7, 14])
def test_a_stopped_and_resumed_run_is_bit_identical(tmp_path: Path, stop: int):
    recipe = BASE.with_settings(**EVERYTHING)
    whole = Case(tmp_path / "whole", recipe, dropout=0.3).run()

    def ask(step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    first = Case(tmp_path / "parts", recipe, dropout=0.3, act=ask)
    with pytest.raises(Interrupted, match=f"stopped after step {stop} of 15") as caught:
        first.run()
    assert caught.value.exit_code == 143
    assert first.saved()[-1] == stop
    assert first.progress.events[-1] == ("end",)
    second = Case(tmp_path / "parts", recipe, dropout=0.3)
    assert second.state.step == stop
    second.run()
    for (name, value), other in zip(
        whole.state.model.state_dict().items(), second.state.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    clocks = ("seconds", "cpu_seconds", "images_per_second")
    for ours, theirs in zip(whole.state.history, second.state.history, strict=True):
        assert {k: v for k, v in ours.items() if k not in clocks} == {
            k: v for k, v in theirs.items() if k not in clocks
        }


def test_an_epoch_completed_after_a_resume_has_a_throughput(tmp_path: Path):
    def ask(step: int) -> None:
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped after step 10 of 15"):
        Case(tmp_path, act=ask).run()
    second = Case(tmp_path)
    assert second.state.step == 10
    assert len(second.state.history) == 1
    second.state.seconds = second.state.history[0]["seconds"] + 2.0
    second.run()
    assert second.state.history[1]["images_per_second"] == round(N / 2, 1)
    assert second.state.history[2]["images_per_second"] > 0


def test_resuming_a_finished_run_writes_metrics_alone(tmp_path: Path):
    first = Case(tmp_path).run()
    again = Case(tmp_path).run()
    assert again.progress.of("step") == []
    assert again.recorded == [first.state.history]
    assert again.kept == []


# --- stopping


def test_signal_handlers_are_restored_and_a_second_ctrl_c_interrupts_immediately():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_in_another_thread_leaves_signals_alone(tmp_path: Path):
    case, failed = Case(tmp_path, BASE.with_settings(epochs=1)), []

    def work() -> None:
        try:
            case.run()
        except BaseException as error:  # noqa: BLE001  (told to the main thread)
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
    assert case.saved() == [5]


# --- collapse


def kill(case: Case) -> None:
    with torch.no_grad():
        case.state.model.last_layer.bias.fill_(-1e4)


def test_a_collapse_stops_the_run_within_an_epoch(tmp_path: Path):
    case = Case(tmp_path, BASE.with_settings(norm="none"), last_relu=True)
    kill(case)
    with pytest.raises(CollapseError, match=r"collapsed by step 2: the loss sits at 1\.0986.*on_collapse='repair'"):
        case.run()
    assert case.progress.events[-1] == ("end",)


def test_a_late_collapse_is_detected_and_the_last_checkpoint_kept(tmp_path: Path):
    case = Case(tmp_path, BASE.with_settings(norm="none", lr=1e-4), last_relu=True)
    case.progress.act = lambda step: kill(case) if step == 7 else None
    with pytest.raises(CollapseError, match=r"collapsed by step (8|9)"):
        case.run()
    found, notes = checkpoint.latest(tmp_path)
    assert notes == []
    assert found[1]["step"] == 5
    assert float(found[0]["model"]["blocks.2.convs.2.bias"].min()) > -1


def test_a_repaired_run_learns_at_half_the_learning_rate_with_a_note(tmp_path: Path):
    recipe = BASE.with_settings(norm="none", on_collapse="repair", epochs=30, schedule="constant", ema=0.5)
    case = Case(tmp_path, recipe, last_relu=True)
    kill(case)
    case.run()
    (note,) = case.progress.of("note")[0]
    assert "step 2: training collapsed (chance-level loss; the logits of all images are the same)" in note
    assert re.search(r"reinitialised \d+ channels \(dead\) and halved the learning rate", note)
    assert case.state.repairs >= 1
    assert case.state.lr_factor == 0.5**case.state.repairs
    assert case.state.history[0]["train_loss"] > math.log(K) - 0.2
    assert case.state.history[-1]["train_loss"] < 0.5 * math.log(K)
    rates = [row["lr"] for row in case.state.history]
    assert (
        rates[0] < rates[-1] == pytest.approx(recipe.lr * case.state.lr_factor)
    )  # it rises again over a hundred steps
    assert all(float(value.abs().max()) < 20 for _, kept in case.kept for value in kept.values())  # nor in the average


def test_a_resumed_repaired_run_is_bit_identical(tmp_path: Path):
    recipe = BASE.with_settings(norm="none", on_collapse="repair", epochs=2, optimizer="muon", lr=0.01)
    ends = []
    for stops in ((), (3, 4, 6)):
        folder = tmp_path / str(len(stops))
        for stop in (*stops, None):
            fresh = checkpoint.latest(folder)[0] is None
            case = Case(folder, recipe, last_relu=True)
            case.progress.act = lambda step, at=stop: os.kill(os.getpid(), signal.SIGINT) if step == at else None
            if fresh:
                kill(case)
            if stop is None:
                case.run()
            else:
                with pytest.raises(Interrupted):
                    case.run()
        assert case.state.repairs == 1
        ends.append(torch.cat([value.detach().flatten() for value in case.state.model.parameters()]))
    assert torch.equal(ends[0], ends[1])


def stuck(case: Case) -> None:
    """Make all activations too small to learn from, without dead channels."""
    with torch.no_grad():
        for parameter in case.state.model.parameters():
            parameter.mul_(0.3)


@pytest.mark.parametrize("cure", ["stop", "repair"])
def test_a_stuck_network_is_warned_of_or_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cure: str):
    monkeypatch.setattr(loop, "SLOW_START", 2 * PER_EPOCH)
    recipe = BASE.with_settings(norm="none", on_collapse=cure, epochs=20, schedule="constant")
    case = Case(tmp_path, recipe)
    stuck(case)
    case.run()
    notes = [note for (note,) in case.progress.of("note")]
    losses = [row["train_loss"] for row in case.state.history]
    if cure == "repair":
        assert "step 10: training collapsed (chance-level loss; nothing was learned in 10 steps)" in notes[0]
        assert losses[-1] < 0.5 * math.log(K)
    else:
        assert len(notes) == 19
        assert re.match(r"step 10: the loss of this epoch \(1\.\d+\) is still at chance level", notes[0])
        assert "on_collapse='repair'" in notes[0]
        assert losses[-1] == pytest.approx(math.log(K), abs=0.03)


def test_a_second_collapse_reinitialises_all_channels(tmp_path: Path):
    recipe = BASE.with_settings(norm="none", on_collapse="repair", epochs=2)
    case = Case(tmp_path, recipe, last_relu=True)
    kill(case)
    case.progress.act = lambda step: kill(case) if step == 3 else None
    case.run()
    first, second, *_ = [note for (note,) in case.progress.of("note")]
    assert "(dead)" in first
    assert "(all)" in second


def test_a_good_network_with_a_high_loss_is_not_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "SLOW_START", PER_EPOCH)
    recipe = BASE.with_settings(on_collapse="repair", label_smoothing=0.9, epochs=4, lr=0.2)
    case = Case(tmp_path, recipe).run()
    assert case.state.history[-1]["train_loss"] > math.log(K) - 0.02
    assert case.state.history[-1]["train_accuracy"] > 0.7
    assert case.state.repairs == 0


def test_the_number_of_repairs_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop.health, "repair", lambda *_, **__: 1)  # one that does not help
    case = Case(tmp_path, BASE.with_settings(norm="none", on_collapse="repair", epochs=20), last_relu=True)
    kill(case)
    with pytest.raises(CollapseError):
        case.run()
    assert case.state.repairs == loop.MAX_REPAIRS


@pytest.mark.parametrize(("check_every", "per_epoch"), [(1, 5), (50, 7), (50, 390), (4, 6), (3, 3)])
def test_the_steps_between_checks_add_up(tmp_path: Path, check_every: int, per_epoch: int):
    trainer = Case(tmp_path).trainer
    trainer.check_every, trainer.per_epoch = check_every, per_epoch
    total = 0
    for step in range(1, 5 * per_epoch + 1):
        trainer.state.step = step
        if step % check_every == 0 or step % per_epoch == 0:
            total += trainer.steps_since_check()
            assert total == step


# --- numbers that are none


def whole_and_finite(folder: Path) -> int:
    """Return the step of the newest checkpoint, which must be intact and finite."""
    found, notes = checkpoint.latest(folder)
    assert notes == []
    for group in found[0].values():
        assert all(bool(torch.isfinite(value).all()) for value in group.values())
    return found[1]["step"]


def test_a_far_too_high_learning_rate_stops_the_run(tmp_path: Path):
    recipe = BASE.with_settings(norm="none", lr=1e6, schedule="constant", nesterov=False, epochs=50)
    with pytest.raises(NonFiniteError, match=r"at step \d+ \(epoch \d+\): training has stopped.*lr=1e\+06.*clip=1"):
        Case(tmp_path, recipe, last_relu=False).run()


@pytest.mark.parametrize("where", ["weight", "loss"])
def test_the_checkpoint_before_a_nan_is_intact_and_finite(tmp_path: Path, where: str):
    case = Case(tmp_path, BASE.with_settings(checkpoint_minutes=0))

    def spoil(step: int) -> None:
        if step == 7:
            with torch.no_grad():
                case.state.model.first_conv.weight[0, 0, 0, 0] = float("nan")
        if step == 6 and where == "loss":
            case.loader.preprocessing.steps[0].mean.fill_(float("inf"))

    case.progress.act = spoil
    with pytest.raises(
        NonFiniteError, match=r"at step 7 \(epoch 2\)" if where == "weight" else "the loss became nan at step 7"
    ):
        case.run()
    assert whole_and_finite(tmp_path) == 6
    assert case.saved() == [4, 5, 6]


def test_an_infinite_validation_loss_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    results = iter([(1.0, 0.5), (math.inf, 0.9)])
    monkeypatch.setattr(Trainer, "validate", lambda *_: next(results))
    case = Case(tmp_path)
    with pytest.raises(NonFiniteError, match=r"the validation loss became inf at step 10 \(epoch 2\)"):
        case.run()
    assert [row["epoch"] for row, _ in case.kept] == [1]
    assert whole_and_finite(tmp_path) == 5


def test_a_repair_forgets_the_captured_steps(tmp_path: Path):
    case = Case(tmp_path)
    case.trainer.engine.steps["a captured step"] = None
    case.trainer.repair("for the test", case.loader(0).images, all_channels=True)
    assert case.trainer.engine.steps == {}
