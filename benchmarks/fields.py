"""Compare receptive fields of well-known networks: this package, gradients, and other libraries.

    python benchmarks/fields.py                               write results/fields.json and the table in docs/profile.md
    python benchmarks/fields.py --only resnet18 nin_cifar10   recompute these networks, keep the results of the others

Gradients (gradients.py) verify this package: cells of the last feature maps see exactly the reported pixels, and on a
strip that contains a whole field, the middle cell sees exactly the reported number of rows. Other libraries take part
if they are installed: pip install --no-deps torchscan==0.1.2 receptivefield==0.5.0 rf-calc==0.0.7 (which needs pandas
and tabulate). torchscan no longer computes receptive fields after 0.1.2.
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
"""Cells to compare pixel by pixel."""
LONGEST = 2300
"""Maximum rows of a strip."""
CLASSIFIER = {"avgpool", "dropout", "fc", "classifier", "flatten", "AuxLogits", "aux1", "aux2"}


@dataclass(frozen=True)
class Network:
    """A network to compare, without its head."""

    name: str
    kind: str
    width: int = 64
    """Minimum columns of the strip."""
    power: float = 1.0
    """Exponent of the scaling of positive weights; lower for networks with very long paths."""

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
    """One of our networks up to the feature maps before its pool."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, h, w)."""
        maps: Tensor = self.network.forward_features(x)
        return maps


def body(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network up to its last feature maps, and its default input size (C, H, W)."""
    if name == "dilated resnet50":
        model, shape = open_network("torchvision:resnet50")
        block = type(next(model.get_submodule("layer1").children()))
        model = type(model)(block, [3, 4, 6, 3], replace_stride_with_dilation=[False, True, True])
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
    """Return one row of the table."""
    model, shape = body(network.name)
    began = time.process_time()
    profiled = profile(model, shape)
    seconds = time.process_time() - began
    rows, columns = last_field(profiled)
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
        "verified": same_cells(model, shape, profiled, network.power)
        and same_length(model, strip, rows.size, network.power),
    }
    return result | {"others": {name: library(model, strip) for name, library in LIBRARIES.items()}}


def last_field(profiled: Profile) -> tuple[AxisField, AxisField]:
    """Return the receptive field of the network's output; raise SystemExit if the output has no grid."""
    if profiled.field is None or any(axis.jump is None for axis in profiled.field):
        raise SystemExit(f"{profiled.model}: its output is no feature map")
    return profiled.field


def same_cells(model: nn.Module, shape: tuple[int, int, int], profiled: Profile, power: float) -> bool:
    """Return whether gradients confirm the pixels that CELLS of the last feature maps see."""
    rows, columns = last_field(profiled)
    size, seen = seen_by(model, shape, CELLS, power)
    expected = [(rows.spans[row], columns.spans[column]) for row, column in CELLS]
    return size == (len(rows.spans), len(columns.spans)) and seen == expected


def same_length(model: nn.Module, strip: tuple[int, int, int], length: int, power: float) -> bool:
    """Return whether gradients confirm the length of the field of a cell in the middle of a strip."""
    rows, _ = last_field(profile(model, strip))
    whole = [cell for cell, (first, last) in enumerate(rows.spans) if last - first + 1 == length]
    if rows.size != length or not whole:
        return False
    middle = whole[len(whole) // 2]
    _, [(seen, _)] = seen_by(model, strip, [(middle, 0)], power)
    return seen == rows.spans[middle]


def table(result: dict[str, Any]) -> str:
    """Return the comparison as a Markdown table."""
    names = [f"{name} {version}" for name, version in result["versions"].items()]
    text = "| network | | `mlpconv`, verified | " + " | ".join(names) + " |\n" + "|---|" * (len(names) + 3)
    text = text.replace("||", "|") + "\n"
    for row in result["networks"]:
        own = f"**{row['field'][0]}**" if row["verified"] else f"{row['field'][0]} (not verified)"
        others = [cell_of(other, row["field"][0]) for other in row["others"].values()]
        text += f"| {row['network']} | {row['kind']} | {own} | " + " | ".join(others) + " |\n"
    return text


def cell_of(other: dict[str, Any], expected: int) -> str:
    """Return a library's result, bold if correct; a dash if it is not installed."""
    if "field" not in other:
        return str(other.get("failed", "-"))
    return f"**{other['field']}**" if other["field"] == expected else str(other["field"])


def write_table(result: dict[str, Any]) -> None:
    """Write the table between its markers in docs/profile.md."""
    begin, end = MARK.format("written by benchmarks/fields.py"), MARK.format("end")
    before, rest = PAGE.read_text("utf-8").split(begin)
    PAGE.write_text(before + begin + table(result) + end + rest.split(end)[1], "utf-8")


def earlier_rows() -> dict[str, dict[str, Any]]:
    """Return the rows of an earlier run by network name."""
    path = RESULTS / "fields.json"
    rows = json.loads(path.read_text("utf-8"))["result"]["networks"] if path.is_file() else []
    return {row["network"]: row for row in rows}


def main() -> int:
    """Compare all networks; return 1 if gradients contradict this package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=None, help="names of networks")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    rows = earlier_rows()
    for network in NETWORKS:
        if only is None or network.short in only:
            rows[network.short] = compare(network)
            print(table({"versions": versions(), "networks": [rows[network.short]]}).splitlines()[-1], flush=True)
    result = {
        "versions": versions(),
        "networks": [rows[network.short] for network in NETWORKS if network.short in rows],
    }
    write_table(result)
    print(f"written to {write_result('fields', result)} and {PAGE}")
    return int(not all(row["verified"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
