"""Every operation of mlpconv.surgery on all of torchvision's classifiers and on a hundred networks of timm.

    python benchmarks/coverage.py                     goes on where it was stopped; writes results/coverage.json
                                                      and docs/coverage.md
    python benchmarks/coverage.py --only resnet18     those anew, the others as they were
    python benchmarks/coverage.py --limit 10          ten more
    python benchmarks/coverage.py --page              writes the page alone

Needs torchvision and timm. Each network has a process of its own, with random weights and random norms.
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
"""Parameters of the largest network that is run."""
GIGABYTE = 1 << 30


def main() -> int:
    """Look at the networks that are asked for; ends with code 1 where a result is wrong or an operation crashed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=None, help="names of networks, with or without their library")
    parser.add_argument("--library", choices=["torchvision", "timm"], default="", help="the networks of one alone")
    parser.add_argument("--operations", nargs="*", default=list(OPERATIONS), choices=list(OPERATIONS))
    parser.add_argument("--limit", type=int, default=None, help="networks to look at, at most")
    parser.add_argument("--memory", type=int, default=16, help="gigabytes of memory for one network")
    parser.add_argument("--seconds", type=int, default=3000, help="for one network")
    parser.add_argument("--page", action="store_true", help="look at none, and write the page")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = Store.read()
    wanted = (
        []
        if asked.page
        else chosen([each for each in networks() if each.startswith(asked.library)], store, asked.only)[: asked.limit]
    )
    for place, name in enumerate(wanted, 1):
        began = time.perf_counter()
        found = in_a_process(name, asked)
        store.put(name, found, whole=asked.only is None)
        print(f"{place}/{len(wanted)} {brief(name, found)} ({time.perf_counter() - began:.0f} s)", flush=True)
    write_atomic(PAGE, page(store.networks(networks()), store.content).encode())
    print(f"written to {store.path} and {PAGE}")
    return int(any(each["word"] in ("wrong", "crashed") for each in store.judgements()))


def chosen(names: list[str], store: Store, only: list[str] | None) -> list[str]:
    """The networks that are named, or those that are not in the results yet."""
    if only is None:
        return [name for name in names if name not in store]
    return [name for name in names if name in only or name.partition(":")[2] in only]


def in_a_process(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What is found of a network, in a process whose memory and time are limited."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(name, asked, sender))
    child.start()
    sender.close()
    found = None
    if receiver.poll(asked.seconds):
        try:
            found = receiver.recv()
        except EOFError:
            found = {"not run": "its process ended early"}
    if found is None:
        child.kill()
        found = {"not run": f"it takes more than {asked.seconds} s"}
    child.join()
    return found


def work(name: str, asked: argparse.Namespace, sender: Connection) -> None:
    """In the new process: look at the network, and send what is found."""
    resource.setrlimit(resource.RLIMIT_DATA, (asked.memory * GIGABYTE, asked.memory * GIGABYTE))
    try:
        sender.send(survey(name, asked.operations, LARGEST))
    except Exception as error:  # noqa: BLE001  (the survey itself stumbled: the page says so)
        sender.send({"not run": f"{type(error).__name__}: {error}"})
    sender.close()


def brief(name: str, found: dict[str, Any]) -> str:
    """One line for the log."""
    if "not run" in found:
        return f"{name}: not run, {found['not run']}"
    words = [
        f"{operation} {each['word']}{'' if found['sense'][operation] else ' (no sense)'} {each['float64'] or 0:.0e} "
        f"{each['cpu_s']}s{' ' + each['why'][:110] if each['word'] != 'exact' else ''}"
        for operation, each in found["operations"].items()
    ]
    return f"{name}@{found['shape'][1]} {found['head']['begins']} {found['head']['how']}: " + " | ".join(words)


if __name__ == "__main__":
    sys.exit(main())
