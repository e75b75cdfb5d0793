"""The collapse at loss ln(classes): detect it within an epoch, explain it, and repair it.

If the last 1x1 convolution is followed by a ReLU, as in the author's networks, one step that is too large makes every
category map negative everywhere. Outputs and gradients are then exactly zero, the loss is ln(K), and the weights never
change again. The same happens when a hidden layer dies. In both cases the network gives every image the same logits,
which is what the check tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mlpconv.data.augment import generator
from mlpconv.errors import CollapseError
from mlpconv.models.base import Network
from mlpconv.text import option
from mlpconv.training.step import Logits, logits_of

__all__ = ["CollapseWatch", "chance_loss", "collapse_error", "is_constant", "repair"]

TOLERANCE = 1e-6  # range over the images, relative to the magnitude, below which a value counts as constant
EPOCH_MARGIN = 0.01  # an epoch's mean loss must be this far below chance to show that something was learned
ACCURACY_MARGIN = 0.1  # or its accuracy this fraction of the way from the largest class to 1
STEP_MARGIN = 0.1  # a step's loss must be this far below chance to be better than chance
MAX_PATIENCE = 50  # steps
CHECKED_IMAGES = 64  # of a batch, for the check of constant logits


def chance_loss(labels: Tensor) -> float:
    """Return the chance-level loss, the entropy of the classes of `labels` (N,): ln(K) if they are balanced."""
    frequencies = labels.bincount().double() / max(1, len(labels))
    return float(torch.special.entr(frequencies).sum())


class CollapseWatch:
    """Count consecutive steps with a chance-level loss, and test the network after a number of them.

    The loss alone proves no collapse, as a healthy network starts with it. Neither do the logits of a training step:
    bfloat16 rounds small differences away, and dropout adds noise. The test is therefore a separate forward pass
    without both.
    """

    def __init__(self, labels: Tensor, steps_per_epoch: int, count: int = 0) -> None:
        self.chance_loss = chance_loss(labels)
        self.largest = float(labels.bincount().max()) / len(labels)
        self.threshold = self.chance_loss - STEP_MARGIN
        self.patience = min(MAX_PATIENCE, max(2, steps_per_epoch // 2))
        self.count = count

    def nothing_learned(self, loss: float, accuracy: float) -> bool:
        """Return whether an epoch's mean loss and accuracy are at chance level, as when activations are too small.

        The loss alone is not enough: label smoothing and mixup keep it high for a good network too.
        """
        return loss > self.chance_loss - EPOCH_MARGIN and accuracy <= self.largest + ACCURACY_MARGIN * (
            1 - self.largest
        )

    def collapsed(self, loss: float, steps: int, model: Network, images: Tensor, logits: Logits = logits_of) -> bool:
        """Return whether training has collapsed, from a step's loss and images (N, C, H, W).

        `steps` is the number of steps since the previous check.
        """
        self.count = self.count + steps if loss > self.threshold else 0
        if self.count < self.patience:
            return False
        self.count = 0
        return is_constant(model, images, logits)


@torch.no_grad()
def is_constant(model: Network, images: Tensor, logits: Logits = logits_of) -> bool:
    """Return whether the network computes the same logits for different images (N, C, H, W)."""
    images = images[:CHECKED_IMAGES]
    if bool((images == images[:1]).all()):
        return False
    with eval_mode(model):
        found = logits(model, images)
    return bool((found.amax(0) - found.amin(0)).max() <= TOLERANCE * found.abs().max())


def collapse_error(loss: float, num_classes: int, step: int) -> CollapseError:
    """Return the error that explains the collapse and names remedies."""
    return CollapseError(
        f"training collapsed by step {step}: the loss sits at {loss:.4f}, chance level (ln({num_classes} classes) = "
        f"{math.log(num_classes):.4f}): a layer is dead (its ReLU outputs zero for every image), so all gradients are "
        "zero and training cannot recover. Retrain with "
        f"{option('on_collapse', 'repair')}, or prevent it with {option('last_relu', False)}, a lower lr, or "
        f"{option('norm', 'batch')}."
    )


@torch.no_grad()
def repair(model: Network, images: Tensor, seed: int, step: int, *, all_channels: bool = False) -> int:
    """Reinitialise the dead channels of a collapsed network, or `all_channels`; return how many.

    Layer by layer, a channel that is never positive on `images` (N, C, H, W, preprocessed), or constant, gets new
    random weights, scaled and shifted to zero mean and unit standard deviation on these images (as in Mishkin and Matas
    2015). The last layer is always reinitialised, with small maps around one, so that its ReLU is active everywhere and
    the loss starts at ln(K) with a gradient.
    """
    source = generator(seed, "repair", step)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    reinitialised = 0
    with eval_mode(model):
        for layer in layers:
            outputs = layer_output(layer, model, images)
            if outputs is None:
                continue
            is_last = layer is model.last_layer
            if is_last or all_channels:
                channels = torch.ones_like(outputs[0, :, 0, 0], dtype=torch.bool)
            else:
                channels = dead_channels(outputs)
            if channels.any():
                weights = torch.randn(layer.weight.shape, generator=source) * math.sqrt(2 / layer.weight[0].numel())
                layer.weight[channels] = weights.to(layer.weight)[channels]
                outputs = layer_output(layer, model, images)
                if outputs is not None:
                    rescale(layer, outputs, channels, *((0.1, 1.0) if is_last else (1.0, 0.0)))
                reinitialised += int(channels.sum())
    return reinitialised


def dead_channels(outputs: Tensor) -> Tensor:
    """Return a (K,) bool mask of the channels of (N, K, h, w) that are never positive, or constant."""
    high, low = outputs.amax((0, 2, 3)), outputs.amin((0, 2, 3))
    return (high <= 0) | (high - low <= TOLERANCE * high.abs())


def rescale(layer: nn.Conv2d | nn.Linear, outputs: Tensor, channels: Tensor, deviation: float, mean: float) -> None:
    """Scale and shift output channels (N, K, h, w) of a layer to the given standard deviation and mean."""
    bias = layer.bias if layer.bias is not None else outputs.new_zeros(len(layer.weight))
    spread = outputs.std((0, 2, 3))
    # The input may be constant: then there is nothing to scale.
    scale = torch.where(spread > TOLERANCE * outputs.abs().amax(), deviation / spread, torch.ones_like(spread))
    shift = mean - (outputs.mean((0, 2, 3)) - bias) * scale
    layer.weight[channels] = (layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)))[channels]
    if layer.bias is not None:
        layer.bias[channels] = shift[channels]


def layer_output(layer: nn.Module, model: Network, images: Tensor) -> Tensor | None:
    """Return the output of a layer as (N, K, h, w) in a forward pass of the images; None if it is not called.

    A linear layer has its channels last: (N, K) or (N, h, w, K).
    """
    seen: list[Tensor] = []  # copies, as the next ReLU works in place
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.float().clone()))
    try:
        model(images)
    finally:
        handle.remove()
    if not seen:
        return None
    if isinstance(layer, nn.Conv2d):
        return seen[0]
    return seen[0][:, :, None, None] if seen[0].ndim == 2 else seen[0].movedim(-1, 1)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
