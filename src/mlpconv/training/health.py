"""The collapse at ln(classes): seeing it within an epoch, saying it in plain words, and curing it.

Where the last 1x1 is followed by a ReLU, as in the author's networks, one step too far makes every category map
negative everywhere. Outputs and gradients are then exactly zero, the loss is ln(K), and nothing ever moves again. The
same happens when a hidden layer dies. Either way every image gets the same answer, and that is what is looked for.
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

__all__ = ["CollapseWatch", "chance_loss", "collapse_error", "is_constant", "repair"]

SAME = 1e-6  # spread of a value over the images, relative to its size, below which all images look alike
NOTHING = 0.01  # how far below that of guessing an epoch's mean loss can be and still mean that nothing was learned
FEW = 0.1  # of the images outside the largest class: a network that gets so many right has learned something
SLACK = 0.1  # how far below that of guessing a loss can be and still be no better
MAX_PATIENCE = 50  # steps
LOOKED_AT = 64  # images of a batch that are enough to see whether they are told apart


def chance_loss(labels: Tensor) -> float:
    """The loss of giving every image the shares of the classes among `labels` (N,): ln(K) where they are equal."""
    shares = labels.bincount().double() / max(1, len(labels))
    return float(torch.special.entr(shares).sum())


class CollapseWatch:
    """Counts the steps in a row with a loss of guessing, and looks closer after some of them.

    Such a loss alone is no collapse: a healthy network starts with it. Nor are equal logits of a training step, as
    bfloat16 rounds small differences away; and dropout makes differences where there are none. So the network itself is
    asked, without either.
    """

    def __init__(self, labels: Tensor, steps_per_epoch: int, count: int = 0) -> None:
        self.chance_loss = chance_loss(labels)
        self.largest = float(labels.bincount().max()) / len(labels)
        self.threshold = self.chance_loss - SLACK
        self.patience = min(MAX_PATIENCE, max(2, steps_per_epoch // 2))
        self.count = count

    def nothing_learned(self, loss: float, accuracy: float) -> bool:
        """Whether an epoch's mean loss and accuracy are those of guessing: signals too small to learn from do that too.

        The loss alone says less: label smoothing and mixup keep that of a good network high.
        """
        return loss > self.chance_loss - NOTHING and accuracy <= self.largest + FEW * (1 - self.largest)

    def collapsed(self, loss: float, steps: int, model: Network, images: Tensor) -> bool:
        """Look at a loss and the images (N, C, H, W) of its step, `steps` after the look before."""
        self.count = self.count + steps if loss > self.threshold else 0
        if self.count < self.patience:
            return False
        self.count = 0
        return is_constant(model, images)


@torch.no_grad()
def is_constant(model: Network, images: Tensor) -> bool:
    """Whether the network gives different images (N, C, H, W) the same logits."""
    images = images[:LOOKED_AT]
    if bool((images == images[:1]).all()):
        return False
    with eval_mode(model):
        logits = model(images)
    return bool((logits.amax(0) - logits.amin(0)).max() <= SAME * logits.abs().max())


def collapse_error(loss: float, num_classes: int, step: int) -> CollapseError:
    """The error that says what happened and what to do."""
    return CollapseError(
        f"training collapsed by step {step}: the loss sits at {loss:.4f}, that of guessing (ln({num_classes} classes) "
        f"is {math.log(num_classes):.4f}), because a whole layer is dead (its ReLU outputs are zero for every image), "
        "so no gradient flows and nothing can be learned any more. Train again with "
        f"{option('on_collapse', 'repair')}, or avoid it: {option('last_relu', False)}, a lower lr, or "
        f"{option('norm', 'batch')}."
    )


@torch.no_grad()
def repair(model: Network, images: Tensor, seed: int, step: int, *, anew: bool = False) -> int:
    """Bring the dead channels of a collapsed network back to life, or all of them (`anew`); returns how many.

    Layer by layer, in order, a channel that is never positive on `images` (N, C, H, W, preprocessed), or the same
    everywhere, draws new weights, scaled and shifted to zero mean and unit deviation on them (as Mishkin and Matas 2015
    start whole networks). The last layer always does, with small maps around one, so that its ReLU passes everywhere
    and the loss starts at ln(K) with a gradient.
    """
    draw = generator(seed, "repair", step)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    revived = 0
    with eval_mode(model):
        for layer in layers:
            outputs = layer_output(layer, model, images)
            if outputs is None:
                continue
            is_last = layer is model.last_layer
            every = torch.ones_like(outputs[0, :, 0, 0], dtype=torch.bool)
            dead = every if is_last or anew else dead_channels(outputs)
            if dead.any():
                fresh = torch.randn(layer.weight.shape, generator=draw) * math.sqrt(2 / layer.weight[0].numel())
                layer.weight[dead] = fresh.to(layer.weight)[dead]
                drawn = layer_output(layer, model, images)
                if drawn is not None:
                    rescale(layer, drawn, dead, *((0.1, 1.0) if is_last else (1.0, 0.0)))
                revived += int(dead.sum())
    return revived


def dead_channels(outputs: Tensor) -> Tensor:
    """Which channels of (N, K, h, w) are never positive, or the same for every image and place: (K,) bool."""
    high, low = outputs.amax((0, 2, 3)), outputs.amin((0, 2, 3))
    return (high <= 0) | (high - low <= SAME * high.abs())


def rescale(layer: nn.Conv2d | nn.Linear, outputs: Tensor, channels: Tensor, deviation: float, mean: float) -> None:
    """Scale and shift some output channels (N, K, h, w) of a layer to that deviation and mean."""
    bias = layer.bias if layer.bias is not None else outputs.new_zeros(len(layer.weight))
    spread = outputs.std((0, 2, 3))
    # What comes in may itself be the same everywhere: then there is nothing to scale.
    scale = torch.where(spread > SAME * outputs.abs().amax(), deviation / spread, torch.ones_like(spread))
    shift = mean - (outputs.mean((0, 2, 3)) - bias) * scale
    layer.weight[channels] = (layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)))[channels]
    if layer.bias is not None:
        layer.bias[channels] = shift[channels]


def layer_output(layer: nn.Module, model: Network, images: Tensor) -> Tensor | None:
    """What a layer gives out, as (N, K, h, w), when the model sees the images; None where it takes no part.

    A linear layer has its channels last, after one place or after rows and columns of places.
    """
    seen: list[Tensor] = []  # copies: the ReLU that follows works in place
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
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
