"""Hostile HTTP traffic against the guard: each attack is refused or cut off, and others are still answered."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_attacks import ATTACKS, HEAD, canary, outcome
from support.servers import Served, request, running

SERVER = Path(__file__).resolve().parents[2] / "benchmarks" / "echo_server.py"
EXPECTED = {
    "headers, one byte at a time": "408",
    "a connection that sends nothing": "408",
    "a body, one byte at a time": "408",
    "a client that does not read": "closed",
    "many idle connections": "503",
    "ten thousand pipelined requests": "closed",
    "one endless header": "431",
    "endless headers": "431",
    "an endless request line": "431",
    "an endless body": "413",
    "a body of one-byte chunks": "400",
    "an endless trailer": "431",
    "an announced body of 10 TB": "413",
    "a compressed body": "415",
    "Content-Length and Transfer-Encoding": "400",
    "two lengths": "400",
    "no Host": "400",
    "another Host": "421",
    "not HTTP": "400",
    "a NUL in a header": "400",
}
SEEDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running([sys.executable, str(SERVER), "guard", "0"], tmp_path_factory.mktemp("guard")) as served:
        yield served


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_and_others_are_answered(name: str, server: Served) -> None:
    assert ATTACKS[name](server.port) == EXPECTED[name]
    assert canary(server.port) == "200"


def memory(served: Served) -> int:
    """Peak resident memory in bytes."""
    lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_endless_requests_cost_little_memory(server: Served) -> None:
    before = memory(server)
    for name in ("one endless header", "an endless body", "a body of one-byte chunks", "an endless trailer"):
        ATTACKS[name](server.port)
    assert memory(server) - before < 16 << 20


def mutated(seed: int) -> bytes:
    """A valid request with a few random changes."""
    draw = random.Random(seed)
    content = bytearray(HEAD + b"Content-Length: 4\r\nX-Y: z\r\n\r\nabcd" + HEAD + b"Content-Length: 0\r\n\r\n")
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(content))
        kind = draw.randrange(4)
        if kind == 0:
            content[place] = draw.randrange(256)
        elif kind == 1:
            del content[place : place + draw.randint(1, 9)]
        elif kind == 2:
            content[place:place] = draw.choice([b"\r\n", b"\0", b"\n", b" ", b":", b"Transfer-Encoding: chunked\r\n"])
        else:
            content[place:place] = content[: draw.randrange(len(content))]
    return bytes(content)


@pytest.mark.parametrize("seeds", [range(SEEDS), pytest.param(range(SEEDS, 5000), marks=pytest.mark.slow)])
def test_mutated_requests_never_cause_an_internal_error(seeds: range, server: Served) -> None:
    for seed in seeds:
        answer = outcome(server.port, [mutated(seed)])
        assert answer in {"closed", "200", "400", "404", "405", "408", "413", "415", "421", "431", "501", "505"}, seed
    assert canary(server.port) == "200"
    assert all("Traceback" not in str(entry) for entry in server.entries())


def test_a_client_that_leaves_cancels_its_request(server: Served) -> None:
    for _ in range(80):  # more than may run at a time
        assert request(server.port, "GET", "/slow", timeout=0.01).status == 0
    assert canary(server.port) == "200"
