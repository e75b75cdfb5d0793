"""What a server accepts: sizes, counts and deadlines. docs/serve.md lists the defaults; a test compares."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mlpconv.errors import UsageError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """The limits of a server; raises UsageError for a value that is not positive. Times are in seconds."""

    body_bytes: int = 16 << 20
    """Bytes in the body of one request; more is answered with 413."""
    buffered_bytes: int = 256 << 20
    """Bytes in the bodies of all requests together; beyond that, 503."""
    requests: int = 64
    """Requests being answered at a time; more are answered with 503 at once. Bodies still arriving do not count."""
    connections: int = 512
    """Open connections; more are answered with 503 and closed."""
    header_bytes: int = 32 << 10
    """Bytes in the request line and headers; more is answered with 431."""
    header_count: int = 100
    """Headers of a request; more are answered with 431."""
    receive_seconds: float = 10.0
    """To receive the headers of a request, and again to receive its body; then 408."""
    answer_seconds: float = 10.0
    """To compute the answer; then 504."""
    send_seconds: float = 10.0
    """For a client that has stopped reading its response; then the connection is reset."""
    idle_seconds: float = 30.0
    """Between two requests of a connection."""
    linger_seconds: float = 0.5
    """After SIGTERM, during which new connections are still answered while clients are asked to close theirs."""
    drain_seconds: float = 30.0
    """After that, for the requests in progress."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise UsageError(f"The limit {field.name} is {value!r:.40}; expected a positive number.")
