"""Run every operation of mlpconv.surgery on all torchvision classifiers and on a hundred timm networks.

    python benchmarks/coverage.py                     continue an interrupted survey; write results/coverage.json
                                                      and docs/coverage.md
    python benchmarks/coverage.py --only resnet18     rerun these networks and keep the other results
    python benchmarks/coverage.py --limit 10          run ten more networks
    python benchmarks/coverage.py --page              write docs/coverage.md only

Needs torchvision and timm. Each network runs in its own process, with random weights and norms.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
from survey.networks import networks
from survey.page import PAGE, page
from survey.pairs import OPERATIONS, survey
from survey.store import Store

from mlpconv.files import write_atomic

LARGEST = 160_000_000
"""Networks with more parameters are not run."""
GIGABYTE = 1 << 30


def main() -> int:
    """Run the selected networks; return 1 if a result is wrong or an operation crashed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=None, help="networks to rerun, with or without the library")
    parser.add_argument("--library", choices=["torchvision", "timm"], default="", help="run one library only")
    parser.add_argument("--operations", nargs="*", default=list(OPERATIONS), choices=list(OPERATIONS))
    parser.add_argument("--limit", type=int, default=None, help="maximum number of networks to run")
    parser.add_argument("--memory", type=int, default=16, help="memory limit per network, in GiB")
    parser.add_argument("--seconds", type=int, default=3000, help="time limit per network")
    parser.add_argument("--page", action="store_true", help="write the page only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = Store.read()
    names = [name for name in networks() if name.startswith(args.library)]
    selected = [] if args.page else select(names, store, args.only)[: args.limit]
    for position, name in enumerate(selected, 1):
        start = time.perf_counter()
        result = run_in_process(name, args)
        store.put(name, result, whole=args.only is None)
        print(f"{position}/{len(selected)} {brief(name, result)} ({time.perf_counter() - start:.0f} s)", flush=True)
    write_atomic(PAGE, page(store.networks(networks()), store.content).encode())
    print(f"written to {store.path} and {PAGE}")
    return int(any(judged["word"] in ("wrong", "crashed") for judged in store.judgements()))


def select(names: list[str], store: Store, only: list[str] | None) -> list[str]:
    """Return the named networks, or those without results."""
    if only is None:
        return [name for name in names if name not in store]
    return [name for name in names if name in only or name.partition(":")[2] in only]


def run_in_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Survey a network in a process with limited memory and time."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(name, args, sender))
    child.start()
    sender.close()
    result = None
    if receiver.poll(args.seconds):
        try:
            result = receiver.recv()
        except EOFError:
            result = {"not run": "its process ended early"}
    if result is None:
        child.kill()
        result = {"not run": f"it takes more than {args.seconds} s"}
    child.join()
    return result


def work(name: str, args: argparse.Namespace, sender: Connection) -> None:
    """Survey a network in the child process and send the result."""
    resource.setrlimit(resource.RLIMIT_DATA, (args.memory * GIGABYTE, args.memory * GIGABYTE))
    try:
        sender.send(survey(name, args.operations, LARGEST))
    except Exception as error:  # noqa: BLE001  (an error of the survey itself is recorded)
        sender.send({"not run": f"{type(error).__name__}: {error}"})
    sender.close()


def brief(name: str, result: dict[str, Any]) -> str:
    """Return one line for the log."""
    if "not run" in result:
        return f"{name}: not run, {result['not run']}"
    words = [
        f"{operation} {judged['word']}{'' if result['sense'][operation] else ' (does not apply)'} "
        f"{judged['float64'] or 0:.0e} {judged['cpu_s']}s"
        f"{' ' + judged['why'][:110] if judged['word'] != 'exact' else ''}"
        for operation, judged in result["operations"].items()
    ]
    return f"{name}@{result['shape'][1]} {result['head']['begins']} {result['head']['how']}: " + " | ".join(words)


if __name__ == "__main__":
    sys.exit(main())
