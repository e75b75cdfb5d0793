"""Our own networks stay our own under surgery: their configuration says what they are, so that a file can hold them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import nn

from mlpconv.errors import SurgeryError, UsageError
from mlpconv.layers import MLPConv
from mlpconv.models import NIN, Network
from mlpconv.models.blocks import STD, NINConfig
from mlpconv.models.folding import fold_norm
from mlpconv.models.ranks import Ranks, parts_of
from mlpconv.surgery.insertion import Insert
from mlpconv.surgery.proof.accept import check_shape
from mlpconv.surgery.tracing.graph import replace_module

__all__ = ["check_deeper", "deeper_nin", "folded_own", "kept_own", "nin_block", "own_shape", "slimmed_own"]

CONV = re.compile(r"blocks\.(\d+)\.convs\.(\d+)")
WHOLE: Ranks = (0, 0)


def own_shape(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) as the network itself names it, ours and timm's do; UsageError for others."""
    config = getattr(model, "default_cfg", None)
    size = getattr(model, "input_size", None) or (config.get("input_size") if isinstance(config, dict) else None)
    if not isinstance(size, tuple | list):
        raise UsageError(f"{type(model).__name__} does not say which images it takes: give input_shape=(C, H, W).")
    return check_shape(size)


def folded_own(model: Network) -> tuple[Network, tuple[str, ...], dict[str, str]]:
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
            replace_module(made, name, nn.Dropout(0.0) if name.startswith("head") else nn.Identity())
            gone.append(name)
    made.config = replace(cast("NINConfig", made.config), dropout=0.0)
    return made, tuple(gone), kept


def nin_block(model: nn.Module, where: str) -> int | None:
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


def deeper_nin(model: NIN, block: int, insert: Insert) -> None:
    """In place: one more 1x1 at the end of a block, with norm and activation as its configuration has them."""
    config, old = model.config, cast("MLPConv", model.blocks[block])
    like = parts_of(old.convs[-1])[-1].weight
    parts = insert.build(like)
    norm: nn.Module = cast("nn.Module", parts.norm) if insert.norm else nn.Identity()
    if block == len(model.blocks) - 1 and insert.norm:
        # The network's last convolution has none; the one that was last now is not.
        old.norms[-1], norm = norm, nn.Identity()
    mode = old.training
    for store, module in ((old.convs, parts.conv), (old.norms, norm), (old.activations, old.activations[-1])):
        store.append(copy.deepcopy(cast("nn.Module", module)).train(mode))
    grown = config.blocks[block]
    stds = (*grown.stds, STD) if grown.stds else ()
    ranks = (*grown.ranks, WHOLE) if grown.ranks else ()
    grown = replace(grown, channels=(*grown.channels, grown.channels[-1]), stds=stds, ranks=ranks)
    model.config = replace(config, blocks=(*config.blocks[:block], grown, *config.blocks[block + 1 :]))


def kept_own(model: nn.Module, name: str) -> str:
    """Why a layer of one of our networks keeps its rank; empty where it need not, and for other networks."""
    if not isinstance(model, NIN) or CONV.match(name):
        return ""
    return "is the fully connected head, for which its architecture has no rank"


def slimmed_own(model: nn.Module, ranks: Mapping[str, Ranks]) -> None:
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
