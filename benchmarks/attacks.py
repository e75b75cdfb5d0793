"""Send the same hostile traffic to the guard, to bare uvicorn and to bare granian, and write what each server does.

python benchmarks/attacks.py        writes results/attacks.json and the table of docs/serve.md
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from common import write_result
from http_attacks import ATTACKS, PATIENCE, canary

SERVERS = ("guard", "uvicorn", "granian")
TITLES = ("mlpconv's guard", "uvicorn alone", "granian alone")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "serve.md"
START, END = "<!-- attacks: written by benchmarks/attacks.py -->", "<!-- attacks: end -->"


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def memory(pid: int) -> float:
    """Return the peak memory of a process and its children in MB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = [line for one in (str(pid), *children) for line in Path(f"/proc/{one}/status").read_text().splitlines()]
    return max(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def attack(server: str) -> dict[str, str]:
    """Return what a server does about each attack, and whether it answers an ordinary request afterwards."""
    results = {}
    for name, send in ATTACKS.items():
        port = free_port()
        command = [sys.executable, "echo_server.py", server, str(port)]
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(port)
            before = memory(process.pid)
            answer = send(port)
            grown = memory(process.pid) - before
            note = f", {grown:.0f} MB" if grown > 20 and name != "a client that does not read" else ""
            note += "" if canary(port) == "200" else ", then no answer to others"
            results[name] = answer + note
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # granian's workers outlive it
            process.wait()
    return results


def wait_for(port: int) -> None:
    """Wait until a server answers."""
    for _ in range(200):
        with suppress(OSError):
            if canary(port) == "200":
                return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def main() -> None:
    """Attack each server; write the results and the table."""
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1] / "src")
    results = {server: attack(server) for server in SERVERS}
    write_result("attacks", {"patience_seconds": PATIENCE, "servers": results})
    rows = ["| what is sent | " + " | ".join(TITLES) + " |", "|---|---|---|---|"]
    rows += [f"| {name} | " + " | ".join(results[server][name] for server in SERVERS) + " |" for name in ATTACKS]
    rows += ["", f'A number is the status of the answer; "held open" means for at least {PATIENCE:g} seconds, with a']
    rows += ["deadline of 1 second set in the guard; megabytes are the growth of the server's memory."]
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    PAGE.write_text(before + START + "\n\n" + "\n".join(rows) + "\n\n" + END + rest.partition(END)[2])
    print("\n".join(rows))


if __name__ == "__main__":
    main()
