"""One training run: a network from words, trained on a budget with one seed, and what is measured of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv.claims.budget import BUDGET, Images, load_images, on_canvas, tuning_images
from mlpconv.claims.networks import build
from mlpconv.claims.schema import Measurement
from mlpconv.files import json_bytes
from mlpconv.threads import one_thread
from mlpconv.training.memory import flushing_denormals
from mlpconv.training.seeding import keeping_random_states, seed_torch

__all__ = [
    "LEARNING_RATES",
    "TUNING_SEEDS",
    "ClaimRun",
    "Measured",
    "make_optimizer",
    "predict",
    "run_trial",
    "trained_network",
    "tuning_trials",
]

LEARNING_RATES = (0.02, 0.06, 0.2)
"""The rates that every arm is tuned over, on a held-out fifth of the training images."""
TUNING_SEEDS = (0, 1001, 1002)
"""Apart from those of the runs that are compared. One seed would be too few: its error is as noisy as the choice."""
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
WARM_UP = 0.2
"""Fraction of the steps in which the learning rate rises; it then falls to zero, both linearly."""
EVAL_BATCH = 1000
CPU = torch.device("cpu")
REVISION = 1
"""Counts changes of this file that change results, so that cached runs of older code are not used."""


@dataclass(frozen=True)
class ClaimRun:
    """Everything that determines a run, so that runs with equal trials have equal bits."""

    data: str
    words: str
    """The network with its final widths."""
    seed: int
    learning_rate: float
    epochs: float = 1.0
    train_images: int | None = None
    deepen: bool = False
    canvas: bool = False
    tuning: bool = False
    """Whether the held-out fifth of the training images takes the place of the test images."""
    measure: str = ""
    """Identifies the code of further measurements."""

    @property
    def key(self) -> str:
        """Return a hash of the trial and its budget, the name of its file in the cache."""
        content = asdict(self) | {"budget": asdict(BUDGET[self.data]), "revision": REVISION}
        return hashlib.sha256(json_bytes(content)).hexdigest()[:24]


@dataclass(frozen=True)
class Measured:
    """The result of a trial."""

    values: dict[str, float]
    """error, train_error and gap in percent, and what the claim measures itself."""
    predictions: npt.NDArray[np.uint8]
    """The predicted class of each test image (N,)."""
    cpu_seconds: float


def run_trial(trial: ClaimRun, measure: Measurement | None = None) -> Measured:
    """Train and evaluate the network of a trial, in one thread; the caller's random states do not change."""
    start = time.thread_time()
    with one_thread(), flushing_denormals(), keeping_random_states(CPU):
        network, used, images = _fit(trial)
        predictions = predict(network, images.test)
        error = _error(predictions, images.test_labels)
        train_error = _error(predict(network, images.train[used]), images.train_labels[used])
        values = {"error": error, "train_error": train_error, "gap": error - train_error}
        if measure is not None and not trial.tuning:
            values |= {name: float(value) for name, value in measure(network, images, trial.seed).items()}
    return Measured(values, predictions.numpy().astype(np.uint8), time.thread_time() - start)


def trained_network(trial: ClaimRun) -> nn.Sequential:
    """Return the network of a trial, trained again with the same bits; the caller's random states do not change."""
    with one_thread(), flushing_denormals(), keeping_random_states(CPU):
        return _fit(trial)[0]


def _fit(trial: ClaimRun) -> tuple[nn.Sequential, Tensor, Images]:
    """Return the trained network, the indices of the training images it has seen, and the images."""
    images = _images(trial)
    seed_torch(trial.seed, CPU)
    network = build(trial.words, images.shape)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return *_train(network, images, trial), images


@lru_cache(maxsize=4)
def _prepared(data: str, tuning: bool) -> Images:
    return tuning_images(load_images(data)) if tuning else load_images(data)


def _images(trial: ClaimRun) -> Images:
    images = _prepared(trial.data, trial.tuning)
    return on_canvas(images, trial.seed) if trial.canvas else images


def _train(network: nn.Sequential, images: Images, trial: ClaimRun) -> tuple[nn.Sequential, Tensor]:
    """Train in as many steps as the budget gives, and return the network and the indices of the images it has seen.

    Small training sets get the same number of steps. All arms with the same seed see the same images in the same order.
    """
    budget = BUDGET[trial.data]
    generator = torch.Generator().manual_seed(trial.seed)
    used = torch.randperm(len(images.train), generator=generator)[: trial.train_images]
    steps = round(trial.epochs * budget.epochs * len(images.train) / budget.batch)
    batches = _batches(used, min(budget.batch, len(used)), generator)
    optimizer = make_optimizer(network, trial.learning_rate)
    network.train()
    for step in range(steps):
        if trial.deepen and step == steps // 2:
            network = _deepened(network, images)
            optimizer = make_optimizer(network, trial.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = trial.learning_rate * _schedule((step + 1) / steps)
        batch = next(batches)
        loss = F.cross_entropy(network(images.train[batch]), images.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network, used.sort().values


def _batches(used: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices without end: each epoch in a new order, without the incomplete last batch."""
    while True:
        order = used[torch.randperm(len(used), generator=generator)]
        yield from order[: len(order) // size * size].split(size)


def make_optimizer(network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum and weight decay on weights, not on biases and norms."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=MOMENTUM, nesterov=True, foreach=True)


def _schedule(progress: float) -> float:
    """Return the fraction of the learning rate after this fraction of the steps."""
    return min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def _deepened(network: nn.Sequential, images: Images) -> nn.Sequential:
    """Insert an identity-initialised 1x1 and a ReLU after the layer before each pool; no output changes."""
    from mlpconv.surgery import deepen

    shape = images.shape
    names = [str(index - 1) for index, layer in enumerate(network) if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)]
    result = deepen(network.eval(), names, input_shape=(shape.channels, shape.side, shape.side))
    model = result.model.train()
    return model if isinstance(model, nn.Sequential) else nn.Sequential(model)


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Return the most probable class of each image: (N, C, H, W) -> (N,)."""
    network.eval()
    return torch.cat([network(batch).argmax(1) for batch in images.split(EVAL_BATCH)])


def _error(predictions: Tensor, labels: Tensor) -> float:
    """Return the error rate in percent."""
    return 100.0 * float((predictions != labels).double().mean())


def tuning_trials(trial: ClaimRun) -> list[ClaimRun]:
    """Return the trials that choose the learning rate of an arm, on the held-out images: each rate with three seeds."""
    tuning = replace(trial, tuning=True, measure="")
    return [replace(tuning, seed=seed, learning_rate=rate) for rate in LEARNING_RATES for seed in TUNING_SEEDS]
