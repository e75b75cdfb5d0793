"""Load the server with wrk: throughput against the bare engine, latency of what is accepted, refusals, SIGTERM.

    python benchmarks/load.py [--model nin_cifar10] [--seconds 10] [--soak SECONDS]

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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from load_report import write_table
from PIL import Image

from mlpconv.deploy import Predictor, export
from mlpconv.deploy.runtime import CORES

CONNECTIONS = (1, 4, 16, 64, 256)
BATCH = 32
OVERLOAD, CLIENTS = 4, 64  # times the capacity, over this many connections
LATENCIES = (0.1, 0.01, 0.001)
SCRIPT = """
local file = io.open("{image}", "rb")
wrk.method, wrk.body = "POST", file:read("*all")
file:close()
"""
PAUSE = "function delay() return math.random(0, {most}) end\n"


@contextmanager
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


def bare(model: Path, image: bytes, seconds: float, threads: int = CORES) -> float:
    """Return images/s of decoding and classifying in one process, without a server, in batches."""
    predictor = Predictor(model, engine="onnxruntime", threads=threads)
    predictor.predict([image] * BATCH)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        predictor.predict([image] * BATCH)
        count += BATCH
    return count / (time.perf_counter() - start)


def bare_processes(model: Path, image: bytes, seconds: float) -> float:
    """Return images/s of one process of one thread for each core."""
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        runs = [pool.submit(bare, model, image, seconds, 1) for _ in range(CORES)]
        return sum(run.result() for run in runs)


def with_workers(model: Path, folder: Path, image: bytes, seconds: float, script: Path) -> list[dict[str, Any]]:
    """Load a server with a worker of one thread for each core."""
    rows = []
    with serving(model, folder, "--workers", str(CORES)) as (_, port, log):
        for connections in CONNECTIONS[:3]:
            engine = bare_processes(model, image, seconds / 2)
            row = load(port, log, connections, seconds, script)
            row["bare_engine_per_second"] = (engine + bare_processes(model, image, seconds / 2)) / 2
            rows.append(row)
            print(f"{CORES} workers: {row}", flush=True)
    return rows


def overloaded(model: Path, folder: Path, capacity: float, seconds: float, script: Path) -> list[dict[str, Any]]:
    """Send OVERLOAD times as many requests as `capacity` a second, for several bounds of the waiting time."""
    paused = folder / "paused.lua"
    paused.write_text(script.read_text() + PAUSE.format(most=round(2000 * CLIENTS / (OVERLOAD * capacity))))
    rows = []
    for latency in LATENCIES:
        with serving(model, folder, "--latency", str(latency)) as (_, port, log):
            alone = load(port, log, 1, seconds, script)
            row = load(port, log, CLIENTS, seconds, paused)
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
    if not values:
        return None
    return {"p50": float(np.quantile(values, 0.5)), "p99": float(np.quantile(values, 0.99))}


def lost_at_sigterm(model: Path, folder: Path, image: bytes, clients: int = 8) -> dict[str, int]:
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
                    connection.request("POST", "/predict", image)
                    response = connection.getresponse()
                    response.read()
                    closing = response.getheader("connection") == "close"
                    counts["answered" if response.status == 200 else "refused"] += 1
            except (OSError, HTTPException):
                counts["lost"] += 1
            connection.close()

    with serving(model, folder, "--latency", "5") as (process, port, _):
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


def crowd(process: subprocess.Popen[str], port: int, count: int = 10_000) -> dict[str, Any]:
    """Open many connections that send nothing; return what became of them, and how many files the server had open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count, most = min(count, hard - 100), 0
    with contextlib.ExitStack() as stack:
        clients = []
        for index in range(count):
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)))
            if index % 200 == 0:
                most = max(most, len(os.listdir(f"/proc/{process.pid}/fd")))
        answers = [first_bytes(client) for client in clients]
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


def soak(process: subprocess.Popen[str], port: int, script: Path, seconds: float) -> list[float]:
    """Load the server for a long time; return its memory in MB, every tenth of that time."""
    words = ["-t1", "-c16", f"-d{seconds:g}s", "-s", str(script), f"http://127.0.0.1:{port}/predict"]
    with subprocess.Popen(["wrk", *words], stdout=subprocess.DEVNULL):
        sizes = []
        for _ in range(10):
            time.sleep(seconds / 10)
            sizes.append(round(memory(process.pid), 1))
    return sizes


def main() -> None:
    """Measure everything; print and write it, and the table of the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="nin_cifar10")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--soak", type=float, default=60)
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = export(arguments.model, folder / "model.onnx").path
        stream = io.BytesIO()
        shape = Predictor(model, engine="onnxruntime").input_size
        pixels = np.random.default_rng(0).integers(0, 256, (*shape[1:], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        (folder / "image.png").write_bytes(stream.getvalue())
        script = folder / "post.lua"
        script.write_text(SCRIPT.format(image=folder / "image.png"))
        result: dict[str, Any] = {"model": arguments.model, "rows": []}
        with serving(model, folder) as (process, port, log):
            for connections in CONNECTIONS:
                engine = bare(model, stream.getvalue(), arguments.seconds / 2)
                row = load(port, log, connections, arguments.seconds, script)
                row["bare_engine_per_second"] = (engine + bare(model, stream.getvalue(), arguments.seconds / 2)) / 2
                result["rows"].append(row)
                print(row, flush=True)
            result["soak_mb"] = soak(process, port, script, arguments.soak)
            result["soak_seconds"] = arguments.soak
            result["crowd"] = crowd(process, port)
            print(result["crowd"], flush=True)
        result["workers"] = with_workers(model, folder, stream.getvalue(), arguments.seconds, script)
        capacity = max(row["accepted_per_second"] for row in result["rows"])
        result["overload"] = overloaded(model, folder, capacity, arguments.seconds, script)
        result["sigterm"] = lost_at_sigterm(model, folder, stream.getvalue())
        print(result["soak_mb"], result["sigterm"])
    write_table(json.loads(write_result("load", result).read_text()))


if __name__ == "__main__":
    main()
