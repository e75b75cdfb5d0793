"""What the server counts and times, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mlpconv.deploy.worker_pool import Stages

__all__ = ["Metrics"]

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics(Stages):
    """Counters, histograms in seconds, and the length of the queue. Images over executions is the mean batch."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("mlpconv_requests", "Requests, by status code.", ["code"], registry=registry)
        self.images = Counter("mlpconv_images", "Images classified.", registry=registry)
        self.executions = Counter("mlpconv_executions", "Batches run.", registry=registry)
        self.restarts = Counter("mlpconv_worker_restarts", "Workers replaced.", ["reason"], registry=registry)
        self.queue = Gauge("mlpconv_queue_images", "Images waiting.", registry=registry)
        self.waited = self._histogram("queue", "From the arrival of a request to the start of its batch.")
        self.decoded = self._histogram("decode", "Decoding the images of a batch.")
        self.computed = self._histogram("compute", "Running the network on a batch.")
        self.answered = self._histogram("request", "From the headers of a request to its response.")

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"mlpconv_{name}_seconds", text, buckets=BUCKETS, registry=self.registry)

    def queued(self, images: int) -> None:
        """Set the number of images that wait."""
        self.queue.set(images)

    def executed(self, images: int, waited: Sequence[float], decode: float, compute: float) -> None:
        """Count a batch, with its seconds of waiting (of each job), decoding and computing."""
        self.images.inc(images)
        self.executions.inc()
        self.decoded.observe(decode)
        self.computed.observe(compute)
        for seconds in waited:
            self.waited.observe(seconds)

    def restarted(self, reason: str) -> None:
        """Count a replaced worker."""
        self.restarts.labels(reason).inc()

    def logged(self, entry: dict[str, Any]) -> None:
        """Count a request from its entry in the log."""
        if "status" in entry:
            self.requests.labels(str(entry["status"])).inc()
            if "ms" in entry:
                self.answered.observe(entry["ms"] / 1e3)

    def text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)
