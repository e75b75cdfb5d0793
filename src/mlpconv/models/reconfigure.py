"""Change a network of this package together with its configuration, so that a model file can hold the result."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import nn

from mlpconv.errors import SurgeryError, UsageError
from mlpconv.layers import MLPConv
from mlpconv.models.base import Network
from mlpconv.models.blocks import STD
from mlpconv.models.folding import fold_norm
from mlpconv.models.nin import NIN
from mlpconv.models.ranks import Ranks, parts_of

__all__ = ["add_pointwise", "block_of", "check_deeper", "fold_network", "last_conv_of", "rank_reason", "set_ranks"]

CONV = re.compile(r"blocks\.(\d+)\.convs\.(\d+)")
WHOLE: Ranks = (0, 0)


def fold_network(model: Network) -> tuple[Network, tuple[str, ...], dict[str, str]]:
    """Return the network without batch norm and dropout, the names removed, and the norms that stay with the reason."""
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kept: dict[str, str] = {}
    try:
        folded = fold_norm(model)
    except UsageError as error:
        folded, kept = copy.deepcopy(model), dict.fromkeys(norms, str(error))
    removed = [name for name in norms if name not in kept]
    for name, module in list(folded.named_modules()):
        if isinstance(module, nn.Dropout) and not name.startswith("aux"):
            # The head is a Sequential: without its dropout the names of its parameters would change.
            identity = nn.Dropout(0.0) if name.startswith("head") else nn.Identity()
            folded.set_submodule(name, identity.train(module.training))
            removed.append(name)
    folded.config = replace(cast("Any", folded.config), dropout=0.0)
    return folded, tuple(removed), kept


def block_of(model: nn.Module, where: str) -> int | None:
    """Return the index of the block with this name in a Network In Network; None for other names and networks."""
    match = re.fullmatch(r"blocks\.(\d+)", where) if isinstance(model, NIN) else None
    return int(match[1]) if match else None


def check_deeper(model: NIN, block: int, *, exact: bool) -> None:
    """Raise SurgeryError if no 1x1 can be appended to a block, or, with `exact`, not without changing the outputs."""
    config, old = model.config, cast("MLPConv", model.blocks[block])
    where, final = f"blocks.{block}", old.norms[-1]
    if block == len(model.blocks) - 1 and not config.last_relu:
        raise SurgeryError(
            f"{where} ends in the category maps without an activation, and adding one changes the logits: name an "
            "earlier block."
        )
    if exact and config.activation not in ("relu", "maxout", "identity"):
        raise SurgeryError(
            f"{where} ends in {config.activation}, and one more {config.activation} is not the identity: use init='he'."
        )
    if exact and isinstance(final, nn.BatchNorm2d) and old.pool_at == "conv" and bool((final.weight < 0).any()):
        raise SurgeryError(
            f"{where}.norms.{len(old.norms) - 1} has negative weights after a max-pool, and a 1x1 between them is "
            "not exact: name another block."
        )


def last_conv_of(model: NIN, block: int) -> nn.Conv2d:
    """Return the last convolution of a block."""
    return parts_of(cast("MLPConv", model.blocks[block]).convs[-1])[-1]


def add_pointwise(model: NIN, block: int, conv: nn.Module, norm: nn.Module | None) -> None:
    """Append a 1x1 convolution with the activation of the configuration to a block, in place."""
    config, old = model.config, cast("MLPConv", model.blocks[block])
    normed, norm = norm is not None, norm or nn.Identity()
    if block == len(model.blocks) - 1 and normed:
        # The last convolution of the network has no norm; the former last one gets it.
        old.norms[-1], norm = norm, nn.Identity()
    mode = old.training
    for store, module in ((old.convs, conv), (old.norms, norm), (old.activations, old.activations[-1])):
        store.append(copy.deepcopy(module).train(mode))
    grown = config.blocks[block]
    stds = (*grown.stds, STD) if grown.stds else ()
    ranks = (*grown.ranks, WHOLE) if grown.ranks else ()
    grown = replace(grown, channels=(*grown.channels, grown.channels[-1]), stds=stds, ranks=ranks)
    model.config = replace(config, blocks=(*config.blocks[:block], grown, *config.blocks[block + 1 :]))


def rank_reason(model: nn.Module, name: str) -> str:
    """Return why a layer of a Network In Network cannot be factorized; empty if it can, and for other networks."""
    if not isinstance(model, NIN) or CONV.match(name):
        return ""
    return "is the fully connected head, for which the configuration has no rank"


def set_ranks(model: nn.Module, ranks: Mapping[str, Ranks]) -> None:
    """Write the ranks of the named convolutions into the configuration of a Network In Network, in place.

    A configuration cannot describe a convolution that was factorized twice; then it stays as it is.
    """
    matches = {name: re.fullmatch(CONV, name) for name in ranks}
    if not isinstance(model, NIN) or not all(matches.values()):
        return
    blocks = list(model.config.blocks)
    for name, match in matches.items():
        block, conv = (int(number) for number in cast("re.Match[str]", match).groups())
        pairs = list(blocks[block].ranks or (WHOLE,) * len(blocks[block].channels))
        pairs[conv] = ranks[name]
        blocks[block] = replace(blocks[block], ranks=tuple(pairs))
    model.config = replace(model.config, blocks=tuple(blocks))
