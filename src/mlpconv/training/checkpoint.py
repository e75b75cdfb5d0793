"""Atomic checkpoints: a folder of files, and a manifest of their sizes and SHA-256 hashes that is written last.

A checkpoint is written to a staging folder, synced, and renamed. The newest intact one is loaded; the last three are
kept.
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
KEEP_LAST = 3
MAX_FILE_BYTES, MAX_MANIFEST_BYTES = 2 << 30, 1 << 20
FILE_NAME = re.compile(r"[a-z]{1,32}\.(safetensors|json)")
Checkpoint = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write groups of tensors and a JSON state as the checkpoint of a step; return its folder.

    Raises CheckpointError if writing fails; earlier checkpoints are kept.
    """
    files = {f"{name}.safetensors": serialise(group) for name, group in tensors.items()}
    files["state.json"] = json_bytes(state)
    manifest = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    try:
        folder.mkdir(exist_ok=True)
        remove_staging(folder)
        target = free_path(folder / f"step-{step:09d}")
        publish(target, files | {MANIFEST: json_bytes(manifest)})
        prune(folder, target)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder} ({error.strerror}); earlier "
            f"checkpoints are kept. Free disk space or make the folder writable. {resume_hint(folder.parent)}"
        ) from error
    return target


def serialise(group: dict[str, Tensor]) -> bytes:
    """Return named tensors as the content of a safetensors file."""
    return save_safetensors({name: value.detach().contiguous().cpu() for name, value in group.items()})


def free_path(target: Path) -> Path:
    """Return `target`, or a free path that sorts after it: existing ones stay until the new one is complete."""
    while target.exists():
        target = target.with_name(f"{target.name}+")
    return target


def publish(target: Path, files: dict[str, bytes]) -> None:
    """Create the folder `target` atomically with all its files, written in the given order."""
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


def remove_staging(folder: Path) -> None:
    """Remove the staging folders of killed processes."""
    for leftover in folder.glob(".staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def prune(folder: Path, newest: Path) -> None:
    """Keep the last three checkpoints up to `newest`, one per step; remove the other ones before it.

    Checkpoints that sort after `newest` are damaged, and do not count.
    """
    older = [path for path in list_checkpoints(folder) if path.name < newest.name]
    same_step = [path for path in older if newest.name.startswith(path.name)]
    earlier = [path for path in older if path not in same_step]
    for old in same_step + earlier[KEEP_LAST - 1 :]:
        shutil.rmtree(old, ignore_errors=True)  # failing to remove an old one is no reason to stop


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first, intact or not."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint (None if there is none), and a message for each newer, damaged one."""
    notes: list[str] = []
    for path in list_checkpoints(folder):
        try:
            return read(path), notes
        except CheckpointError as error:
            notes.append(str(error))
    return None, notes


def read(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; raises CheckpointError that names the missing or damaged file."""
    manifest = parse_manifest(path)
    files = {name: read_verified(path / name, entry) for name, entry in manifest.items()}
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
    """Return the size and SHA-256 of each file of a checkpoint; raises CheckpointError for an invalid manifest."""
    try:
        if file_size(path / MANIFEST) > MAX_MANIFEST_BYTES:
            raise ValueError(MANIFEST)
        manifest: dict[str, dict[str, Any]] = json.loads((path / MANIFEST).read_bytes())
        for name, entry in manifest.items():
            if not FILE_NAME.fullmatch(name) or type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
                raise ValueError(name)
    except OSError as error:
        raise CheckpointError(f"{path} is incomplete: its {MANIFEST} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its {MANIFEST} is not a valid list of files.") from error
    return manifest


def read_verified(path: Path, entry: dict[str, Any]) -> bytes:
    """Return the content of a file; raises CheckpointError if its size or SHA-256 differs from the manifest."""
    try:
        size = file_size(path)
        if size != entry["bytes"] or size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} is damaged: it has {size:,} bytes, the manifest says {entry['bytes']:,}.")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the manifest.")
    return content


def file_size(path: Path) -> int:
    """Return the bytes of a regular file; raises OSError for a pipe (which could block a read), a link or a folder."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status.st_size
