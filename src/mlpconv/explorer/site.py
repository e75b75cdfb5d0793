"""Write the page as a static folder that works from a file system and on any web server.

The network runs in the browser, in double precision; an exported site needs no server and loads nothing else.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpconv.errors import RunFolderError, SurgeryError, UsageError
from mlpconv.explorer.app import static_files
from mlpconv.explorer.bundle import bundle
from mlpconv.explorer.subject import Subject
from mlpconv.files import write_atomic

__all__ = ["export_site"]

MOST_BYTES = 8_000_000
"""Size of a site, compressed as web servers do."""
MOST_WORK = 2_000_000_000
"""Multiply-adds that measuring the accuracy in the browser may cost."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; base-uri 'none'; "
    "form-action 'none'"
)


def export_site(subject: Subject | None, folder: Path, *, other: Subject | None = None, force: bool = False) -> int:
    """Write index.html, explorer.js, style.css and a file per network to a folder; return the bytes written.

    Raises UsageError for a folder with other content unless `force`, or a network that is too large, SurgeryError for
    a network with operations that the page cannot compute.
    """
    files = static_files()
    scripts = {name: content.decode() for name, content in files.items() if name.endswith(".js")}
    written = {"explorer.js": bundle(scripts, "boot-site.js").encode(), "style.css": files["style.css"]}
    sites = {"network.js": ("MLPCONV_SITE", subject), "other.js": ("MLPCONV_OTHER", other)}
    for name, (variable, one) in sites.items():
        if one is not None:
            written[name] = f"window.{variable} = {json.dumps(_site(one), allow_nan=False)};\n".encode()
    names = [*(name for name in sites if name in written), "explorer.js"]
    written["index.html"] = _index(files["index.html"].decode(), names).encode()
    size = sum(len(gzip.compress(content, 6)) for content in written.values())
    if size > MOST_BYTES:
        raise UsageError(
            f"The site would have {size / 1e6:.1f} MB compressed; at most {MOST_BYTES / 1e6:.0f} MB are written. Take "
            f"fewer images or a smaller network, or serve it with mlpconv explore."
        )
    _write(folder, written, force)
    return sum(map(len, written.values()))


def _write(folder: Path, files: dict[str, bytes], force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{str(folder)!r} is a file: give a folder with --export.")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise RunFolderError(f"{str(folder)!r} is not empty: give another folder, or overwrite the site with --force.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content)


def _index(page: str, scripts: list[str]) -> str:
    """Return the page with classic scripts, and its policy in the page itself, as a static host sets no header."""
    tags = "\n".join(f'<script defer src="{name}"></script>' for name in scripts)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}')
    page = page.replace('<script type="module" src="static/boot.js"></script>', tags)
    return page.replace("static/style.css", "style.css")


def _site(subject: Subject) -> dict[str, Any]:
    """Return everything the browser needs: steps, weights, images, and held-out images where they are small."""
    unknown = [step for step in subject.program.steps if step["op"] == "other"]
    if unknown:
        raise SurgeryError(
            f"The page cannot compute {unknown[0]['module']} in the browser, so this network cannot be exported: "
            "serve it with mlpconv explore."
        )
    weights, steps, at = [], [], 0
    for step in subject.program.steps:
        stored = {}
        if step["op"] in ("conv", "norm"):
            vector = subject.weights(step["id"], "")
            stored = {"stored": [at, at + len(vector)]}
            at += len(vector)
            weights.append(vector)
        steps.append(step | stored)
    model = subject.describe() | {"steps": steps, "canAdd": False}
    held_out = _held_out(subject)
    if held_out is None:
        model["heldOut"] = {"count": 0, "why": "Accuracy is measured by mlpconv explore, on the server."}
    return {
        "model": model,
        "weights": _floats(torch.cat(weights)),
        "images": [
            {"pixels": _text(pixels.contiguous().numpy().tobytes()), "input": _floats(subject.input(number))}
            for number, pixels in enumerate(subject.pixels)
        ],
        "heldOut": held_out,
    }


def _held_out(subject: Subject) -> dict[str, Any] | None:
    """Return the preprocessed held-out images and labels; None if the browser would compute for long."""
    split = subject.held_out
    if split is None or len(split) * _work(subject) > MOST_WORK:
        return None
    with torch.inference_mode():
        inputs = subject.classifier.preprocessing(torch.from_numpy(np.array(split.images)))
    return {"inputs": _floats(inputs), "labels": split.labels.tolist()}


def _work(subject: Subject) -> int:
    """Return the multiply-adds of one image."""
    convs = [step for step in subject.program.steps if step["op"] == "conv"]
    return sum(
        int(np.prod(step["shape"])) * step["in"] // step["groups"] * step["kernel"][0] * step["kernel"][1]
        for step in convs
    )


def _floats(values: Tensor) -> str:
    """Return values as base64 of little-endian float32, which the network's weights and inputs are."""
    return _text(values.detach().float().contiguous().numpy().astype("<f4").tobytes())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
