"""The programs that `benchmarks/speed.py` compares, each in its own process.

A contender is a function of (Rounds, Settings) that loops forever and calls `rounds.lap(images)` after each step or
batch; `Rounds` blocks it between its turns. Its module is imported in its own process only, so that process-wide
settings (malloc, threads, denormals) affect no other contender.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CONTENDERS", "PAPERS", "PEAK", "PLAIN", "Contender", "Settings"]

PAPERS = "nin_cifar10"
"""The paper's network."""


@dataclass(frozen=True)
class Settings:
    """Settings of all contenders: batch size, image side in pixels, threads (0: the default of torch).

    Inference runs with the batch size from `batches` that a round requests, and with any shipped `network`; training
    and `plain` with the paper's.
    """

    batch: int = 128
    batches: tuple[int, ...] = (128, 1)
    side: int = 32
    threads: int = 0
    seconds: float = 6.0
    network: str = PAPERS

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return the settings that `json.dumps(asdict(settings))` wrote."""
        values = json.loads(text)
        return cls(**(values | {"batches": tuple(values["batches"])}))


@dataclass(frozen=True)
class Contender:
    """A program: `module.function(rounds, settings, **options)`; `work` determines the operations per image."""

    label: str
    work: str  # "training", "inference" or "peak"
    call: str
    options: dict[str, Any] = field(default_factory=dict)


def _ours(label: str, **options: Any) -> Contender:
    return Contender(label, "training", "trainer.train", options)


def _infers(label: str, call: str, **options: Any) -> Contender:
    return Contender(label, "inference", f"inference.{call}", options)


CONTENDERS = {
    "matmul": Contender("matrix product", "peak", "matmul.peak"),
    "plain": Contender("plain port", "training", "port.train"),
    "plain-memory": Contender("plain port, our memory settings", "training", "port.train", {"memory": True}),
    "plain-compiled": Contender(
        "plain port, our memory settings, compiled", "training", "port.train", {"memory": True, "compiled": True}
    ),
    "ours-fp32": _ours("mlpconv, paper's network, fp32", kind="dropout", precision="fp32"),
    "ours-bf16": _ours("mlpconv, paper's network, bf16", kind="dropout", precision="bf16"),
    "ours-norm-fp32": _ours("mlpconv, batch norm, fp32", kind="norm", precision="fp32"),
    "ours-norm-bf16": _ours("mlpconv, batch norm, bf16", kind="norm", precision="bf16"),
    "ours-fast": _ours("mlpconv, recipe fast, dtype chosen automatically", kind="fast", precision="auto"),
    "eager": _infers("torch as ports run it", "eager", memory=False),
    "eager-memory": _infers("torch as ports run it, our memory settings", "eager", memory=True),
    "compiled-fp32": _infers("torch.compile, channels-last, fp32", "compiled", precision="fp32"),
    "compiled-bf16": _infers("torch.compile, channels-last, bf16", "compiled", precision="bf16"),
    "onnxruntime": _infers("ONNX Runtime, fp32", "onnx"),
    "openvino-fp32": _infers("OpenVINO, fp32", "openvino", precision="fp32"),
    "openvino-bf16": _infers("OpenVINO, bf16", "openvino", precision="bf16"),
    "model-fp32": _infers("mlpconv's network alone, fp32", "model", precision="fp32"),
    "model-bf16": _infers("mlpconv's network alone, bf16", "model", precision="bf16"),
    "engine-fp32": _infers("mlpconv's engine on preprocessed floats, fp32", "engine", precision="fp32"),
    "engine-bf16": _infers("mlpconv's engine on preprocessed floats, bf16", "engine", precision="bf16"),
    "predict": _infers("mlpconv, Classifier.predict on pixels", "predict", memory=True),
    "predict-alone": _infers("Classifier.predict without our memory settings", "predict", memory=False),
}
PEAK, PLAIN = "matmul", {"training": "plain", "inference": "eager"}
