"""Run servers in processes of their own, and speak HTTP to them byte by byte."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Answer", "Served", "connect", "exchange", "read_answer", "request", "running", "serve_command"]

START_SECONDS = 60


@dataclass(frozen=True)
class Served:
    """A running server."""

    port: int
    process: subprocess.Popen[str]
    log: Path

    def entries(self) -> list[dict[str, Any]]:
        """The lines of its log, each of which must be JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@dataclass(frozen=True)
class Answer:
    """An HTTP response; status 0 if the connection was closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def running(words: list[str], folder: Path) -> Iterator[Served]:
    """Run a command that prints the URL it serves on; stop it in the end."""
    log = folder / f"server-{time.monotonic_ns()}.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment)
    try:
        line = process.stdout.readline() if process.stdout else ""
        found = re.search(r":(\d+)/", line)
        assert found is not None, f"the server did not start: {line} {log.read_text()}"
        yield Served(int(found[1]), process, log)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def serve_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mlpconv", "serve", *words, "--port", "0"]


def connect(port: int, timeout: float = 30) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout)


def exchange(port: int, content: bytes, timeout: float = 30) -> Answer:
    """Send bytes and return the first response."""
    with connect(port, timeout) as connection:
        with suppress(OSError):  # refused while sending: the answer may have arrived nevertheless
            connection.sendall(content)
        return read_answer(connection)


def request(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, timeout: float = 30
) -> Answer:
    """Send a well-formed request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return exchange(port, "\r\n".join([*lines, "", ""]).encode() + body, timeout)


def read_answer(connection: socket.socket) -> Answer:
    """Read one response; skip an interim one."""
    content = b""
    try:
        while b"\r\n\r\n" not in content or content.startswith(b"HTTP/1.1 100"):
            if content.startswith(b"HTTP/1.1 100") and b"\r\n\r\n" in content:
                content = content.partition(b"\r\n\r\n")[2]
                continue
            part = connection.recv(65536)
            if not part:
                return Answer(0, {}, content)
            content += part
        head, _, body = content.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", "0")):
            part = connection.recv(65536)
            if not part:
                break
            body += part
    except (ConnectionError, TimeoutError):
        return Answer(0, {}, content)
    return Answer(int(lines[0].split()[1]), headers, body)
