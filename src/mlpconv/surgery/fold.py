"""Fold batch norms, consecutive linear layers, dropout and identities: the same outputs with fewer operations.

In eval mode a batch norm scales and shifts each channel, which the convolution before or after it can do with its
weight and bias. Two consecutive convolutions merge into one if one of them is a 1x1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from mlpconv.analysis.input_shape import check_input_shape, input_shape_of
from mlpconv.models import Network
from mlpconv.models.reconfigure import fold_network
from mlpconv.models.timm_network import TimmNetwork
from mlpconv.surgery.folding.rules import Folding
from mlpconv.surgery.proof.compare import Proof, in_float64, random_images
from mlpconv.surgery.proof.prove import prove
from mlpconv.surgery.proof.replaceable import find_irreplaceable
from mlpconv.surgery.report import Surgery, make_report
from mlpconv.surgery.tracing.accept import check_model, deep_copy
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["fold"]

SHOWN = 5
"""Number of norms named in a note; the report's details name all of them."""


def fold(model: nn.Module, input_shape: tuple[int, int, int] | None = None, images: Tensor | None = None) -> Surgery:
    """Remove batch norms, dropout and identities without changing the outputs in eval mode.

    A batch norm is folded into the convolution or linear layer before it, also across a pool, or into the layers after
    it if they do not pad with zeros. Consecutive linear layers are merged if that needs no more multiply-adds. A folded
    module is removed from its Sequential, or replaced by an Identity if the forward pass uses its name; all other names
    stay. A network of this package becomes the same network with norm=None. The report lists each batch norm that
    stays, with the reason.

    `input_shape` is (C, H, W); the default is the network's `input_size` (networks of this package and of timm have
    one). Before the result is returned, its outputs are compared with the original's on random images, and on `images`
    (N, C, H, W) if given. The comparison is in eval mode; the result is in the mode of `model`.
    Raises UsageError if no input size is known, SurgeryError for a network that surgery does not support.
    """
    model = check_model(model)
    shape = check_input_shape(input_shape or input_shape_of(model))
    folded: nn.Module
    if isinstance(model, Network) and not isinstance(model, TimmNetwork):
        folded, names, kept = fold_network(model)
        proof = prove(model, folded, shape, images, precise=fold_network(in_float64(model))[0])
    else:
        folding, folded, proof = _fold_any(model, shape, images)
        names, kept = tuple(folding.changes), folding.kept
    notes, details = _notes(model, names, kept), {"kept": kept}
    return Surgery(folded, make_report("fold", model, folded, shape, proof, names=names, notes=notes, details=details))


def _fold_any(model: nn.Module, shape: tuple[int, int, int], images: Tensor | None) -> tuple[Folding, nn.Module, Proof]:
    """Fold a network of any class and prove the result; modules whose attributes the forward pass reads stay."""
    folding = Folding(in_float64(model), shape)
    folding.run()
    try:
        return folding, *_apply_and_prove(model, folding.changes, shape, images)
    except Exception:
        # The graph does not show attributes that are not tensors, so a forward pass that reads one may fail in any way.
        original = in_float64(model).eval()
        irreplaceable = find_irreplaceable(original, list(folding.changes), random_images(1, shape).double())
        if not irreplaceable:
            raise
    reasons = {name: f"the forward pass uses {name} for more than its output" for name in irreplaceable}
    folding = Folding(in_float64(model), shape, reasons)
    folding.run()
    return folding, *_apply_and_prove(model, folding.changes, shape, images)


def _apply_and_prove(
    model: nn.Module, changes: Mapping[str, nn.Module], shape: tuple[int, int, int], images: Tensor | None
) -> tuple[nn.Module, Proof]:
    """Return the folded network and its proof, with identities removed from their Sequential if the forward allows."""
    original = in_float64(model)
    for remove in (True, False):
        folded = _apply(model, changes, remove=remove)
        try:
            proof = prove(model, folded, shape, images, precise=_apply(original, changes, remove=remove))
        except Exception:
            # A forward pass that counts or names the children of a Sequential may fail in any way without them.
            if not remove:
                raise
        else:
            break
    return folded, proof


def _apply(model: nn.Module, changes: Mapping[str, nn.Module], *, remove: bool) -> nn.Module:
    """Return a copy of the network with the named modules replaced."""
    folded = deep_copy(model)
    for name, module in changes.items():
        like = next(iter(folded.get_submodule(name).parameters()), torch.empty(0))
        replace_module(folded, name, copy.deepcopy(module).to(like.device, like.dtype))
    if remove:
        identities = {folded.get_submodule(name) for name, new in changes.items() if isinstance(new, nn.Identity)}
        for parent in [module for module in folded.modules() if type(module) is nn.Sequential]:
            for key in [key for key, child in parent._modules.items() if child in identities]:
                del parent._modules[key]  # the other children keep their names
    return folded


def _notes(model: nn.Module, names: Sequence[str], kept: Mapping[str, str]) -> list[str]:
    """Say which norms stay, and why."""
    notes = [] if names else ["There was nothing to fold."]
    norms = (nn.modules.batchnorm._BatchNorm,)
    if any(module.training for module in model.modules() if isinstance(module, norms)):
        notes.append("The network is in train mode; the folded network computes what the original does in eval mode.")
    if kept:
        names_by_reason: dict[str, list[str]] = {}
        for name, reason in islice(kept.items(), SHOWN):
            names_by_reason.setdefault(reason, []).append(name)
        shown = ", ".join(f"{', '.join(group)} ({reason})" for reason, group in names_by_reason.items())
        rest = f", and {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
        stay = "batch norm stays" if len(kept) == 1 else "batch norms stay"
        notes.append(f"{len(kept)} {stay}: {shown}{rest}.")
    return notes
