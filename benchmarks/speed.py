"""Measure training and inference speed of the paper's CIFAR-10 network on this machine, against other engines.

    python benchmarks/speed.py                              # all contenders: about twenty minutes on an idle machine
    python benchmarks/speed.py --only plain,ours-fp32 --rounds 3
    python benchmarks/speed.py --scaling                    # by batch size, image size and threads
    python benchmarks/speed.py --networks squeezenet efficientnet_lite0   # inference with the shipped ImageNet networks

In each round every contender runs for `--seconds`, one after another. A matrix product (the peak) is measured before
and after each contender, because the speed of a shared machine drifts; shares and ratios are taken within a round, and
the report has their medians and quartiles over the rounds. Every contender runs in its own process (see
benchmarks/contenders), so that process-wide settings do not leak, and only one works at a time.

A complete run writes benchmarks/results/local/speed-CPU.json (scaling-CPU.json with `--scaling`, networks-CPU.json with
`--networks`), which the documents and tests ignore. `--publish` writes to benchmarks/results instead;
`python benchmarks/tables.py` then updates plots and tables in the documents. With `--only`, results are printed, and
written if `--out` is given.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from typing import Any

from common import write_result
from contenders import CONTENDERS, PEAK, Settings
from contenders.parent import Child
from contenders.summary import Round, summarise, table

import mlpconv
from mlpconv.training.environment import cpu_name

WORKS = ("training", "inference")  # one after the other, which halves the memory
SCALED = ("plain", "ours-fp32", "ours-bf16", "eager", "predict")
NETWORKS = (
    "eager", "compiled-fp32", "compiled-bf16", "onnxruntime", "openvino-fp32", "openvino-bf16", "model-fp32",
    "model-bf16", "engine-fp32", "engine-bf16", "predict",
)  # fmt: skip
AXES: dict[str, tuple[Any, ...]] = {"batch": (1, 8, 32, 128, 512), "side": (24, 32, 48), "threads": (1, 0)}


def select(only: str | None, default: tuple[str, ...]) -> list[str]:
    """Return the contenders with the given names or kinds of work; raise SystemExit for an unknown name."""
    names = [name for name in CONTENDERS if name != PEAK]
    selected = default if only is None else only.split(",")
    if unknown := [name for name in selected if name not in {*names, *WORKS}]:
        raise SystemExit(f"unknown contender {unknown[0]!r}; accepted: {', '.join([*WORKS, *names])}")
    return [name for name in names if name in selected or CONTENDERS[name].work in selected]


def measure(names: list[str], settings: Settings, rounds: int) -> dict[int, list[Round]]:
    """Prepare all contenders, run them in turn, and end them; return the rounds of each batch size."""
    children = {name: Child(name, settings) for name in (PEAK, *names)}
    try:
        for child in children.values():
            child.prepare()
            print(f"{child.name}: {child.unavailable or 'ready'}", file=sys.stderr, flush=True)
        if children[PEAK].unavailable:
            raise SystemExit(f"the peak cannot be measured: {children[PEAK].unavailable}")
        results: dict[int, list[Round]] = {batch: [] for batch in settings.batches}
        for number in range(rounds):
            for batch in settings.batches:
                results[batch].append(run_round(children, names, batch))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        return results
    finally:
        for child in children.values():
            child.end()


def run_round(children: dict[str, Child], names: list[str], batch: int) -> Round:
    """Run every contender once, with a measurement of the peak before and after each."""
    peak = children[PEAK].round()
    answers: Round = {}
    for name in names:
        answer = children[name].round(batch=batch)
        after = children[PEAK].round()
        answers[name] = answer | {"peaks": [peak, after]}
        peak = after
    return answers


def measure_all(names: list[str], settings: Settings, rounds: int, singles: bool) -> dict[str, Any]:
    """Measure training, batched inference and, with `singles`, inference of one image at a time."""
    result = {}
    for work in WORKS:
        if not (contenders := [name for name in names if CONTENDERS[name].work == work]):
            continue
        batches: tuple[int, ...] = (settings.batch,)
        if singles and work == "inference" and settings.batch > 1:
            batches += (1,)
        seconds = settings.seconds / (2 if work == "inference" else 1)
        point = replace(settings, batches=batches, seconds=seconds)
        for batch, answers in measure(contenders, point, rounds).items():
            key = work if batch == settings.batch else "single"
            result[key] = summarise(answers, work, settings)
            print(f"\n{work}, batch size {batch}\n{table(result[key])}", flush=True)
    return result


def scaling(names: list[str], settings: Settings, rounds: int) -> dict[str, Any]:
    """Measure other batch sizes, image sizes and thread counts, one change at a time; `threads` 0 means all."""
    result: dict[str, Any] = {}
    for axis, values in AXES.items():
        for value in values:
            print(f"\n{axis} {value or 'all'}", flush=True)
            point = replace(settings, **{axis: value})
            result.setdefault(axis, {})[str(value)] = measure_all(names, point, rounds, singles=False)
    return result


def networks(names: list[str], settings: Settings, rounds: int, chosen: list[str]) -> dict[str, Any]:
    """Measure inference with other networks, each at its own image size."""
    result: dict[str, Any] = {"networks": {}}
    for network in chosen:
        print(f"\n{network}", flush=True)
        side = mlpconv.load(network).input_size[1]
        point = replace(settings, network=network, side=side)
        result["networks"][network] = {"side": side} | measure_all(names, point, rounds, singles=True)
    return result


def slug(cpu: str) -> str:
    """Return a processor's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")


def main() -> None:
    """Measure, print tables and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default 5; with --scaling 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="training time per round; inference takes half")
    parser.add_argument("--only", help="comma-separated contenders or kinds of work")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0, help="of every contender; 0: torch's default")
    parser.add_argument("--scaling", action="store_true", help="measure by batch size, image size and threads")
    parser.add_argument("--networks", nargs="+", help="measure inference with these shipped networks")
    parser.add_argument("--out", help="name of the result; default: speed-CPU, scaling-CPU or networks-CPU")
    parser.add_argument("--publish", action="store_true", help="write the result to benchmarks/results, not local/")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.scaling else 5)
    kind = "scaling" if options.scaling else "networks" if options.networks else "speed"
    names = select(options.only, {"scaling": SCALED, "networks": NETWORKS, "speed": WORKS}[kind])
    settings = Settings(batch=options.batch, threads=options.threads, seconds=options.seconds)
    cpu = cpu_name()
    result: dict[str, Any] = {"cpu": cpu, "rounds": rounds, "seconds": options.seconds, "batch": options.batch}
    if options.networks:
        run = networks([n for n in names if CONTENDERS[n].work == "inference"], settings, rounds, options.networks)
    elif options.scaling:
        run = scaling(names, settings, rounds)
    else:
        run = measure_all(names, settings, rounds, singles=True)
    if name := options.out or (None if options.only else f"{kind}-{slug(cpu)}"):
        path = write_result(name if options.publish else f"local/{name}", result | run)
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
