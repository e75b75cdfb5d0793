"""Load the server with wrk: throughput against the bare engine, latency of what is accepted, refusals, SIGTERM.

    python benchmarks/load.py [PART...] [--seconds 10] [--soak SECONDS]

A part is rows, networks, crowd, workers, overload, sigterm or soak; all by default, and the others keep their results.
wrk (a package of most systems) sends one encoded image again and again over 1 to 256 connections; then four times as
many images a second as the server can classify. Latencies by status are those of the log of the server. The bare
engine decodes and classifies batches of the same image without a server. Writes results/load.json and the table of
docs/serve.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from http.client import HTTPConnection, HTTPException
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import RESULTS, write_result
from load_report import write_table
from PIL import Image

from mlpconv.cores import CORES
from mlpconv.deploy import Predictor, export

MODEL = "nin_cifar10"
LARGER = ("squeezenet", "efficientnet_lite0")
CONNECTIONS = (1, 4, 16, 64, 256)
SATURATED = 16  # connections, with which nothing is refused
BATCH = 32
OVERLOAD, CLIENTS = 4, 64  # times the capacity, over this many connections
LATENCIES = (0.1, 0.01, 0.001)
PATIENCE = 5  # seconds that a request of the soak may wait: a log of refusals would fill the disk
SCRIPT = """
local file = io.open("{image}", "rb")
wrk.method, wrk.body = "POST", file:read("*all")
file:close()
"""
PAUSE = "function delay() return math.random(0, {most}) end\n"


class Case(NamedTuple):
    """An exported network, an encoded image of its size, wrk's script that sends it, and the seconds of a row."""

    model: Path
    image: bytes
    script: Path
    folder: Path
    seconds: float


def prepare(network: str, folder: Path, seconds: float) -> Case:
    """Export a network, and write an image of noise and the script."""
    model = export(network, folder / f"{network}.onnx").path
    shape = Predictor(model, engine="onnxruntime").input_size
    pixels = np.random.default_rng(0).integers(0, 256, (*shape[1:], 3), dtype=np.uint8)
    stream, image, script = io.BytesIO(), folder / f"{network}.png", folder / f"{network}.lua"
    Image.fromarray(pixels).save(stream, "PNG")
    image.write_bytes(stream.getvalue())
    script.write_text(SCRIPT.format(image=image))
    return Case(model, stream.getvalue(), script, folder, seconds)


@contextlib.contextmanager
def serving(model: Path, folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Run a server; yield its process, its port and its log."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "mlpconv", "serve", str(model), "--port", "0", "--engine", "onnxruntime", *words]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        yield process, int(line.rsplit(":", 1)[1].split("/")[0]), log
    finally:
        process.kill()
        process.wait()


def bare(case: Case, threads: int = CORES) -> float:
    """Return images/s of decoding and classifying in one process, without a server, in batches."""
    predictor = Predictor(case.model, engine="onnxruntime", threads=threads)
    predictor.predict([case.image] * BATCH)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < case.seconds / 2:
        predictor.predict([case.image] * BATCH)
        count += BATCH
    return count / (time.perf_counter() - start)


def bare_processes(case: Case) -> float:
    """Return images/s of one process of one thread for each core."""
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        runs = [pool.submit(bare, case, 1) for _ in range(CORES)]
        return sum(run.result() for run in runs)


def compared(
    case: Case, connections: Iterable[int], engine: Callable[[Case], float], *words: str
) -> list[dict[str, Any]]:
    """Load a server over several numbers of connections; measure the bare engine before and after each."""
    rows = []
    with serving(case.model, case.folder, *words) as (_, port, log):
        for count in connections:
            before = engine(case)
            row = load(port, log, count, case.seconds, case.script)
            row["bare_engine_per_second"] = (before + engine(case)) / 2
            rows.append(row)
            print(*words, row, flush=True)
    return rows


def overloaded(case: Case) -> list[dict[str, Any]]:
    """Send OVERLOAD times as many requests a second as the server can classify, for several bounds of the waiting."""
    with serving(case.model, case.folder) as (_, port, log):
        capacity = load(port, log, SATURATED, case.seconds, case.script)["accepted_per_second"]
    paused = case.folder / "paused.lua"
    paused.write_text(case.script.read_text() + PAUSE.format(most=round(2000 * CLIENTS / (OVERLOAD * capacity))))
    rows = []
    for latency in LATENCIES:
        with serving(case.model, case.folder, "--latency", str(latency)) as (_, port, log):
            alone = load(port, log, 1, case.seconds, case.script)
            row = load(port, log, CLIENTS, case.seconds, paused)
            rows.append({"latency": latency, "unloaded_ms": alone["accepted_ms"], **row})
            print(f"overload: {rows[-1]}", flush=True)
    return rows


def load(port: int, log: Path, connections: int, seconds: float, script: Path) -> dict[str, Any]:
    """Run wrk; return accepted images/s, and milliseconds of accepted and refused requests in the server's log."""
    before = len(log.read_text().splitlines())
    words = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), f"http://127.0.0.1:{port}/predict"]
    output = subprocess.run(["wrk", *words], capture_output=True, text=True, check=True).stdout
    time.sleep(0.5)
    entries = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    times = {code: [entry["ms"] for entry in entries if entry.get("status") == code] for code in (200, 503)}
    statuses = sorted({entry["status"] for entry in entries if "status" in entry})
    return {
        "connections": connections,
        "accepted_per_second": len(times[200]) / seconds,
        "refused_per_second": len(times[503]) / seconds,
        "accepted_ms": quantiles(times[200]),
        "refused_ms": quantiles(times[503]),
        "statuses": statuses,
        "socket_errors": re.findall(r"Socket errors: (.*)", output),
    }


def quantiles(values: list[float]) -> dict[str, float] | None:
    """Return the median and the 99th percentile."""
    return {name: float(np.quantile(values, q)) for name, q in (("p50", 0.5), ("p99", 0.99))} if values else None


def lost_at_sigterm(case: Case, clients: int = 8) -> dict[str, int]:
    """Send SIGTERM under load; return how many requests were answered, and how many lost after they were sent."""
    counts = {"answered": 0, "refused": 0, "lost": 0}
    stop = threading.Event()

    def client(port: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        while not stop.is_set():
            try:
                connection.connect()
            except OSError:  # the server no longer listens: nothing was sent
                return
            try:
                closing = False
                while not closing and not stop.is_set():
                    connection.request("POST", "/predict", case.image)
                    response = connection.getresponse()
                    response.read()
                    closing = response.getheader("connection") == "close"
                    counts["answered" if response.status == 200 else "refused"] += 1
            except (OSError, HTTPException):
                counts["lost"] += 1
            connection.close()

    with serving(case.model, case.folder, "--latency", "5") as (process, port, _):
        threads = [threading.Thread(target=client, args=(port,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        counts["exit_code"] = process.wait(60)
        stop.set()
        for thread in threads:
            thread.join()
    return counts


def crowd(case: Case, count: int = 10_000) -> dict[str, Any]:
    """Open many connections that send nothing; return what became of them, and how many files the server had open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count, most = min(count, hard - 100), 0
    with serving(case.model, case.folder) as (process, port, _), contextlib.ExitStack() as stack:
        clients = []
        for index in range(count):
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)))
            if index % 200 == 0:
                most = max(most, len(os.listdir(f"/proc/{process.pid}/fd")))
        answers = [first_bytes(client) for client in clients]
        stack.close()
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v2/health/ready")
        return {
            "opened": count,
            "answers": {answer: answers.count(answer) for answer in sorted(set(answers))},
            "most_files_of_the_server": most,
            "status_afterwards": connection.getresponse().status,
        }


def first_bytes(client: socket.socket) -> str:
    """Return the status that an idle connection gets in the end, or "closed"."""
    client.settimeout(30)
    try:
        return client.recv(12)[9:].decode() or "closed"
    except OSError:
        return "closed"


def memory(pid: int) -> float:
    """Return the resident memory of a process and its workers in MB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in (str(pid), *children)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(case: Case, seconds: float) -> dict[str, Any]:
    """Load the server for a long time; return its memory in MB, every tenth of that time, and its answers."""
    with serving(case.model, case.folder, "--latency", str(PATIENCE)) as (process, port, log):
        url = f"http://127.0.0.1:{port}/predict"
        words = ["-t1", f"-c{SATURATED}", f"-d{seconds:g}s", "-s", str(case.script), url]
        with subprocess.Popen(["wrk", *words], stdout=subprocess.DEVNULL):
            sizes = []
            for _ in range(10):
                time.sleep(seconds / 10)
                sizes.append(round(memory(process.pid), 1))
        with log.open() as lines:
            statuses = Counter(json.loads(line).get("status") for line in lines)
    return {"mb": sizes, "seconds": seconds, "answers": {str(code): n for code, n in statuses.items() if code}}


def main() -> None:
    """Measure the parts; print and write them, and the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="all by default")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--soak", type=float, default=60, help="seconds")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed")
    with tempfile.TemporaryDirectory() as name:
        case = prepare(MODEL, Path(name), arguments.seconds)
        parts: dict[str, Callable[[], Any]] = {
            "rows": lambda: compared(case, CONNECTIONS, bare),
            "networks": lambda: {
                network: compared(prepare(network, Path(name), arguments.seconds), (SATURATED,), bare)[0]
                for network in LARGER
            },
            "crowd": lambda: crowd(case),
            "workers": lambda: compared(case, CONNECTIONS[:3], bare_processes, "--workers", str(CORES)),
            "overload": lambda: overloaded(case),
            "sigterm": lambda: lost_at_sigterm(case),
            "soak": lambda: soak(case, arguments.soak),
        }
        if unknown := set(arguments.parts) - parts.keys():
            parser.error(f"there is no part {min(unknown)!r}; accepted: {', '.join(parts)}")
        stored = RESULTS / "load.json"
        kept = json.loads(stored.read_text("utf-8"))["result"] if stored.is_file() else {}
        result: dict[str, Any] = {part: kept[part] for part in parts if part in kept}
        for part in arguments.parts or parts:
            result[part] = parts[part]()
            print(part, result[part], flush=True)
            content = json.loads(write_result("load", result).read_text("utf-8"))
    write_table(content)


if __name__ == "__main__":
    main()
