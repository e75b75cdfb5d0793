"""SIGTERM loses nothing: clients that connected before the end are answered, whatever the server knows of them."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from uvicorn import Config

from mlpconv.deploy.connection import GuardedProtocol
from mlpconv.deploy.draining import DrainingServer
from mlpconv.deploy.guard import Guard
from mlpconv.deploy.limits import Limits

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLIENTS = 5


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def drain_with(clients: int, late: bool) -> list[bytes]:
    """Connect `clients` while the server stops, send a request at once or `late`, and return the answers."""
    guard = Guard(answer, Limits(linger_seconds=0.3, drain_seconds=5), log=lambda _: None)
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config(
        guard, interface="asgi3", http=GuardedProtocol, ws="none", lifespan="off", log_config=None, proxy_headers=False
    )
    config.load()
    server = DrainingServer(config, guard, lambda: None)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    loop = asyncio.get_running_loop()
    for one in server.servers:  # as if the kernel had connected the clients after the last look
        loop.remove_reader(one.sockets[0].fileno())
    connections = [socket.create_connection(listener.getsockname()) for _ in range(clients)]
    stopping = asyncio.create_task(server.shutdown([listener]))
    await asyncio.sleep(0.4 if late else 0)  # late: after the server has stopped to listen
    answers = [asyncio.to_thread(ask, connection) for connection in connections]
    found = await asyncio.gather(*answers)
    await stopping
    return list(found)


def ask(connection: socket.socket) -> bytes:
    with connection:
        connection.settimeout(20)
        try:
            connection.sendall(REQUEST)
            return connection.recv(15)
        except OSError as error:
            return repr(error).encode()


@pytest.mark.parametrize("late", [False, True])
def test_clients_that_the_kernel_had_connected_are_answered(late: bool) -> None:
    assert asyncio.run(drain_with(CLIENTS, late)) == [b"HTTP/1.1 200 OK"] * CLIENTS
