"""The guard, in one process without a network: what it refuses, what it adds, and that it counts back to zero."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from mlpconv.deploy.guard import Guard, Refusal
from mlpconv.deploy.limits import Limits
from mlpconv.errors import ServerError, UsageError

HOST = (b"host", b"localhost")


class Call:
    """One request to a guard, with what it sent and logged."""

    def __init__(self, app: Any, **settings: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.guard = Guard(app, log=self.log.append, **settings)

    def __call__(self, *parts: bytes, path: str = "/", headers: Any = (), wait: float = 0, gone: bool = False) -> Call:
        messages = [
            {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
            for index, part in enumerate(parts or (b"",))
        ]

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(wait)
            if gone or not messages:
                return {"type": "http.disconnect"}
            return messages.pop(0)

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": [HOST, *headers], "client": ("1.2.3.4", 5)}
        asyncio.run(self.guard(scope, receive, send))
        assert self.guard.running == self.guard.buffered == 0
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def error(self) -> dict[str, str]:
        return json.loads(self.sent[1]["body"])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=1")]})
    await send({"type": "http.response.body", "body": message["body"]})


def fails(error: Exception) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    return app


async def slow(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(30)


def test_a_request_passes_with_its_whole_body_and_default_headers() -> None:
    call = Call(echo)(b"ab", b"cd")
    headers = dict(call.sent[0]["headers"])
    assert call.sent[1]["body"] == b"abcd"
    assert headers[b"cache-control"] == b"max-age=1"  # that of the application
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert call.log[0]["id"].encode() == headers[b"x-request-id"]
    assert (call.log[0]["bytes_in"], call.log[0]["bytes_out"], call.log[0]["status"]) == (4, 4, 200)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([(b"content-length", b"101")], 413, "too_large"),
        ([(b"content-length", b"9" * 40)], 413, "too_large"),
        ([(b"content-length", b"-1")], 400, "length"),
        ([(b"content-length", b"1"), (b"content-length", b"2")], 400, "length"),
        ([(b"content-encoding", b"gzip")], 415, "encoding"),
        ([HOST], 400, "host"),
    ],
)
def test_headers_are_checked_before_the_body_is_read(headers: Any, status: int, code: str) -> None:
    call = Call(echo, limits=Limits(body_bytes=100))(b"x", headers=headers)
    assert (call.status, call.error["code"]) == (status, code)
    assert (b"connection", b"close") in call.sent[0]["headers"]
    assert call.log[0]["bytes_in"] == 0


def test_bytes_are_counted_whatever_the_headers_say() -> None:
    limits = Limits(body_bytes=100)
    assert Call(echo, limits=limits)(b"x" * 60, b"x" * 40).status == 200
    assert Call(echo, limits=limits)(b"x" * 60, b"x" * 41, headers=[(b"content-length", b"3")]).status == 413
    call = Call(echo, limits=Limits(body_bytes=100, buffered_bytes=50))(b"x" * 60)
    assert (call.status, call.error["code"]) == (503, "busy")
    assert (b"retry-after", b"1") in call.sent[0]["headers"]


def test_a_slow_body_and_a_slow_application_end_at_their_deadlines() -> None:
    call = Call(echo, limits=Limits(receive_seconds=0.05))(b"a", b"b", wait=0.04)
    assert (call.status, call.error["code"]) == (408, "slow")
    call = Call(slow, limits=Limits(answer_seconds=0.05))(b"a")
    assert (call.status, call.error["code"]) == (504, "deadline")


def test_a_busy_server_refuses_at_once_but_answers_probes() -> None:
    call = Call(echo, limits=Limits(requests=1), probes=["/live"])
    call.guard.running = 1
    with pytest.raises(AssertionError):  # the count does not return to zero here
        call(b"a")
    assert (call.status, call.error["code"]) == (503, "busy")
    with pytest.raises(AssertionError):
        call(b"a", path="/live")
    assert call.sent[2]["status"] == 200


def test_other_hosts_are_refused_if_hosts_are_named() -> None:
    assert Call(echo, hosts=["localhost"])(b"").status == 200
    call = Call(echo, hosts=["example.org"])(b"")
    assert (call.status, call.error["code"]) == (421, "host")


def test_errors_of_the_application_have_no_internals() -> None:
    call = Call(fails(ValueError("secret /path")))(b"")
    assert (call.status, call.error["code"]) == (500, "internal")
    assert b"secret" not in call.sent[1]["body"]
    assert "secret" in call.log[0]["note"]
    call = Call(fails(Refusal(422, "image", "Not an image.")))(b"", path="/v2/models/m/infer")
    assert call.error == {
        "code": "image", "message": "Not an image.", "error": "Not an image.", "id": call.log[0]["id"],
    }  # fmt: skip


def test_a_failure_after_the_response_has_begun_cuts_the_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise Refusal(422, "late", "Too late.")

    call = Call(app)
    with pytest.raises(Refusal):
        call(b"")
    assert [message["type"] for message in call.sent] == ["http.response.start"]


def test_a_closed_log_does_not_stop_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    call = Call(echo)
    call.guard.log = Guard(echo).log
    assert call(b"").status == 200


def test_errors_in_text_become_json() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain"), (b"allow", b"GET")]
        await send({"type": "http.response.start", "status": 405, "headers": headers})
        await send({"type": "http.response.body", "body": b"Method Not Allowed"})

    call = Call(app)(b"")
    assert (call.status, call.error["code"]) == (405, "method_not_allowed")
    assert (b"allow", b"GET") in call.sent[0]["headers"]


def test_a_client_that_is_gone_gets_nothing() -> None:
    call = Call(echo)(b"", gone=True)
    assert call.sent == []
    assert call.log[0]["status"] == 499


def test_no_request_can_forge_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(echo)
    call.guard.log = Guard(echo).log
    call(b"", path='/x\r\n{"status": 200}\x1b[31m\u2028')
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
    assert json.loads(lines[0])["path"].startswith("/x\r\n")


def test_connections_are_asked_to_close_while_draining() -> None:
    call = Call(echo)
    call.guard.draining = True
    assert (b"connection", b"close") in call(b"").sent[0]["headers"]


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "1"])
def test_limits_must_be_positive_numbers(value: Any) -> None:
    with pytest.raises(UsageError, match="body_bytes"):
        Limits(body_bytes=value)


def test_addresses_that_cannot_be_used_are_explained() -> None:
    from mlpconv.deploy.serving import listen

    with listen("127.0.0.1", 0, 8) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", port, 8)
    with pytest.raises(ServerError, match="cannot be used"):
        listen("192.0.2.1", 0, 8)
    with pytest.raises(UsageError, match="0 to 65535"):
        listen("127.0.0.1", 70000, 8)


def test_websockets_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(echo)({"type": "websocket"}, None, send))  # type: ignore[arg-type]
    assert sent[0]["type"] == "websocket.close"
