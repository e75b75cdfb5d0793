"""Edits of a network, each of one convolution, in the short form that the page's address holds.

s3.17:0.5   scale filter 17 of step 3 (weights and bias) by 0.5; 0 drops the channel
w3.17.5:2   set weight 5 of filter 17 of step 3
i3          replace step 3, a 1x1 with as many filters as channels, by the identity
r3.8        cut the rank of step 3's weight matrix (filters by inputs) to 8
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlpconv.errors import UsageError
from mlpconv.explorer.program import Program

__all__ = ["Edit", "apply", "parse_edits"]

MOST = 200
FORM = re.compile(
    r"(?P<kind>[swir])(?P<step>\d{1,6})(?:\.(?P<first>\d{1,7}))?(?:\.(?P<second>\d{1,8}))?"
    r"(?::(?P<number>-?\d*\.?\d+(?:e-?\d+)?))?"
)
PARTS = {"s": (True, False, True), "w": (True, True, True), "i": (False, False, False), "r": (True, False, False)}


@dataclass(frozen=True)
class Edit:
    """One edit: `kind` is s, w, i or r; see the module's docstring."""

    kind: str
    step: int
    first: int = 0
    second: int = 0
    number: float = 0.0


def parse_edits(text: str, program: Program) -> tuple[Edit, ...]:
    """Return the edits that a comma-separated text lists, in order; raise UsageError for one that does not fit."""
    words = [word for word in text.split(",") if word]
    if len(words) > MOST:
        raise UsageError(f"Got {len(words)} edits; at most {MOST} are accepted.")
    return tuple(_parse(word, program) for word in words)


def _parse(word: str, program: Program) -> Edit:
    match = FORM.fullmatch(word)
    if match is None or PARTS[match["kind"]] != tuple(match[key] is not None for key in ("first", "second", "number")):
        raise UsageError(f"{word[:40]!r} is not an edit; accepted are s3.17:0.5, w3.17.5:2, i3 and r3.8.")
    edit = Edit(
        match["kind"], int(match["step"]), int(match["first"] or 0), int(match["second"] or 0),
        float(match["number"] or 0),
    )  # fmt: skip
    if edit.step >= len(program.steps) or program.steps[edit.step]["op"] != "conv" or not math.isfinite(edit.number):
        raise UsageError(f"The edit {word[:40]!r} needs a step that is a convolution and a finite number.")
    weight = _parameters(program, edit.step)[0]
    filters, size = len(weight), weight[0].numel()
    fits = {
        "s": edit.first < filters,
        "w": edit.first < filters and edit.second < size,
        "r": 1 <= edit.first <= min(filters, size),
        "i": _can_be_identity(program, edit.step),
    }
    if not fits[edit.kind]:
        raise UsageError(f"The edit {word[:40]!r} does not fit a convolution with {filters} filters of {size} weights.")
    return edit


def _can_be_identity(program: Program, step: int) -> bool:
    settings = program.steps[step]
    plain = settings["kernel"] == settings["stride"] == [1, 1] and settings["padding"] == [0, 0]
    return bool(plain and settings["groups"] == 1 and settings["in"] == settings["shape"][0])


def _parameters(program: Program, step: int) -> tuple[Tensor, Tensor | None]:
    module = program.module(step)
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise UsageError(f"Step {step} has no weights.")
    return module.weight.detach(), None if module.bias is None else module.bias.detach()


def apply(edits: tuple[Edit, ...], program: Program) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return the edited weight and bias of each edited module, by its name, in the program's precision."""
    changed: dict[str, tuple[Tensor, Tensor | None]] = {}
    for edit in edits:
        name = program.steps[edit.step]["name"]
        if name not in changed:
            weight, bias = _parameters(program, edit.step)
            changed[name] = weight.clone(), None if bias is None else bias.clone()
        changed[name] = _edited(edit, *changed[name])
    return changed


def _edited(edit: Edit, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    rows = weight.reshape(len(weight), -1)  # (filters, inputs), a copy for channels-last weights
    if edit.kind == "s":
        rows[edit.first] *= edit.number
        if bias is not None:
            bias[edit.first] *= edit.number
    elif edit.kind == "w":
        rows[edit.first, edit.second] = edit.number
    elif edit.kind == "i":
        rows = torch.eye(len(rows), dtype=rows.dtype)
        bias = None if bias is None else torch.zeros_like(bias)
    else:
        u, s, v = torch.linalg.svd(rows, full_matrices=False)
        rows = (u[:, : edit.first] * s[: edit.first]) @ v[: edit.first]
    return rows.reshape(weight.shape), bias
