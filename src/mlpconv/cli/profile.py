"""`mlpconv profile`: what a network costs and what it sees, layer by layer."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from torch import nn

    from mlpconv.analysis import Profile

__all__ = ["profile"]

WIDE = 240
"""Columns of the table where there is no terminal to say how many there are."""
SPARE = ("MAC/byte", "start", "padded", "output", "activation", "stride")
"""Columns that a narrow terminal can do without, the first one first."""
IMAGENET = (3, 224, 224)
VISION = "pip install 'mlpconv[vision]'"


def profile(
    model: str,
    /,
    *,
    input: Annotated[str | None, Parameter(name=["--input", "-i"])] = None,  # noqa: A002
    batch: int = 1,
    html: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Count parameters, multiply-adds and memory, and say what each layer sees of the image.

    One MAC is one multiply-add; biases, pooling and other elementwise work are counted apart.

    Parameters
    ----------
    model
        A model file, a run folder, an architecture such as nin_cifar10, or another library's: torchvision:resnet50,
        timm:convnext_tiny.
    input
        Channels, rows and columns of an image, as in 3x32x32; the model's own size if not given.
    batch
        Images at a time: work and bytes are those of all of them.
    html
        Also write a page with a picture and the table to this file.
    json
        Print one JSON object, for machines.
    """
    from mlpconv.analysis import profile as analyse
    from mlpconv.errors import UsageError
    from mlpconv.files import json_bytes, write_atomic

    given = _parse_size(input) if input is not None else None
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise UsageError(f"--html is {str(html)!r}; a file in a folder that exists is accepted.")
    network, usual = _find(model)
    result = analyse(network, given or usual, batch=batch)
    if html is not None:
        from mlpconv.analysis.page import as_page

        write_atomic(html, as_page(result).encode())
    if json:
        sys.stdout.write(json_bytes(result.to_dict()).decode())
    else:
        _print_table(result)
        if html is not None:
            print(f"Written: {html}")


def _parse_size(text: str) -> tuple[int, int, int]:
    """(C, H, W) from 3x32x32; UsageError for anything else."""
    from mlpconv.errors import UsageError

    numbers = re.fullmatch(r"(\d{1,6})[x×,](\d{1,6})[x×,](\d{1,6})", text.strip())
    if numbers is None or not all(int(number) for number in numbers.groups()):
        raise UsageError(f"--input is {text!r}; channels, rows and columns are accepted, as in 3x32x32.")
    channels, rows, columns = map(int, numbers.groups())
    return channels, rows, columns


def _find(given: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network that a path or name stands for, and the size of its usual images; a path goes before a name."""
    from mlpconv import bundle
    from mlpconv.errors import ModelFileError, UsageError, did_you_mean
    from mlpconv.models.registry import create_model, list_models

    library, _, name = given.partition(":")
    if library in _LIBRARIES and name:
        return _LIBRARIES[library](name)
    if not os.path.lexists(given) and given in list_models():
        network = create_model(given)
        return network, network.input_size
    try:
        classifier = bundle.load(given)
    except ModelFileError:
        if os.path.lexists(given):
            raise
        raise UsageError(
            f"There is no file, run folder or architecture {given[:300]!r}; {did_you_mean(given, list_models())} "
            "Of other libraries: torchvision:NAME or timm:NAME."
        ) from None
    return classifier.model, classifier.input_size


def _from_torchvision(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """One of torchvision's architectures, with random weights."""
    models = _vision("torchvision.models")
    return _named("torchvision", name, models.list_models(), lambda: models.get_model(name, weights=None)), IMAGENET


def _from_timm(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """One of timm's architectures, with random weights, for the size that it states."""
    timm = _vision("timm")
    network = _named("timm", name, timm.list_models(), lambda: timm.create_model(name, pretrained=False))
    channels, rows, columns = getattr(network, "default_cfg", {}).get("input_size", IMAGENET)
    return network, (channels, rows, columns)


def _named(library: str, name: str, accepted: list[str], make: Any) -> nn.Module:
    """What `make` makes, if the library has this name."""
    import difflib

    from mlpconv.errors import UsageError

    if name not in accepted:
        near = difflib.get_close_matches(name, accepted, n=5, cutoff=0.4)
        hint = f"near it: {', '.join(near)}" if near else f"it has {len(accepted)} others"
        raise UsageError(f"{library} has no architecture {name!r}; {hint}.")
    network: nn.Module = make()
    return network


def _vision(module: str) -> Any:
    """A library of the vision extra; UsageError where it is not installed.

    Beside a PyTorch of another build torchvision's compiled operators are missing and its import fails over their
    names; the names alone are enough to build its networks.
    """
    from importlib import import_module

    import torch

    from mlpconv.errors import UsageError

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(f"{module.partition('.')[0]} is not installed; {VISION} brings it.") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]
    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return import_module(module)


def _print_table(result: Profile) -> None:
    """The table for people; columns that a narrow terminal has no room for are left out, and named."""
    from rich.console import Console

    from mlpconv.analysis.table import COLUMNS, heading, summary

    console, shown = Console(highlight=False), list(COLUMNS)
    if not console.is_terminal:
        console.width = WIDE
    room = console.options.update(max_width=2 * WIDE)
    for column in SPARE:
        if console.measure(_table(result, shown), options=room).maximum > console.width:
            shown.remove(column)
    print(heading(result))
    console.print(_table(result, shown))
    hidden = [column for column in COLUMNS if column not in shown]
    if hidden:
        print(f"No room for {', '.join(hidden)}: use a wider terminal or --json.")
    for line in summary(result):
        print(line)


def _table(result: Profile, shown: list[str]) -> Any:
    """The table with these columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from mlpconv.analysis.table import COLUMNS, LEFT, cells, totals_cells

    table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    keep = [index for index, column in enumerate(COLUMNS) if column in shown]
    foot = totals_cells(result)
    for index in keep:
        side: Any = "left" if index < LEFT else "right"
        table.add_column(COLUMNS[index], foot[index], justify=side, no_wrap=True, overflow="ellipsis")
    for row in result.rows:
        texts = cells(row)
        table.add_row(*(Text(texts[index]) for index in keep))
    return table


_LIBRARIES = {"torchvision": _from_torchvision, "timm": _from_timm}
