"""The engines against one another: a replayed step computes what an eager step computes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.device import META, Copies

import mlpconv
from mlpconv.data import Split
from mlpconv.data.sampler import Batch, Sampler
from mlpconv.errors import TrainingError, UsageError
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing
from mlpconv.training import Recipe, step_engine
from mlpconv.training.freeze import freeze
from mlpconv.training.optim import make_optimizers
from mlpconv.training.step import BatchLoader, Outcome, prepare
from mlpconv.training.step_engine import CapturedStep, StepEngine, choose_engine

K, N, SIDE = 7, 53, 13


def rerun(action: Callable[[], Outcome]) -> tuple[Callable[[], object], Outcome]:
    """Stand for a CUDA graph: record without running; a replay runs the action on the recorded buffers."""
    outcome = Outcome(torch.zeros(()), torch.zeros((), dtype=torch.int64), torch.zeros(1))

    def replay() -> None:
        result = action()
        outcome.loss.copy_(result.loss)
        outcome.correct.copy_(result.correct)
        outcome.logits.resize_as_(result.logits).copy_(result.logits)

    return replay, outcome


def loader_of(recipe: Recipe) -> BatchLoader:
    draw = np.random.default_rng(0)
    split = Split(draw.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8), np.arange(N) % K)
    chain = Preprocessing.create(["standardize"], 3, (SIDE, SIDE)).fit(split.images)
    order = Sampler(N, recipe.batch_size, recipe.seed)
    soft = torch.softmax(torch.randn(2, N, K, generator=torch.Generator().manual_seed(0)), 2)
    steps = 2 * order.steps_per_epoch
    return BatchLoader(split, chain, recipe, order, steps, soft=soft if recipe.teacher else None)


def trained(recipe: Recipe, **options: Any) -> tuple[StepEngine, list[Outcome]]:
    """Train for two epochs of seven steps; the batches have two lengths."""
    torch.manual_seed(0)
    model = create_model("nin_tiny", num_classes=K, in_channels=3, width=0.25, dropout=recipe.dropout)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizers, load = make_optimizers(model, recipe), loader_of(recipe)
    optimizers.lr_on(torch.device("cpu"))  # as on a GPU: float32 learning rates round differently
    run = StepEngine(model, optimizers, recipe, "fp32", **options)
    outcomes = []
    for step in range(load.steps):
        optimizers.set_lr(recipe.lr * (1 - step / load.steps))
        freeze(model, recipe.freeze, step / load.steps)
        result = run(load(step), step)
        outcomes.append(Outcome(result.loss.clone(), result.correct.clone(), result.logits.clone()))
    return run, outcomes


MANY: dict[str, Any] = {"crop": 2, "flip": "random", "dropout": 0.4, "batch_size": 8}
SETTINGS = [
    pytest.param(MANY | {"optimizer": "muon", "sizes": (11, 13), "freeze": (0.3, 0.6)}, id="muon"),
    pytest.param(MANY | {"optimizer": "adamw", "lr": 0.01, "mixup": 0.4, "label_smoothing": 0.1}, id="adamw"),
    pytest.param(MANY | {"optimizer": "sgd", "clip": 1.0, "mixup": 0.4, "teacher": "any"}, id="sgd, taught"),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_replayed_steps_have_the_bits_of_eager_steps(settings: dict[str, Any]) -> None:
    recipe = Recipe(**settings)
    eager, expected = trained(recipe)
    replayed, outcomes = trained(recipe, capture=rerun)
    assert sum(step is not None for step in replayed.steps.values()) >= 2  # one per batch length
    for before, after in zip(expected, outcomes, strict=True):
        assert torch.equal(before.loss, after.loss)
        assert torch.equal(before.correct, after.correct)
        assert torch.equal(before.logits, after.logits)
    for name, weight in eager.model.state_dict().items():
        assert torch.equal(weight, replayed.model.state_dict()[name]), name


def test_every_change_of_shape_or_frozen_layers_is_captured_anew() -> None:
    recipe = Recipe(optimizer="sgd", batch_size=8, sizes=(11, 13), freeze=(0.75,))
    run, _ = trained(recipe, capture=rerun)
    sides = {key[0][2] for key in run.steps}  # type: ignore[index]
    frozen = {key[1:] for key in run.steps}  # type: ignore[index]
    assert sides == {11, 13}
    assert len(frozen) == 2


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_captured_part_of_a_step_copies_nothing_to_the_device(settings: dict[str, Any]) -> None:
    recipe = Recipe(**settings)
    model = create_model("nin_tiny", num_classes=K, in_channels=3, width=0.25, dropout=recipe.dropout).to(META).train()
    optimizers = make_optimizers(model, recipe)
    for part in optimizers.optimizers:
        part.param_groups[:] = [group | {"fused": False} for group in part.param_groups]  # no such kernels for META
    soft = torch.zeros(8, K, device=META) if recipe.teacher else None
    batch = Batch(torch.zeros(8, 3, SIDE, SIDE, device=META), torch.zeros(8, dtype=torch.int64, device=META), soft)
    run = StepEngine(model, optimizers, recipe, "fp32")
    inputs = prepare(batch, recipe, 0, K)
    run.update(inputs)  # allocates the state of the optimizers
    with Copies() as copies:
        run.update(inputs)
    assert copies.waiting == []


def test_a_captured_step_reads_its_own_buffers() -> None:
    recipe = Recipe(batch_size=8)
    batch = loader_of(recipe)(0)
    inputs = prepare(batch, recipe, 0, K)
    seen: list[torch.Tensor] = []
    captured = CapturedStep(lambda own: seen.append(own.images) or outcome_of(own.images), inputs, rerun)
    captured(prepare(loader_of(recipe)(1), recipe, 1, K))
    captured(inputs)
    assert seen[0] is seen[1] is not inputs.images
    assert torch.equal(seen[1], inputs.images)


def outcome_of(images: torch.Tensor) -> Outcome:
    return Outcome(images.sum(), images.sum().long(), images[:, 0, 0])


# --- the choice


def choose(recipe: Recipe, device: str) -> tuple[str, str]:
    model = create_model("nin_tiny", num_classes=K)
    batch = Batch(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))
    return choose_engine(model, lambda: batch, recipe, "fp32", torch.device(device))


@pytest.mark.parametrize(("graph", "choice"), [(1.0, "graph"), (1.999, "eager"), (3.0, "eager")])
def test_auto_takes_graphs_on_a_gpu_if_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, graph: float, choice: str
) -> None:
    times = {"eager": 2.0, "graph": graph}
    monkeypatch.setattr(step_engine, "time_engine", lambda *arguments: times[arguments[-1]])
    found, message = choose(Recipe(), "cuda")
    assert found == choice
    assert f"8 images takes 2.00 ms eagerly and {graph:.2f} ms as a CUDA graph" in message


def test_auto_is_eager_where_graphs_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(step_engine, "time_engine", fail)
    message = "engine eager: CUDA graphs fail here (CUDA error: operation not permitted when stream is capturing)"
    assert choose(Recipe(), "cuda") == ("eager", message)


def test_auto_is_eager_on_a_cpu() -> None:
    assert choose(Recipe(), "cpu") == ("eager", "")


def test_an_engine_that_was_asked_for_is_taken() -> None:
    assert choose(Recipe(engine="compile"), "cpu") == ("compile", "engine compile, as requested")


def test_graphs_need_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="engine=graph replays CUDA graphs, and this run is on the CPU"):
        mlpconv.fit("digits", out=tmp_path / "run", engine="graph", epochs=1, device="cpu", progress=None)
    assert not (tmp_path / "run" / "recipe.json").exists()


@pytest.mark.parametrize("engine", ["graph", "compile"])
def test_virtual_shards_run_eagerly(tmp_path: Path, engine: str) -> None:
    settings = {"engine": engine, "virtual_shards": 2, "epochs": 1, "device": "cpu"}
    with pytest.raises(UsageError, match=f"engine={engine} and virtual_shards=2 exclude one another"):
        mlpconv.fit("digits", out=tmp_path / "run", progress=None, **settings)


# --- compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch.jit
def test_compiled_steps_agree_with_eager_steps() -> None:
    recipe = Recipe(optimizer="sgd", batch_size=53, lr=0.01, dropout=0.0)
    eager, expected = trained(recipe)
    compiled, outcomes = trained(recipe, mode="compile")
    for before, after in zip(expected, outcomes, strict=True):
        torch.testing.assert_close(before.loss, after.loss, rtol=1e-4, atol=1e-4)
    for name, weight in eager.model.state_dict().items():
        torch.testing.assert_close(weight, compiled.model.state_dict()[name], rtol=1e-3, atol=1e-3, msg=name)


def test_a_network_that_cannot_be_compiled_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler\nPlease specify one")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    forward = step_engine.compiled_forward()
    with pytest.raises(TrainingError, match=r"cannot compile this network here \(Failed to find C compiler\)"):
        forward(create_model("nin_tiny"), torch.zeros(1, 1, 8, 8))
