"""Operations that change a network of ours and its configuration together, so that a model file can hold the result."""

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
    """The network without norms where that is exact, and dropout; the names of what is gone, and why what stays."""
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    kept: dict[str, str] = {}
    try:
        made = fold_norm(model)
    except UsageError as error:
        made, kept = copy.deepcopy(model), dict.fromkeys(norms, str(error))
    gone = [name for name in norms if name not in kept]
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Dropout) and not name.startswith("aux"):
            # In the head it holds a place in a Sequential, which its configuration counts.
            made.set_submodule(
                name, (nn.Dropout(0.0) if name.startswith("head") else nn.Identity()).train(module.training)
            )
            gone.append(name)
    made.config = replace(cast("Any", made.config), dropout=0.0)
    return made, tuple(gone), kept


def block_of(model: nn.Module, where: str) -> int | None:
    """The number of the block that a name stands for in one of our networks; None for any other name or network."""
    found = re.fullmatch(r"blocks\.(\d+)", where) if isinstance(model, NIN) else None
    return int(found[1]) if found else None


def check_deeper(model: NIN, block: int, *, exact: bool) -> None:
    """Refuse, with the reason, a block behind whose end no 1x1 can stand that changes nothing: SurgeryError."""
    config, old = model.config, cast("MLPConv", model.blocks[block])
    where, final = f"blocks.{block}", old.norms[-1]
    if block == len(model.blocks) - 1 and not config.last_relu:
        raise SurgeryError(
            f"{where} ends in the category maps, which no activation follows, and one behind them would change the "
            "logits: name an earlier block."
        )
    if exact and config.activation not in ("relu", "maxout", "identity"):
        raise SurgeryError(
            f"{where} ends in {config.activation}, which does not give back what it made: use init='he' and train."
        )
    if exact and isinstance(final, nn.BatchNorm2d) and old.pool_at == "conv" and bool((final.weight < 0).any()):
        raise SurgeryError(
            f"{where}.norms.{len(old.norms) - 1} has negative weights, which turn the maximum of the pool before it "
            "round; a 1x1 between the two undoes that: name another block."
        )


def last_conv_of(model: NIN, block: int) -> nn.Conv2d:
    """Return the last convolution of a block."""
    return parts_of(cast("MLPConv", model.blocks[block]).convs[-1])[-1]


def add_pointwise(model: NIN, block: int, conv: nn.Module, norm: nn.Module | None) -> None:
    """Append a 1x1 convolution to a block, in place, with the activation that its configuration has."""
    config, old = model.config, cast("MLPConv", model.blocks[block])
    normed, norm = norm is not None, norm or nn.Identity()
    if block == len(model.blocks) - 1 and normed:
        # The network's last convolution has none; the one that was last now is not.
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
    """Why a layer of one of our networks keeps its rank; empty where it need not, and for other networks."""
    if not isinstance(model, NIN) or CONV.match(name):
        return ""
    return "is the fully connected head, for which its architecture has no rank"


def set_ranks(model: nn.Module, ranks: Mapping[str, Ranks]) -> None:
    """In place: the configuration of a network whose convolutions of these names are computed at these ranks.

    A network that was slimmed before is left with the one that it has, which cannot say how it is now.
    """
    places = {name: re.fullmatch(CONV, name) for name in ranks}
    if not isinstance(model, NIN) or not all(places.values()):
        return
    blocks = list(model.config.blocks)
    for name, place in places.items():
        block, conv = (int(number) for number in cast("re.Match[str]", place).groups())
        pairs = list(blocks[block].ranks or (WHOLE,) * len(blocks[block].channels))
        pairs[conv] = ranks[name]
        blocks[block] = replace(blocks[block], ranks=tuple(pairs))
    model.config = replace(model.config, blocks=tuple(blocks))
