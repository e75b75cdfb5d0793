"""How fast the paper's CIFAR-10 network trains and predicts here: all contenders in turn, each as a share of the peak.

    python benchmarks/speed.py                              # everything: about fifteen minutes on an idle machine
    python benchmarks/speed.py --only plain,ours-fp32 --rounds 3
    python benchmarks/speed.py --only training

A round lets every contender run for `--seconds`, one after another, with the matrix product (the peak) measured
before and after each, since the speed of shared machines drifts. Every contender is a process of its own (see
benchmarks/contenders), so that what one sets for its process reaches no other, and only one works at a time. Shares
and ratios are taken within a round; reported are medians and quartiles over the rounds. With everything measured it
writes benchmarks/results/speed-CPU.json and docs/images/speed.png; with `--only` it prints, and writes where `--out`
names a result.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from common import write_result
from contenders import CONTENDERS, PEAK, Settings
from contenders.parent import Child
from contenders.summary import Round, summarise, table

from mlpconv.training.environment import cpu_name


def chosen(only: str | None) -> list[str]:
    """The contenders of those names or kinds (training, inference); raises SystemExit for a name there is not."""
    names = [name for name in CONTENDERS if name != PEAK]
    if only is None:
        return names
    asked = only.split(",")
    known = {*names, *(CONTENDERS[name].work for name in names)}
    if unknown := [name for name in asked if name not in known]:
        raise SystemExit(f"there is no contender {unknown[0]!r}; accepted: {', '.join(sorted(known))}")
    return [name for name in names if name in asked or CONTENDERS[name].work in asked]


def measure(names: list[str], settings: Settings, rounds: int, turns: tuple[int, ...]) -> dict[int, list[Round]]:
    """Prepare all contenders, let them run in turn, and end them; for each batch size what its rounds showed."""
    children = {name: Child(name, settings) for name in (PEAK, *names)}
    try:
        for child in children.values():
            child.prepare()
            print(f"{child.name}: {child.unavailable or 'ready'}", file=sys.stderr, flush=True)
        if children[PEAK].unavailable:
            raise SystemExit(f"the peak cannot be measured: {children[PEAK].unavailable}")
        found: dict[int, list[Round]] = {batch: [] for batch in turns}
        for number in range(rounds):
            for batch in turns:
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


def slug(cpu: str) -> str:
    """A processor's name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")


def main() -> None:
    """Measure, print a table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each contender runs in a round")
    parser.add_argument("--only", help="names or kinds of contenders, with commas between")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0, help="for everyone; 0: as many as torch takes")
    parser.add_argument("--out", help="the result's name; speed-CPU where everything is measured")
    asked = parser.parse_args()
    names, result = chosen(asked.only), {"rounds": asked.rounds, "seconds": asked.seconds, "batch": asked.batch}
    training = Settings(asked.batch, (asked.batch,), threads=asked.threads, seconds=asked.seconds)
    inference = Settings(asked.batch, (asked.batch, 1), threads=asked.threads, seconds=asked.seconds / 2)
    for work, settings in (("training", training), ("inference", inference)):  # in turn: half the memory
        if of_kind := [name for name in names if CONTENDERS[name].work == work]:
            for batch, found in measure(of_kind, settings, asked.rounds, settings.batches).items():
                key = work if batch == asked.batch else f"{work}-{batch}"
                result[key] = summarise(found, work, settings)
                print(f"\n{work}, {batch} image{'s' * (batch > 1)} a batch\n{table(result[key])}", flush=True)
    cpu = cpu_name()
    if out := asked.out or (None if asked.only else f"speed-{slug(cpu)}"):
        print(f"written to {write_result(out, with_machine(result, cpu))}")


def with_machine(result: dict[str, Any], cpu: str) -> dict[str, Any]:
    """The result with the processor's family and model, which its name may leave open."""
    return {"cpu": cpu} | result


if __name__ == "__main__":
    main()
