"""Batch norm, linear layers in a row, dropout and identities folded into what is left: the same outputs, fewer steps.

In eval mode a batch norm multiplies and adds one number a channel, which the convolution before it, or after it, can
do on its own. Two convolutions with nothing between them are one, where one of them is a 1x1.
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
from mlpconv.surgery.folding.rules import Folding
from mlpconv.surgery.proof.accept import check_model, deep_copy
from mlpconv.surgery.proof.compare import Proof, in_float64, random_images
from mlpconv.surgery.proof.prove import prove
from mlpconv.surgery.proof.replaceable import find_irreplaceable
from mlpconv.surgery.report import Surgery, make_report
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["fold"]

SHOWN = 5
"""Norms named in a note; the report's details name all."""


def fold(model: nn.Module, input_shape: tuple[int, int, int] | None = None, images: Tensor | None = None) -> Surgery:
    """The network without batch norms, dropout and identities, as far as the same outputs in eval mode allow.

    Batch norms go into the convolution or linear layer before them, also through a pool, or into those after them where
    these do not pad with zeros. Linear layers in a row become one where that takes no more multiply-adds. What is gone
    leaves its Sequential, or an Identity where the forward pass asks for it by name; all other names stay. One of our
    own networks becomes the same network with norm=None. What stays is in the report, with the reason.

    `input_shape` is (C, H, W), by default the network's own `input_size` (ours and timm's have one). Outputs are
    compared on random images, and on `images` (N, C, H, W) if given, before anything is returned. They are those of
    eval mode, also for a network in train mode, in which the new one then is, too.
    Raises UsageError where no size is known, SurgeryError for a network that surgery refuses.
    """
    model = check_model(model)
    shape = check_input_shape(input_shape or input_shape_of(model))
    changed: nn.Module
    if isinstance(model, Network):
        changed, names, kept = fold_network(model)
        proof = prove(model, changed, shape, images, precise=fold_network(in_float64(model))[0])
    else:
        folding, changed, proof = _folded(model, shape, images)
        names, kept = tuple(folding.changes), folding.kept
    notes, details = _notes(model, names, kept), {"kept": kept}
    return Surgery(
        changed, make_report("fold", model, changed, shape, proof, names=names, notes=notes, details=details)
    )


def _folded(model: nn.Module, shape: tuple[int, int, int], images: Tensor | None) -> tuple[Folding, nn.Module, Proof]:
    """What was folded, and the network, proven; modules of which the forward pass reads an attribute stay."""
    folding = Folding(in_float64(model), shape)
    folding.run()
    try:
        return folding, *_proven(model, folding.changes, shape, images)
    except Exception:
        # Attributes that are no tensors stand in no graph: without the module that has them anything may happen.
        original = in_float64(model).eval()
        read = find_irreplaceable(original, list(folding.changes), random_images(1, shape).double())
        if not read:
            raise
    reasons = {name: f"the forward pass uses {name} for more than its output" for name in read}
    folding = Folding(in_float64(model), shape, reasons)
    folding.run()
    return folding, *_proven(model, folding.changes, shape, images)


def _proven(
    model: nn.Module, changes: Mapping[str, nn.Module], shape: tuple[int, int, int], images: Tensor | None
) -> tuple[nn.Module, Proof]:
    """The network with the changes, proven; identities leave their Sequential unless the forward counts on them."""
    original = in_float64(model)
    for remove in (True, False):
        changed = _applied(model, changes, remove=remove)
        try:
            proof = prove(model, changed, shape, images, precise=_applied(original, changes, remove=remove))
        except Exception:
            # A forward pass that counts or names the parts of a Sequential may fail in any way without them.
            if not remove:
                raise
        else:
            break
    return changed, proof


def _applied(model: nn.Module, changes: Mapping[str, nn.Module], *, remove: bool) -> nn.Module:
    """A copy of the network with these modules for those of their names."""
    made = deep_copy(model)
    for name, module in changes.items():
        like = next(iter(made.get_submodule(name).parameters()), torch.empty(0))
        replace_module(made, name, copy.deepcopy(module).to(like.device, like.dtype))
    if remove:
        gone = {made.get_submodule(name) for name, module in changes.items() if isinstance(module, nn.Identity)}
        for parent in [each for each in made.modules() if type(each) is nn.Sequential]:
            for key in [key for key, child in parent._modules.items() if child in gone]:
                del parent._modules[key]  # the others keep their names
    return made


def _notes(model: nn.Module, names: Sequence[str], kept: Mapping[str, str]) -> list[str]:
    """What became of the norms, in words."""
    notes = [] if names else ["There was nothing to fold."]
    norms = (nn.modules.batchnorm._BatchNorm,)
    if any(module.training for module in model.modules() if isinstance(module, norms)):
        notes.append("The network is in train mode; what is folded computes what it would compute in eval mode.")
    if kept:
        alike: dict[str, list[str]] = {}
        for name, reason in islice(kept.items(), SHOWN):
            alike.setdefault(reason, []).append(name)
        first = ", ".join(f"{', '.join(norms)} ({reason})" for reason, norms in alike.items())
        more = f", and {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
        stay = "batch norm stays" if len(kept) == 1 else "batch norms stay"
        notes.append(f"{len(kept)} {stay}: {first}{more}.")
    return notes
