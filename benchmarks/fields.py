"""Receptive fields of well-known networks: by this package, by gradients, and by other libraries.

    python benchmarks/fields.py            writes results/fields.json and the table in docs/profile.md
    python benchmarks/fields.py --only resnet18 nin_cifar10      those anew, the others as they were

What this package says is verified by gradients (gradients.py): cells of the last maps see exactly the pixels it names,
and on a strip of an image, long enough for one whole field, the middle cell sees exactly as many as it says. The other
libraries are compared where they are installed: pip install --no-deps torchscan==0.1.2 receptivefield==0.5.0
rf-calc==0.0.7 (the last one needs pandas and tabulate). torchscan stopped adding up fields after 0.1.2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from common import RESULTS, write_result
from gradients import seen_by
from others import LIBRARIES, versions
from torch import Tensor, nn

from mlpconv.analysis import AxisField, Profile, profile
from mlpconv.inference.open_network import open_network

PAGE = RESULTS.parents[1] / "docs" / "profile.md"
MARK = "<!-- fields: {} -->\n"
CELLS = ((0, 0), (2, 3), (-1, -1))
"""Cells whose pixels are compared one by one."""
LONGEST = 2300
"""Rows of the longest strip."""
CLASSIFIER = {"avgpool", "dropout", "fc", "classifier", "flatten", "AuxLogits", "aux1", "aux2"}


@dataclass(frozen=True)
class Network:
    """A network to look at, without its head."""

    name: str
    kind: str
    width: int = 64
    """The fewest columns of the strip."""
    power: float = 1.0
    """How much smaller positive weights are made; less for networks whose longest way is very long."""

    @property
    def short(self) -> str:
        """The name without the library."""
        return self.name.removeprefix("torchvision:")


NETWORKS = (
    Network("nin_cifar10", "a chain"),
    Network("nin_imagenet", "a chain"),
    Network("torchvision:vgg16", "a chain"),
    Network("torchvision:resnet18", "residual"),
    Network("torchvision:resnet50", "residual"),
    Network("dilated resnet50", "residual, dilated"),
    Network("torchvision:regnet_x_400mf", "residual, grouped"),
    Network("torchvision:mobilenet_v2", "residual, depthwise"),
    Network("torchvision:convnext_tiny", "residual, depthwise, linear layers"),
    Network("googlenet", "branches"),
    Network("torchvision:squeezenet1_1", "branches, pools rounded up"),
    Network("torchvision:inception_v3", "branches, 1×7 and 7×1", 107),
    Network("torchvision:shufflenet_v2_x1_0", "branches, shuffled channels"),
    Network("torchvision:densenet121", "every layer joined to all", power=0.5),
)


class Maps(nn.Module):
    """A network of ours up to the maps before its pool."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, h, w)."""
        return self.network.forward_features(x)


def body(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of this name up to its last maps, and (C, H, W) of its usual images."""
    if name == "dilated resnet50":
        model, shape = open_network("torchvision:resnet50")
        model = type(model)(type(model.layer1[0]), [3, 4, 6, 3], replace_stride_with_dilation=[False, True, True])
    else:
        model, shape = open_network(name)
    if not name.startswith("torchvision") and name != "dilated resnet50":
        return Maps(model).eval(), shape
    parts = [(key, part) for key, part in model.named_children() if key not in CLASSIFIER]
    chain = nn.Sequential()
    for key, part in parts:
        chain.add_module(key, part)
    return chain.eval(), shape


def compare(network: Network) -> dict[str, Any]:
    """One row of the table."""
    model, shape = body(network.name)
    began = time.process_time()
    found = profile(model, shape)
    seconds = time.process_time() - began
    rows, columns = last_field(found)
    jump = int(rows.jump or 1)
    strip = (shape[0], min(LONGEST, rows.size + 3 * jump), max(network.width, 4 * jump))
    result: dict[str, Any] = {
        "network": network.short,
        "kind": network.kind,
        "input": list(shape),
        "field": [rows.size, columns.size],
        "stride": [rows.jump, columns.jump],
        "profile_cpu_s": round(seconds, 3),
        "strip": list(strip),
        "verified": same_cells(model, shape, found, network.power)
        and same_length(model, strip, rows.size, network.power),
    }
    return result | {"others": {name: library(model, strip) for name, library in LIBRARIES.items()}}


def last_field(found: Profile) -> tuple[AxisField, AxisField]:
    """What the network's own output sees; SystemExit where its cells lie in no rows and columns."""
    if found.field is None or any(axis.jump is None for axis in found.field):
        raise SystemExit(f"{found.model}: its output is no map")
    return found.field


def same_cells(model: nn.Module, shape: tuple[int, int, int], found: Profile, power: float) -> bool:
    """Whether some cells of the last maps see exactly the pixels that they are said to see."""
    rows, columns = last_field(found)
    size, seen = seen_by(model, shape, CELLS, power)
    said = [(rows.spans[row], columns.spans[column]) for row, column in CELLS]
    return size == (len(rows.spans), len(columns.spans)) and seen == said


def same_length(model: nn.Module, strip: tuple[int, int, int], length: int, power: float) -> bool:
    """Whether a cell in the middle of a strip sees exactly as many rows as a field has."""
    rows, _ = last_field(profile(model, strip))
    whole = [cell for cell, (first, last) in enumerate(rows.spans) if last - first + 1 == length]
    if rows.size != length or not whole:
        return False
    middle = whole[len(whole) // 2]
    _, [(seen, _)] = seen_by(model, strip, [(middle, 0)], power)
    return seen == rows.spans[middle]


def table(result: dict[str, Any]) -> str:
    """The comparison as a table for the page."""
    names = [f"{name} {version}" for name, version in result["versions"].items()]
    text = "| network | | `mlpconv`, verified | " + " | ".join(names) + " |\n" + "|---|" * (len(names) + 3)
    text = text.replace("||", "|") + "\n"
    for row in result["networks"]:
        own = f"**{row['field'][0]}**" if row["verified"] else f"{row['field'][0]} (not verified)"
        others = [said(other, row["field"][0]) for other in row["others"].values()]
        text += f"| {row['network']} | {row['kind']} | {own} | " + " | ".join(others) + " |\n"
    return text


def said(other: dict[str, Any], right: int) -> str:
    """What a library says, bold where it is right; a dash where it is not installed, or cannot say."""
    if "field" not in other:
        return other.get("failed", "-")
    return f"**{other['field']}**" if other["field"] == right else str(other["field"])


def write_table(result: dict[str, Any]) -> None:
    """Put the table between its marks in docs/profile.md."""
    begin, end = MARK.format("written by benchmarks/fields.py"), MARK.format("end")
    before, rest = PAGE.read_text("utf-8").split(begin)
    PAGE.write_text(before + begin + table(result) + end + rest.split(end)[1], "utf-8")


def kept() -> dict[str, dict[str, Any]]:
    """The rows of an earlier run by the network's name."""
    path = RESULTS / "fields.json"
    rows = json.loads(path.read_text("utf-8"))["result"]["networks"] if path.is_file() else []
    return {row["network"]: row for row in rows}


def main() -> int:
    """Compare; ends with code 1 where a gradient says something else than this package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=None, help="names of networks")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    rows = kept()
    for network in NETWORKS:
        if only is None or network.short in only:
            rows[network.short] = compare(network)
            print(table({"versions": versions(), "networks": [rows[network.short]]}).splitlines()[-1], flush=True)
    result = {"versions": versions(), "networks": [rows[each.short] for each in NETWORKS if each.short in rows]}
    write_table(result)
    print(f"written to {write_result('fields', result)} and {PAGE}")
    return int(not all(row["verified"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
