"""Compare the ways to run one trained network here: torch, ONNX Runtime and OpenVINO; float32, bfloat16 and int8.

    python benchmarks/deployed.py [--models nin_cifar10,squeezenet] [--threads 1,2] [--seconds 2]

Each way runs in a process of its own, from uint8 pixels to probabilities; the outputs are compared with those of plain
torch. Writes results/deployed.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

WAYS = (
    "torch eager", "torch compiled", "Classifier.predict fp32", "Classifier.predict auto", "onnxruntime",
    "openvino", "openvino bf16", "onnxruntime int8", "openvino int8",
)  # fmt: skip
BATCHES = (1, 8, 64)
PEAK_SIDE = 1024
Run = Callable[[np.ndarray], np.ndarray]


def open_way(way: str, model: str, folder: Path, threads: int) -> Run:
    """Return a function from uint8 pixels (N, C, H, W) to probabilities (N, K)."""
    if way.startswith(("torch", "Classifier")):
        return open_torch(way, model, threads)
    from mlpconv.deploy import Predictor

    path = folder / f"{model}{'-int8' if way.endswith('int8') else ''}.onnx"
    if way == "openvino bf16":
        return open_bf16(path, threads)
    name: Any = way.split(maxsplit=1)[0]
    return Predictor(path, engine=name, threads=threads).probabilities


def open_torch(way: str, model: str, threads: int) -> Run:
    """Return plain or compiled torch, or `Classifier.predict`."""
    import torch

    import mlpconv

    torch.set_num_threads(threads)
    classifier = mlpconv.load(model)
    if way.startswith("Classifier"):
        precision: Any = way.split()[1]
        return lambda pixels: classifier.predict(pixels, precision=precision).probabilities
    network = classifier.model if way == "torch eager" else torch.compile(classifier.model, dynamic=False)

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = classifier.preprocessing(torch.from_numpy(pixels)).contiguous(memory_format=torch.channels_last)
            result: np.ndarray = network(x).softmax(1).numpy()
            return result

    return run


def open_bf16(path: Path, threads: int) -> Run:
    """Return OpenVINO with bfloat16, which `Predictor` does not offer: its outputs are not those of training."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(path.read_bytes()), "CPU", settings).create_infer_request()

    def run(pixels: np.ndarray) -> np.ndarray:
        request.infer({"images": pixels}, share_inputs=True)
        return np.array(request.get_output_tensor(0).data)

    return run


def child(way: str, model: str, folder: Path, threads: int, seconds: float) -> None:
    """Measure one way and print the result as JSON."""
    start = time.perf_counter()
    pixels = np.load(folder / f"{model}.npy")
    run = open_way(way, model, folder, threads)
    run(pixels[:1])
    result: dict[str, Any] = {"start_seconds": time.perf_counter() - start, "batches": {}}
    np.save(folder / "outputs.npy", run(pixels))
    for batch in BATCHES:
        part = np.ascontiguousarray(pixels[:batch])
        times: list[float] = []
        end = time.perf_counter() + seconds
        run(part)
        while time.perf_counter() < end or len(times) < 5:
            begin = time.perf_counter()
            run(part)
            times.append((time.perf_counter() - begin) * 1e3)
        p50, p99 = (float(value) for value in np.quantile(times, (0.5, 0.99)))
        result["batches"][batch] = {
            "fastest_ms": min(times), "p50_ms": p50, "p99_ms": p99, "images_per_second": batch * 1e3 / p50,
        }  # fmt: skip
    result["peak_mb"] = peak_memory()
    print(json.dumps(result))


def peak_memory() -> float:
    """Return the peak memory of this process in MB; that of getrusage would include its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def peak_of(threads: int) -> tuple[str, float]:
    """Return the fastest float32 operation of torch and its GFLOP/s, in a process of its own."""
    code = (
        f"import torch, time, json; torch.set_num_threads({threads}); torch.set_grad_enabled(False)\n"
        f"a = torch.rand({PEAK_SIDE}, {PEAK_SIDE}); w = torch.rand(512, 512, 1, 1)\n"
        "x = torch.rand(16, 512, 28, 28).contiguous(memory_format=torch.channels_last)\n"
        f"work = {{'matrix product': (lambda: a @ a, 2 * {PEAK_SIDE} ** 3),\n"
        "        '1x1 convolution': (lambda: torch.conv2d(x, w), 2 * 16 * 28 ** 2 * 512 ** 2)}\n"
        "best = dict.fromkeys(work, 9.0)\n"
        "for _ in range(30):\n    for name, (run, _) in work.items():\n"
        "        t = time.perf_counter(); run(); best[name] = min(best[name], time.perf_counter() - t)\n"
        "print(json.dumps({name: work[name][1] / best[name] / 1e9 for name in work}))"
    )
    speeds: dict[str, float] = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    return max(speeds.items(), key=lambda item: item[1])


def prepare(model: str, folder: Path) -> None:
    """Export a network in float32 and int8, and store images to run it on."""
    import mlpconv
    from mlpconv.deploy.calibration import calibration_from_data
    from mlpconv.deploy.exportable import open_exportable
    from mlpconv.deploy.exporting import export_variants
    from mlpconv.deploy.quantize import Calibration

    source = open_exportable(model)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (max(BATCHES), *source.input_size), dtype=np.uint8)
    np.save(folder / f"{model}.npy", pixels)
    files = {"onnx": folder / f"{model}.onnx", "onnx-int8": folder / f"{model}-int8.onnx"}
    try:
        calibration = calibration_from_data(source)
    except mlpconv.MlpconvError:  # ImageNet is not here: quantise for speed only
        files.pop("onnx-int8")
        calibration = Calibration(pixels, pixels, None, "random pixels")
    export_variants(source, files, calibration)


def compare(model: str, threads: int, folder: Path, seconds: float) -> dict[str, Any]:
    """Return the measurements of every way for one network."""
    results: dict[str, Any] = {}
    expected = None
    for way in WAYS:
        if way.endswith("int8") and not (folder / f"{model}-int8.onnx").exists():
            continue
        words = ["--child", way, "--models", model, "--threads", str(threads), "--seconds", str(seconds)]
        done = subprocess.run(
            [sys.executable, __file__, *words, "--folder", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            results[way] = {"unavailable": done.stderr.strip().splitlines()[-1]}
            continue
        outputs = np.load(folder / "outputs.npy")
        expected = outputs if expected is None else expected
        results[way] = json.loads(done.stdout.splitlines()[-1])
        results[way]["largest_difference"] = float(np.abs(outputs - expected).max())
        row = ", ".join(
            f"{batch}: {entry['p50_ms']:.2f} ({entry['fastest_ms']:.2f}) ms"
            for batch, entry in results[way]["batches"].items()
        )
        print(f"{model}, {threads} threads, {way}: {row}", flush=True)
    return results


def main() -> None:
    """Measure all, or one way as a child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="nin_cifar10,squeezenet,efficientnet_lite0")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.models, arguments.folder, int(arguments.threads), arguments.seconds)
        return
    result: dict[str, Any] = {"peak_operation": {}, "peak_gflops": {}, "networks": {}}
    with tempfile.TemporaryDirectory() as name:
        for model in arguments.models.split(","):
            prepare(model, Path(name))
            for threads in map(int, arguments.threads.split(",")):
                result["peak_operation"][threads], result["peak_gflops"][threads] = peak_of(threads)
                networks = result["networks"].setdefault(model, {})
                networks[threads] = compare(model, threads, Path(name), arguments.seconds)
    write_result("deployed", result)


if __name__ == "__main__":
    main()
