"""The parts of a training step in several processes, and the step time that they predict.

    python benchmarks/processes.py             # measure, write results/processes.json, print the tables
    python benchmarks/processes.py --tables    # print the tables of the written results

Measures steps of nin_cifar10 with and without virtual shards in one process (CPU time), and the exchange of its
gradients between 2 and 4 processes on this machine (wall time). `predicted` is the model of docs/scaling.md.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import RESULTS, write_result

from mlpconv.data.sampler import Batch
from mlpconv.models import create_model
from mlpconv.training import Recipe
from mlpconv.training.optim import make_optimizers
from mlpconv.training.process_group import Group
from mlpconv.training.sharded_step import ShardedStep
from mlpconv.training.step import train_step

PARAMETERS, BATCH, STEPS, EXCHANGES = 966_986, 64, 12, 30
SIZES = (2, 4)
# A GPU and its network, from data sheets: 300,000 images/s is the unfused bound of docs/gpu.md, not a measurement.
GPU = {"images_per_s": 300_000.0, "bytes_per_s": 40e9, "latency_s": 15e-6, "message_s": 1e-6, "spread": 0.02}
GLOBAL_BATCH = 8192


def steps(shards: int) -> list[float]:
    """Return the CPU seconds of steps of nin_cifar10 with a number of virtual shards, after two to warm up."""
    torch.manual_seed(0)
    recipe = Recipe(virtual_shards=shards, precision="fp32")
    model = create_model("nin_cifar10")
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizers = make_optimizers(model, recipe)
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(0, 10, (BATCH,)))
    sharded = ShardedStep(model, optimizers, recipe, "fp32", None)
    seconds = []
    for step in range(STEPS + 2):
        start = time.process_time()
        if shards == 1:
            train_step(model, optimizers, batch, recipe, step, "fp32")
        else:
            sharded(batch, step)
        seconds.append(time.process_time() - start)
    return seconds[2:]


def exchange(rank: int, size: int, port: int) -> None:
    """Time the exchange of gradients as one process of `size`; rank 0 prints the medians as JSON."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    group = Group(rank, size, torch.device("cpu"), None)  # type: ignore[arg-type]
    medians: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        vector = torch.randn(PARAMETERS).to(dtype)
        seconds: dict[str, list[float]] = {"fixed": [], "free": []}
        for _ in range(EXCHANGES):
            start = time.perf_counter()
            group.tree_sum(vector)
            seconds["fixed"].append(time.perf_counter() - start)
            start = time.perf_counter()
            dist.all_reduce(vector.clone())
            seconds["free"].append(time.perf_counter() - start)
        medians |= {f"{order}_{name}_ms": 1000 * statistics.median(values) for order, values in seconds.items()}
    if rank == 0:
        print(json.dumps(medians))
    dist.destroy_process_group()


def exchanges(size: int) -> dict[str, float]:
    """Return the median milliseconds of an exchange between processes of this machine."""
    port = 20_000 + os.getpid() % 20_000 + size
    command = [sys.executable, __file__, "--exchange", str(size), str(port)]
    children = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(size)]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    medians: dict[str, float] = json.loads(outputs[0])
    return medians


def predicted(gpus: int, images: int, order: str, element_bytes: int) -> float:
    """Return the seconds of a step on `gpus` GPUs with `images` images each.

    Compute, the slowest of `gpus` normal times, and the exchange. Both orders move every byte twice; the fixed order
    sends a message to every other process, the free one walks a tree.
    """
    compute = images / GPU["images_per_s"]
    slowest = compute * GPU["spread"] * math.sqrt(2 * math.log(gpus)) if gpus > 1 else 0.0
    moved = 2 * (gpus - 1) / gpus * PARAMETERS * element_bytes
    if order == "free":
        latency = 2 * math.ceil(math.log2(gpus)) * GPU["latency_s"]
    else:
        latency = 2 * (gpus - 1) * GPU["message_s"] + (2 * GPU["latency_s"] if gpus > 1 else 0.0)
    return compute + slowest + moved / GPU["bytes_per_s"] + 2 * latency  # once more for loss and correct predictions


def tables(result: dict[str, Any]) -> str:
    """Return the tables of docs/scaling.md."""
    lines = ["| measured here | ms |", "|---|---|"]
    for shards, values in result["steps"].items():
        name = f"{shards} virtual shard{'s' * (shards != '1')}"
        lines.append(f"| a step of {BATCH} images, {name}, CPU time | {values['median_ms']:.0f} |")
    for size, medians in result["exchanges"].items():
        for order in ("fixed", "free"):
            value = medians[f"{order}_fp32_ms"]
            lines.append(f"| sum of the gradients (3.9 MB) of {size} processes, {order} order | {value:.1f} |")
    lines += ["", "| GPUs | images per GPU | fixed, fp32 | free, fp32 | free, bf16 |", "|---|---|---|---|---|"]
    for gpus in (1, 2, 8, 64, 256, 1024):
        images = GLOBAL_BATCH // gpus
        alone = predicted(1, GLOBAL_BATCH, "free", 4)
        cells = [
            f"{alone / predicted(gpus, images, order, size):,.1f}"
            for order, size in (("fixed", 4), ("free", 4), ("free", 2))
        ]
        lines.append(f"| {gpus:,} | {images:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the written results."""
    if sys.argv[1:2] == ["--exchange"]:
        size, port, rank = map(int, sys.argv[2:])
        exchange(rank, size, port)
        return 0
    path = Path(RESULTS, "processes.json")
    if sys.argv[1:] != ["--tables"]:
        torch.set_num_threads(1)
        measured = {str(shards): [1000 * value for value in steps(shards)] for shards in (1, 4)}
        result = {
            "steps": {
                key: {"median_ms": statistics.median(values), "sd_ms": statistics.stdev(values)}
                for key, values in measured.items()
            },
            "exchanges": {str(size): exchanges(size) for size in SIZES},
        }
        path = write_result("processes", result)
    print(tables(json.loads(path.read_text())["result"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
