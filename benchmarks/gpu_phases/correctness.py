"""What a GPU computes against the CPU: forward passes, gradients, preprocessing, augmentation, dropout, runs."""

from __future__ import annotations

import copy
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import mlpconv
from mlpconv.data.augment import Augmentation, augment
from mlpconv.errors import first_line
from mlpconv.models import Network, create_model, list_models
from mlpconv.models.dropout import Dropout
from mlpconv.preprocessing import STEPS, Preprocessing

__all__ = ["run"]

TOLERANCE = {"fp32": 1e-3, "bf16": 0.15}
"""Largest difference as a share of the largest number; bf16 has 8 significant bits, and layers add up."""
SMALL_MODELS = ("nin_tiny",)
RUN = """
import sys, torch, mlpconv
torch.use_deterministic_algorithms(True)
settings = {"epochs": 3, "width": 0.5, "dropout": 0.3, "flip": "random", "crop": 1, "norm": "batch"}
mlpconv.fit("digits", out=sys.argv[1], resume=True, device=sys.argv[2], precision="fp32",
            checkpoint_minutes=0, progress=None, report=False, **settings)
"""


def run(device: torch.device, *, small: bool, deadline: float, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Return a check by name: True, or a sentence that says what differs."""
    checks: dict[str, Any] = {}

    def check(name: str, verify: Callable[[], object]) -> None:
        if time.perf_counter() > deadline:
            checks[name] = "no time was left"
            return
        try:
            problem = verify()
        except Exception as error:  # noqa: BLE001  (whatever a driver raises is the result)
            problem = f"{type(error).__name__}: {first_line(error)}"[:200]
        checks[name] = True if problem is None else problem
        say({"checks": checks})

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name in SMALL_MODELS if small else list_models():
        for precision in TOLERANCE:
            check(f"{name} {precision}", functools.partial(differs, name, device, precision))
    for step in STEPS:
        check(f"preprocessing {step}", functools.partial(preprocessing_differs, step, device))
    check("augmentation", lambda: augmentation_differs(device))
    check("dropout", lambda: dropout_is_off(device))
    check("classifier", lambda: classifier_differs(device))
    check("a killed run resumes with the same bits", lambda: resume_differs(device))
    return {"checks": checks}


def differs(name: str, device: torch.device, precision: str) -> str | None:
    """Compare logits and gradients of one network on the device with those of the CPU in float32."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=7).eval()
    rows, columns = (min(side, max(64, model.min_size)) for side in model.input_size[1:])
    if model.fixed_size:
        rows, columns = model.input_size[1:]
    images = torch.randn(2, model.in_channels, rows, columns)
    expected = _logits_and_gradient(copy.deepcopy(model), images, torch.device("cpu"), "fp32")
    result = _logits_and_gradient(model, images, device, precision)
    for what, before, after in zip(("logits", "gradients"), expected, result, strict=True):
        gap = float((before - after).abs().max() / before.abs().max().clamp_min(1e-12))
        if not gap <= TOLERANCE[precision]:
            return f"{what} differ by {gap:.2g} of the largest"
    return None


def _logits_and_gradient(model: Network, images: Tensor, device: torch.device, precision: str) -> tuple[Tensor, Tensor]:
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images.to(device).contiguous(memory_format=torch.channels_last))
    logits = logits.float()
    F.cross_entropy(logits, torch.arange(len(images), device=device)).backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return logits.detach().cpu(), torch.cat(gradients).float().cpu()


def preprocessing_differs(step: str, device: torch.device) -> str | None:
    """Compare one preprocessing step, fitted on the CPU, on both devices."""
    images = np.random.default_rng(0).integers(0, 256, (37, 3, 13, 11), np.uint8)
    chain = Preprocessing.create([step], 3, (13, 11)).fit(images)
    expected = chain(images)
    result = copy.deepcopy(chain).to(device)(torch.from_numpy(images).to(device)).cpu()
    gap = float((expected - result).abs().max() / expected.abs().max())
    return None if gap <= 1e-4 else f"differs by {gap:.2g} of the largest number"


def augmentation_differs(device: torch.device) -> str | None:
    """Compare augmented batches bit for bit: every draw comes from the CPU."""
    images, index = torch.randn(53, 3, 13, 11), torch.arange(53)
    for kinds in (Augmentation(2, "reflect", "random", 3), Augmentation(3, "zero", "alternate", 0)):
        settings: dict[str, Any] = {"seed": 3, "step": 5, "epoch": 1, "index": index}
        if not torch.equal(augment(images, kinds, **settings), augment(images.to(device), kinds, **settings).cpu()):
            return f"{kinds} gives other images"
    return None


def dropout_is_off(device: torch.device) -> str | None:
    """Check the share of dropped numbers and their mean."""
    kept = Dropout(0.3).train()(torch.ones(1 << 20, device=device))
    share, mean = float((kept == 0).float().mean()), float(kept.mean())
    return None if abs(share - 0.3) < 0.003 and abs(mean - 1) < 0.005 else f"drops {share:.3f}, mean {mean:.3f}"


def classifier_differs(device: torch.device) -> str | None:
    """Compare predictions, evaluation and maps of a shipped network."""
    split = mlpconv.open_data("digits").split("test")
    cpu, other = mlpconv.load("digits"), mlpconv.load("digits").to(device)
    pixels = torch.from_numpy(np.array(split.images[:64]))
    gap = float((cpu.probabilities(pixels) - other.probabilities(pixels)).abs().max())
    gap = max(gap, float((cpu.maps(pixels) - other.maps(pixels).cpu()).abs().max()) / 10)
    errors = [mlpconv.evaluate(classifier, split).error for classifier in (cpu, other)]
    return None if gap < 1e-3 and errors[0] == errors[1] else f"probabilities differ by {gap:.2g}, errors {errors}"


def resume_differs(device: torch.device) -> str | None:
    """Kill a training run after its first checkpoint, resume it, and compare every weight with an unkilled run."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = (Path(folder, name) for name in ("whole", "killed"))
        _train(whole, device).wait(300)
        child = _train(killed, device)
        while child.poll() is None and not list(killed.glob("checkpoints/*")):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        _train(killed, device).wait(300)
        before, after = (mlpconv.load(path).model.state_dict() for path in (whole, killed))
        unlike = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    return f"{len(unlike)} of {len(before)} tensors differ" if unlike else None


def _train(folder: Path, device: torch.device) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(folder), device.type]
    return subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL)
