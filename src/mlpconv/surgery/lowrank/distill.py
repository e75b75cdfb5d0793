"""A short training after surgery, on the images at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery.lowrank.activation_stats import outputs_of
from mlpconv.surgery.lowrank.batches import LabelledBatch
from mlpconv.surgery.proof.compare import flat_tensors

__all__ = ["distill"]

RATE = 1e-4
"""Adam's: the network is nearly right, and a large step would forget why."""
LEAST = 1e-12


def distill(model: nn.Module, original: nn.Module, batches: Sequence[LabelledBatch], steps: int) -> None:
    """In place: `steps` steps of Adam, a batch each, towards what the original says (Hinton et al., arXiv 1503.02531).

    The images at hand are few, and the original knows more about them than their labels tell. In eval mode, so that
    norms and dropout stay as they are; the learning rate falls to 0 along a cosine. Raises SurgeryError where no
    parameter may be trained or the loss is no number.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise SurgeryError("fine_tune has nothing to train: no parameter of the network requires gradients.")
    targets = [outputs_of(original, [batch]) for batch in batches]
    optimizer = torch.optim.Adam(trained, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    order: list[int] = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        number = order.pop()
        loss = _missed(model, batches[number].images, targets[number])
        if not bool(loss.isfinite()):
            raise SurgeryError(
                "The loss became NaN or infinite in fine_tune: train the new network with your own loop."
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.zero_grad()
    for module, training in modes.items():
        module.training = training


def _missed(model: nn.Module, images: Tensor, wanted: Tensor) -> Tensor:
    """The share of the wanted outputs' variance that is missed."""
    weight = next(model.parameters())
    with torch.enable_grad():
        parts = [part.flatten(1) for _, part in flat_tensors(model(images.to(weight.device, weight.dtype)))]
    outputs, wanted = torch.cat(parts, 1).float(), wanted.to(weight.device)
    return (outputs - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum().clamp_min(LEAST)
