"""Compare the variants of an export on this machine, and say which one to ship here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlpconv.cores import CORES
from mlpconv.deploy.exporting import Exported
from mlpconv.deploy.parity import Pixels
from mlpconv.deploy.predictor import Predictor
from mlpconv.deploy.quantize import Calibration
from mlpconv.deploy.runtime import EngineName, installed_engines

__all__ = ["Variant", "advice", "measure_variants"]

BATCH = 64
SINGLES, BATCHES = 31, 5
CLEARLY_FASTER = 1.1  # times; below that, float32 is preferred, as its outputs are those of training


@dataclass(frozen=True)
class Variant:
    """One exported file run by one engine, on this machine."""

    file: str
    variant: str
    engine: str
    accuracy: float | None
    """On the held-out images; None without labels."""
    p50_ms: float
    """Median milliseconds for one image."""
    images_per_second: float
    """In batches of 64."""
    bytes: int

    @property
    def is_int8(self) -> bool:
        """Return whether weights and activations are int8."""
        return self.variant.endswith("int8")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self)


def measure_variants(
    exported: Sequence[Exported], calibration: Calibration | None, threads: int | None = None
) -> list[Variant]:
    """Measure each exported file with each engine that can run it; the accuracy is on the held-out images."""
    variants = []
    for item in exported:
        engines: list[EngineName] = ["openvino"]
        if item.path.suffix == ".onnx":
            engines = [name for name in ("onnxruntime", "openvino") if name in installed_engines()]
        for engine in engines:
            predictor = Predictor(item.path, engine=engine, threads=threads or CORES)
            variants.append(_measure(item, predictor, calibration))
    return variants


def _measure(item: Exported, predictor: Predictor, calibration: Calibration | None) -> Variant:
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *predictor.input_size), dtype=np.uint8)
    single, batch = _median(predictor, pixels[:1], SINGLES), _median(predictor, pixels, BATCHES)
    accuracy = None
    if calibration is not None and calibration.labels is not None:
        images = calibration.held_out
        rows = [predictor.probabilities(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        accuracy = float((np.concatenate(rows).argmax(1) == calibration.labels).mean())
    return Variant(
        item.path.name, item.variant, predictor.engine, accuracy, single * 1e3, BATCH / batch, item.bytes
    )  # fmt: skip


def _median(predictor: Predictor, pixels: Pixels, runs: int) -> float:
    """Return the median seconds of a call, after two others."""
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        predictor.probabilities(pixels)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[2:]))


def advice(variants: Sequence[Variant]) -> str:
    """Return which variant to ship on this machine and why, and whether int8 is slower than float32 here."""
    plain = min((item for item in variants if not item.is_int8), key=lambda item: item.p50_ms)
    small = min((item for item in variants if item.is_int8), key=lambda item: item.p50_ms, default=None)
    chosen, why = plain, f"{plain.p50_ms:.2f} ms for one image, with the outputs of training"
    if small is None:
        return f"Ship {chosen.file} with {chosen.engine} here: {why}."
    speedup = plain.p50_ms / small.p50_ms
    if speedup >= CLEARLY_FASTER:
        loss = ""
        if small.accuracy is not None and plain.accuracy is not None:
            loss = f" and {100 * (plain.accuracy - small.accuracy):.2f} points less accuracy"
        return (
            f"Ship {small.file} with {small.engine} here: {small.p50_ms:.2f} ms for one image, {speedup:.1f} times "
            f"as fast as float32, a file of {small.bytes / 1e6:.1f} instead of {plain.bytes / 1e6:.1f} MB{loss}."
        )
    verdict = f"int8 is {'slower' if speedup < 1 else 'no faster'} on this CPU ({small.p50_ms:.2f} ms)"
    return f"Ship {chosen.file} with {chosen.engine} here: {why}; {verdict}."
