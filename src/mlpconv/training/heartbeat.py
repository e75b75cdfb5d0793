"""Heartbeats between processes: a process that dies, hangs or fails ends the others within ten seconds, with a reason.

A process that waits for another in a collective operation runs no Python, and torch's own time-outs are minutes. So a
thread of each process counts in torch's key-value store, and watches the count of the next rank.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

__all__ = ["Heartbeat", "Member"]

PERIOD = 0.5  # seconds between beats
SILENT = 8  # own beats without one of the watched process, after which it counts as hung
GRACE = 1.0  # seconds that the main thread gets to end by itself
STORE_SECONDS = 4.0  # after which the store does not answer
LINGER = {"done": 60, "failed": 4}  # periods that rank 0 waits for the others at the end
VERDICT = "mlpconv/verdict"


class Member(NamedTuple):
    """A process of a run, its number of beats and its state ("running", "done" or "failed") with the reason."""

    rank: int
    beats: int
    state: str
    reason: str
    host: str
    pid: int
    parent: int

    @classmethod
    def own(cls, rank: int, beats: int = 0, state: str = "running", reason: str = "") -> Member:
        """Describe this process."""
        return cls(rank, beats, state, reason, platform.node(), os.getpid(), os.getppid())

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, process {self.pid})"

    @property
    def is_local(self) -> bool:
        """Whether the process has the same launcher as this one."""
        return self.host == platform.node() and self.parent == os.getppid()

    @property
    def is_dead(self) -> bool:
        """Whether a local process has ended."""
        if not self.is_local:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return sys.platform == "linux"
        return state in "ZX"


class Heartbeat:
    """Beat for this process, and watch the next rank; end this process when one of them has ended badly."""

    def __init__(self, rank: int, size: int, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.rank, self.size, self.address = rank, size, address
        self.store = dist.TCPStore(  # type: ignore[attr-defined]
            host, int(port), size, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=STORE_SECONDS)
        )
        self.lock, self.ended, self.handled = threading.Lock(), threading.Event(), threading.Event()
        self.found = threading.Event()
        self.verdict = ""
        self.silence = self.last_seen = 0
        self.members: dict[int, Member] = {}
        self.beats = self.last_beats = self.stuck = 0

    def start(self) -> None:
        """Announce this process."""
        self.beat()

    def watch(self) -> None:
        """Watch the next rank, once all have joined."""
        self.members = {rank: self.read(rank) for rank in range(self.size)} if self.size <= 64 else {}
        for name in ("run", "guard"):
            threading.Thread(target=getattr(self, name), name=f"heartbeat-{name}", daemon=True).start()

    def stop(self, state: str, reason: str = "") -> None:
        """Announce the end of this process, and stop watching."""
        self.handled.set()
        self.ended.set()
        if self.stuck < SILENT:  # the store would block
            with suppress(RuntimeError):
                self.beat(state, reason)
                self.linger(state)

    def linger(self, state: str) -> None:
        """Keep the store, which may live in rank 0, until the others have ended, or have read why this one failed."""
        if self.rank or self.size == 1:
            return
        for _ in range(LINGER[state]):
            others = [self.read(rank) for rank in range(1, self.size)]
            if all(member.state != "running" or member.is_dead for member in others):
                return
            time.sleep(PERIOD)

    def name(self, rank: int) -> str:
        """Return a process as text: its rank, host and process id."""
        return str(Member.own(rank)) if rank == self.rank else str(self.members.get(rank, f"rank {rank}"))

    def reason(self) -> str:
        """Return which process has ended and why, once that is known; "" if it is not known after ten seconds."""
        self.handled.set()
        self.found.wait(PERIOD * (SILENT + 4) + STORE_SECONDS)
        return self.verdict

    def beat(self, state: str = "running", reason: str = "") -> None:
        """Write the count and the state of this process."""
        with self.lock:
            self.beats += 1
            member = Member.own(self.rank, self.beats, state, reason[:2000])
            self.store.set(f"mlpconv/beat/{self.rank}", json.dumps(member))

    def read(self, rank: int) -> Member:
        """Return the last beat of a process."""
        with self.lock:
            return Member(*json.loads(self.store.get(f"mlpconv/beat/{rank}")))

    def run(self) -> None:
        """Beat and watch until this process ends, or until there is a verdict."""
        while not self.ended.wait(PERIOD):
            try:
                self.beat()
                verdict = self.look()
            except RuntimeError:
                verdict = self.no_store()
            if verdict:
                self.end(verdict)
                return

    def guard(self) -> None:
        """End this process when the store, and with it the other thread, hangs."""
        while not self.ended.wait(PERIOD):
            self.stuck = self.stuck + 1 if self.beats == self.last_beats else 0
            self.last_beats = self.beats
            if self.stuck >= SILENT:
                kill_if_local(self.members.get(0))
                self.end(self.no_store())
                return

    def no_store(self) -> str:
        """Return the verdict for a store that does not answer."""
        return f"the store of rank 0 at {self.address} does not answer: its process has ended or hangs"

    def look(self) -> str:
        """Return the verdict of any process, or what is wrong with the next rank; "" if all is well."""
        with self.lock:
            if self.store.check([VERDICT]):
                return self.store.get(VERDICT).decode()
        if self.size == 1:
            return ""
        watched = (self.rank + 1) % self.size
        member = self.members[watched] = self.read(watched)
        self.silence = self.silence + 1 if member.beats == self.last_seen else 0
        self.last_seen = member.beats
        verdict = ""
        if member.state == "failed":
            verdict = f"{member} failed: {member.reason}"
        elif member.state == "running" and member.is_dead:
            verdict = f"{member} was killed, or has crashed"
        elif member.state == "running" and self.silence >= SILENT:
            verdict = f"{member} has not answered for {SILENT * PERIOD:.0f} s"
            kill_if_local(member)
        if verdict:
            with self.lock:
                self.store.set(VERDICT, verdict)
        return verdict

    def end(self, verdict: str) -> None:
        """Let the main thread raise the error; if it is blocked, print the reason and end the process."""
        if self.ended.is_set() or self.found.is_set():
            return
        self.verdict = verdict
        self.found.set()
        if self.handled.wait(GRACE):
            return
        with suppress(OSError, ValueError):
            print_line(f"mlpconv: {self.name(self.rank)} stopped: {verdict}")
        os._exit(1)


def kill_if_local(member: Member | None) -> None:
    """End a hung process of the same launcher, which would wait for it."""
    if member is not None and member.is_local:
        with suppress(OSError):
            os.kill(member.pid, signal.SIGKILL)


def print_line(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
