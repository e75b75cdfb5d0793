"""How fast the paper's CIFAR-10 network trains and predicts here: all contenders in turn, each as a share of the peak.

    python benchmarks/speed.py                              # everything: about twenty minutes on an idle machine
    python benchmarks/speed.py --only plain,ours-fp32 --rounds 3
    python benchmarks/speed.py --scaling                    # over batch, image size and threads, with memory

A round lets every contender run for `--seconds`, one after another, with the matrix product (the peak) measured
before and after each, since the speed of shared machines drifts. Every contender is a process of its own (see
benchmarks/contenders), so that what one sets for its process reaches no other, and only one works at a time. Shares
and ratios are taken within a round; reported are medians and quartiles over the rounds. With everything measured it
writes benchmarks/results/speed-CPU.json (scaling-CPU.json with `--scaling`), and `python benchmarks/tables.py` puts
pictures and tables of it into the documents; with `--only` it prints, and writes where `--out` names a result.
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

from mlpconv.training.environment import cpu_name

WORKS = ("training", "inference")  # one after the other: half the memory
SCALED = ("plain", "ours-fp32", "ours-bf16", "eager", "predict")
AXES: dict[str, tuple[Any, ...]] = {"batch": (1, 8, 32, 128, 512), "side": (24, 32, 48), "threads": (1, 0)}


def chosen(only: str | None, usual: tuple[str, ...]) -> list[str]:
    """The contenders of those names or kinds (training, inference); raises SystemExit for a name there is not."""
    names = [name for name in CONTENDERS if name != PEAK]
    asked = usual if only is None else only.split(",")
    if unknown := [name for name in asked if name not in {*names, *WORKS}]:
        raise SystemExit(f"there is no contender {unknown[0]!r}; accepted: {', '.join([*WORKS, *names])}")
    return [name for name in names if name in asked or CONTENDERS[name].work in asked]


def measure(names: list[str], settings: Settings, rounds: int) -> dict[int, list[Round]]:
    """Prepare all contenders, let them run in turn, and end them; for each batch size what its rounds showed."""
    children = {name: Child(name, settings) for name in (PEAK, *names)}
    try:
        for child in children.values():
            child.prepare()
            print(f"{child.name}: {child.unavailable or 'ready'}", file=sys.stderr, flush=True)
        if children[PEAK].unavailable:
            raise SystemExit(f"the peak cannot be measured: {children[PEAK].unavailable}")
        found: dict[int, list[Round]] = {batch: [] for batch in settings.batches}
        for number in range(rounds):
            for batch in settings.batches:
                found[batch].append(one_round(children, names, batch))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        return found
    finally:
        for child in children.values():
            child.end()


def one_round(children: dict[str, Child], names: list[str], batch: int) -> Round:
    """Every contender once, the peak between them."""
    peak = children[PEAK].round()
    found: Round = {}
    for name in names:
        answer = children[name].round(batch=batch)
        after = children[PEAK].round()
        found[name] = answer | {"peaks": [peak, after]}
        peak = after
    return found


def everything(names: list[str], settings: Settings, rounds: int, singles: bool) -> dict[str, Any]:
    """Training, inference with a batch and, where asked for, with single images: what was found for each."""
    result = {}
    for work in WORKS:
        if not (of_kind := [name for name in names if CONTENDERS[name].work == work]):
            continue
        batches: tuple[int, ...] = (settings.batch,)
        if singles and work == "inference" and settings.batch > 1:
            batches += (1,)
        seconds = settings.seconds / (2 if work == "inference" else 1)
        for batch, found in measure(of_kind, replace(settings, batches=batches, seconds=seconds), rounds).items():
            key = work if batch == settings.batch else "single"
            result[key] = summarise(found, work, settings)
            print(f"\n{work}, {batch} image{'s' * (batch > 1)} a batch\n{table(result[key])}", flush=True)
    return result


def scaling(names: list[str], settings: Settings, rounds: int) -> dict[str, Any]:
    """The same at other batches, image sizes and threads, one changed at a time; `threads` 0 is all of them."""
    result: dict[str, Any] = {}
    for axis, values in AXES.items():
        for value in values:
            print(f"\n{axis} {value or 'all'}", flush=True)
            point = replace(settings, **{axis: value})
            result.setdefault(axis, {})[str(value)] = everything(names, point, rounds, singles=False)
    return result


def slug(cpu: str) -> str:
    """A processor's name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")


def main() -> None:
    """Measure, print tables, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="5; with --scaling 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="of training in a round; half of it for inference")
    parser.add_argument("--only", help="names or kinds of contenders, with commas between")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0, help="for everyone; 0: as many as torch takes")
    parser.add_argument("--scaling", action="store_true", help="over batch, image size and threads")
    parser.add_argument("--out", help="the result's name; by itself where everything is measured")
    asked = parser.parse_args()
    rounds = asked.rounds or (3 if asked.scaling else 5)
    names = chosen(asked.only, SCALED if asked.scaling else WORKS)
    settings = Settings(batch=asked.batch, threads=asked.threads, seconds=asked.seconds)
    cpu = cpu_name()
    result: dict[str, Any] = {"cpu": cpu, "rounds": rounds, "seconds": asked.seconds, "batch": asked.batch}
    result |= scaling(names, settings, rounds) if asked.scaling else everything(names, settings, rounds, singles=True)
    kind = "scaling" if asked.scaling else "speed"
    if out := asked.out or (None if asked.only else f"{kind}-{slug(cpu)}"):
        print(f"\nwritten to {write_result(out, result)}")


if __name__ == "__main__":
    main()
