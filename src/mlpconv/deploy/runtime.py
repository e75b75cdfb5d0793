"""The inference engines that run exported files: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlpconv.cores import CORES
from mlpconv.deploy.ir_file import read_ir
from mlpconv.deploy.metadata import Metadata
from mlpconv.deploy.onnx_file import EXPORT_AGAIN, read_onnx
from mlpconv.errors import ExportError, UsageError, did_you_mean, first_line

__all__ = ["ENGINES", "EngineName", "Runtime", "installed_engines", "open_runtime", "require_engine"]

EngineName = Literal["auto", "onnxruntime", "openvino"]
ENGINES = ("auto", "onnxruntime", "openvino")
TRIALS = 5

Pixels = NDArray[np.uint8]
Outputs = list[NDArray[np.float32]]


class Runtime(Protocol):
    """An engine with a loaded graph."""

    name: str
    """onnxruntime or openvino, and its version."""

    def run(self, pixels: Pixels, outputs: Sequence[str]) -> Outputs:
        """Return the named outputs for uint8 pixels (N, C, H, W)."""


class OnnxRuntime:
    """ONNX Runtime on a CPU."""

    def __init__(self, content: bytes, threads: int) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # its errors are raised; the log would repeat them
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs = [item.name for item in self.session.get_inputs()]
        self.outputs = [item.name for item in self.session.get_outputs()]
        self.name = f"onnxruntime {onnxruntime.__version__}"

    def run(self, pixels: Pixels, outputs: Sequence[str]) -> Outputs:
        """Return the named outputs for uint8 pixels (N, C, H, W)."""
        results: Outputs = self.session.run(list(outputs), {"images": pixels})
        return results


class OpenVino:
    """OpenVINO on a CPU, in float32 unless the graph is int8."""

    def __init__(self, content: bytes, weights: bytes | None, threads: int) -> None:
        import openvino

        core = openvino.Core()
        if weights is None:
            model = core.read_model(content)
        else:
            model = core.read_model(content, openvino.Tensor(np.frombuffer(weights, np.uint8)))
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.inputs = [next(iter(item.names), "") for item in model.inputs]
        self.outputs = [next(iter(item.names), "") for item in model.outputs]
        self.name = f"openvino {openvino.__version__.split('-')[0]}"

    def run(self, pixels: Pixels, outputs: Sequence[str]) -> Outputs:
        """Return the named outputs for uint8 pixels (N, C, H, W)."""
        self.request.infer({"images": pixels}, share_inputs=True)
        return [np.array(self.request.get_output_tensor(self.outputs.index(name)).data) for name in outputs]


def installed_engines() -> list[str]:
    """Return the engines that are installed here."""
    return [name for name in ENGINES[1:] if importlib.util.find_spec(name) is not None]


def open_runtime(path: Path, engine: EngineName = "auto", threads: int | None = None) -> tuple[Metadata, Runtime, str]:
    """Open an exported file; return its metadata, the engine, and a sentence that says why this engine.

    With `auto`, an ONNX file is run by the faster of the installed engines. Raises ExportError for a file that cannot
    be used, UsageError for an unknown engine or one that is not installed.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine is {engine!r:.40}; {did_you_mean(str(engine)[:40], ENGINES)}")
    threads = CORES if threads is None else threads
    if threads < 1:
        raise UsageError(f"threads is {threads}; expected an integer of at least 1.")
    if path.suffix.lower() == ".xml":
        if engine == "onnxruntime":
            raise UsageError(f"{str(path)!r} is a file of OpenVINO; onnxruntime reads .onnx files.")
        require_engine("openvino")
        metadata, content, weights = read_ir(path)
        runtime = _load(path, metadata, lambda: OpenVino(content, weights, threads))
        return metadata, runtime, f"{runtime.name}: the file is in its format"
    metadata, onnx = read_onnx(path)
    makers: dict[str, Callable[[], Runtime]] = {
        "onnxruntime": lambda: OnnxRuntime(onnx, threads),
        "openvino": lambda: OpenVino(onnx, None, threads),
    }
    if engine != "auto":
        require_engine(engine)
        runtime = _load(path, metadata, makers[engine])
        return metadata, runtime, f"{runtime.name}: as requested"
    found = installed_engines()
    if not found:
        raise UsageError("Neither onnxruntime nor openvino is installed: pip install 'mlpconv[serve]'.")
    return metadata, *_fastest([_load(path, metadata, makers[name]) for name in found], metadata)


def require_engine(engine: str) -> None:
    """Raise UsageError if an engine is not installed."""
    if engine not in installed_engines():
        extra = "export" if engine == "onnxruntime" else engine
        raise UsageError(f"{engine} is not installed; install it with: pip install 'mlpconv[{extra}]'.")


def _load(path: Path, metadata: Metadata, make: Callable[[], Any]) -> Any:
    """Load a graph; raise ExportError if that fails, or its inputs and outputs are not those that the metadata name."""
    try:
        runtime = make()
    except Exception as error:  # the engines define their own exceptions, with messages of many lines
        raise ExportError(f"The file {str(path)!r} cannot be loaded ({first_line(error)}).") from error
    if runtime.inputs != ["images"] or not set(metadata.outputs) <= set(runtime.outputs):
        raise ExportError(f"The file {str(path)!r} has a graph that its metadata do not describe. {EXPORT_AGAIN}")
    return runtime


def _fastest(runtimes: list[Any], metadata: Metadata) -> tuple[Any, str]:
    """Return the engine with the lowest median latency of one image, and a sentence with the latencies."""
    if len(runtimes) == 1:
        return runtimes[0], f"{runtimes[0].name}: the only engine installed"
    pixels = np.random.default_rng(0).integers(0, 256, (1, *metadata.input_size), dtype=np.uint8)
    latencies = [_median_latency(runtime, pixels) for runtime in runtimes]
    best = int(np.argmin(latencies))
    shown = ", ".join(f"{runtime.name} {ms:.2f} ms" for runtime, ms in zip(runtimes, latencies, strict=True))
    return runtimes[best], f"{runtimes[best].name}: the fastest for one image ({shown})"


def _median_latency(runtime: Any, pixels: Pixels) -> float:
    """Return milliseconds per image, after a warm-up."""
    times = []
    for _ in range(TRIALS + 2):
        start = time.perf_counter()
        runtime.run(pixels, ["probabilities"])
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times[2:]))
