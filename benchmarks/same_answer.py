"""Classify the same encoded images by torch, ONNX Runtime, OpenVINO and the server, and compare the answers.

    python benchmarks/same_answer.py [--images 10000] [--model nin_cifar10] [--data cifar10]

The images are those of a data set, resized to various sizes and encoded as PNG, JPEG, WebP and BMP.
Writes results/same_answer.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from PIL import Image

import mlpconv
from mlpconv.data.inputs import read_pixels
from mlpconv.deploy import Predictor
from mlpconv.deploy.exportable import open_exportable
from mlpconv.deploy.exporting import export_variants

SIZES = ((32, 32), (48, 32), (40, 60), (97, 89), (31, 33))
FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {"quality": 80}), ("BMP", {}),
)  # fmt: skip
BATCH = 50
Rows = np.ndarray


def encoded(data: str, count: int) -> list[bytes]:
    """Return images of a data set as files of various formats and sizes."""
    splits = mlpconv.open_data(data).splits
    images = np.concatenate([split.images for split in splits.values()])[:count]
    files = []
    for index, image in enumerate(images):
        (name, options), size = FORMATS[index % len(FORMATS)], SIZES[index % len(SIZES)]
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        stream = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(stream, name, **options)
        files.append(stream.getvalue())
    return files


def by_server(path: Path, files: list[bytes], classes: tuple[str, ...]) -> Rows:
    """Return probabilities (N, K) that a server of its own answers, one image per request."""
    command = [sys.executable, "-m", "mlpconv", "serve", str(path), "--port", "0", "--latency", "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        line = server.stdout.readline() if server.stdout else ""
        connection = HTTPConnection(line.split()[2].removeprefix("http://").strip("/"), timeout=60)
        rows = np.zeros((len(files), len(classes)), np.float32)
        index = {name: position for position, name in enumerate(classes)}
        for row, content in zip(rows, files, strict=True):
            connection.request("POST", f"/predict?top={len(classes)}", content)
            answer = json.loads(connection.getresponse().read())
            for entry in answer["predictions"][0]["top"]:
                row[index[entry["label"]]] = entry["confidence"]
        connection.close()
        server.send_signal(signal.SIGTERM)
    return rows


def main() -> None:
    """Classify in every way; print and write the largest differences from torch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--model", default="nin_cifar10")
    parser.add_argument("--data", default="cifar10")
    arguments = parser.parse_args()
    classifier = mlpconv.load(arguments.model)
    files = encoded(arguments.data, arguments.images)
    options = classifier.preprocessing.decode_options
    chunks = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    different = 0
    for chunk in chunks:
        pixels = [read_pixels(file, classifier.input_size, options) for file in chunk]
        different += int((classifier.pixels(chunk).numpy() != np.stack(pixels)).sum())
    expected = np.concatenate([np.asarray(classifier.predict(chunk, precision="fp32")) for chunk in chunks])
    with tempfile.TemporaryDirectory() as folder:
        onnx, xml = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        export_variants(open_exportable(classifier), {"onnx": onnx, "openvino": xml}, None)
        ways: dict[str, Callable[[], Rows]] = {
            "Predictor, onnxruntime": lambda: predicted(Predictor(onnx, engine="onnxruntime"), chunks),
            "Predictor, openvino, ONNX file": lambda: predicted(Predictor(onnx, engine="openvino"), chunks),
            "Predictor, openvino, OpenVINO file": lambda: predicted(Predictor(xml), chunks),
            "server": lambda: by_server(onnx, files, classifier.classes),
        }
        results = {}
        for name, run in ways.items():
            rows = run()
            results[name] = {
                "other_classes": int((rows.argmax(1) != expected.argmax(1)).sum()),
                "largest_difference": float(np.abs(rows - expected).max()),
            }
            print(f"{name}: {results[name]}", flush=True)
    write_result("same_answer", {
        "images": len(files), "reference": "Classifier.predict, fp32", "different_pixels": different, "ways": results,
    })  # fmt: skip


def predicted(predictor: Predictor, chunks: list[list[bytes]]) -> Rows:
    """Return probabilities (N, K)."""
    return np.concatenate([np.asarray(predictor.predict(chunk)) for chunk in chunks])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
