"""Checkpoints that are whole or absent: a folder of files and a manifest of their sizes and SHA-256, written last.

A checkpoint is staged beside its place, synced, and renamed; the newest whole one counts; the last three stay.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from mlpconv.errors import CheckpointError
from mlpconv.files import fsync_folder, json_bytes, write_synced
from mlpconv.text import resume_hint

__all__ = ["Checkpoint", "latest", "save"]

MANIFEST = "MANIFEST.json"
KEPT = 3
MAX_FILE_BYTES, MAX_MANIFEST_BYTES = 2 << 30, 1 << 20
FILE_NAME = re.compile(r"[a-z]{1,32}\.(safetensors|json)")
Checkpoint = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write groups of tensors and a JSON state as the checkpoint of a step; raises CheckpointError, the others stay."""
    files = {f"{name}.safetensors": serialise(group) for name, group in tensors.items()}
    files["state.json"] = json_bytes(state)
    sums = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    try:
        folder.mkdir(exist_ok=True)
        sweep(folder)
        target = unused(folder / f"step-{step:09d}")
        publish(target, files | {MANIFEST: json_bytes(sums)})
        prune(folder, target)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder} ({error.strerror}); the ones before it "
            f"are kept. Make room or give the folder write permission. {resume_hint(folder.parent)}"
        ) from error
    return target


def serialise(group: dict[str, Tensor]) -> bytes:
    return save_safetensors({name: value.detach().contiguous().cpu() for name, value in group.items()})


def unused(target: Path) -> Path:
    """The path, or one that sorts after it: what is there of the same step stays until something better is whole."""
    while target.exists():
        target = target.with_name(f"{target.name}+")
    return target


def publish(target: Path, files: dict[str, bytes]) -> None:
    """Make `target` appear at once with all its files, in the order given."""
    staging = target.with_name(f".staging-{secrets.token_hex(4)}")
    staging.mkdir()
    try:
        for name, content in files.items():
            write_synced(staging / name, content)
        fsync_folder(staging)
        os.rename(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    fsync_folder(target.parent)


def sweep(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for litter in folder.glob(".staging-*"):
        shutil.rmtree(litter, ignore_errors=True)


def prune(folder: Path, newest: Path) -> None:
    """Remove all but the last ones up to `newest`, and others of its step; what lies beyond it is damaged."""
    behind = [path for path in steps(folder) if path.name < newest.name]
    same = [path for path in behind if newest.name.startswith(path.name)]
    earlier = [path for path in behind if path not in same]
    for old in same + earlier[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)  # the new one is whole: an old one that stays is no reason to stop


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first, whole or not."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a sentence about each newer one that is damaged."""
    notes: list[str] = []
    for path in steps(folder):
        try:
            return read(path), notes
        except CheckpointError as error:
            notes.append(str(error))
    return None, notes


def read(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; raises CheckpointError naming the file that is missing or damaged."""
    sums = parse_manifest(path)
    files = {name: verified(path / name, entry) for name, entry in sums.items()}
    try:
        tensors = {
            name.removesuffix(".safetensors"): load_safetensors(content)
            for name, content in files.items()
            if name.endswith(".safetensors")
        }
        return tensors, json.loads(files["state.json"])
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its files cannot be read ({type(error).__name__}).") from error


def parse_manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        if size_of(path / MANIFEST) > MAX_MANIFEST_BYTES:
            raise ValueError(MANIFEST)
        sums: dict[str, dict[str, Any]] = json.loads((path / MANIFEST).read_bytes())
        for name, entry in sums.items():
            if not FILE_NAME.fullmatch(name) or type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
                raise ValueError(name)
    except OSError as error:
        raise CheckpointError(f"{path} is not whole: its {MANIFEST} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its {MANIFEST} is not a list of files.") from error
    return sums


def verified(path: Path, entry: dict[str, Any]) -> bytes:
    try:
        size = size_of(path)
        if size != entry["bytes"] or size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} is damaged: it has {size:,} bytes, {entry['bytes']:,} were written.")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that was written.")
    return content


def size_of(path: Path) -> int:
    """The bytes of a file; raises OSError for a pipe, a link or a folder: none of ours, and a read could block."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status.st_size
