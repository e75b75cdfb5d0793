"""Fine-tune a factorized network by distillation from the original, on the calibration images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.lowrank.activation_stats import outputs_of
from mlpconv.surgery.lowrank.batches import LabelledBatch
from mlpconv.surgery.proof.compare import flat_tensors

__all__ = ["distill"]

LEARNING_RATE = 1e-4
"""Of Adam; small, since the network is already close to the original."""
MIN_VARIANCE = 1e-12


def distill(model: nn.Module, original: nn.Module, batches: Sequence[LabelledBatch], steps: int) -> None:
    """Train `model` in place, for `steps` steps of Adam, towards the outputs of `original`.

    This is distillation (Hinton et al., arXiv 1503.02531): for a few images the original's outputs carry more
    information than labels. Training is in eval mode, so that batch norm keeps its statistics and dropout is off; the
    learning rate follows a cosine to 0. Raises SurgeryError if no parameter requires gradients or the loss is not
    finite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise SurgeryError("fine_tune has nothing to train: no parameter of the network requires gradients.")
    targets = [outputs_of(original, [batch]) for batch in batches]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    order: list[int] = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        index = order.pop()
        loss = _loss(model, batches[index].images, targets[index])
        if not bool(loss.isfinite()):
            raise SurgeryError(
                "The loss became NaN or infinite in fine_tune: train the factorized network with a loop of your own."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.zero_grad()
    for module, training in modes.items():
        module.training = training


def _loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error as a fraction of the targets' variance."""
    weight = next(model.parameters())
    with torch.enable_grad():
        tensors = [tensor.flatten(1) for _, tensor in flat_tensors(model(images.to(weight.device, weight.dtype)))]
    outputs, targets = torch.cat(tensors, 1).float(), targets.to(weight.device)
    return (outputs - targets).square().sum() / (targets - targets.mean(0)).square().sum().clamp_min(MIN_VARIANCE)
