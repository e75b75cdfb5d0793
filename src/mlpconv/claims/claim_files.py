"""Find claims: those of the package by name or number, and a user's own by the path of its file."""

from __future__ import annotations

import functools
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlpconv.claims.schema import Claim, check_claim
from mlpconv.errors import UsageError, did_you_mean
from mlpconv.files import sha256
from mlpconv.text import shell_path

__all__ = ["ClaimFile", "check_unique", "find_claim", "list_claims", "read_claim"]

FOLDERS = ("exact", "measured")


@dataclass(frozen=True)
class ClaimFile:
    """A claim, its file, and the SHA-256 of the file: the hypothesis that a result refers to."""

    claim: Claim
    path: Path
    hypothesis: str

    @property
    def argument(self) -> str:
        """Return the word that means this claim on the command line: its name, or the path of a user's own file."""
        own = Path(__file__).parent not in self.path.parents
        return shell_path(os.path.relpath(self.path)) if own else self.claim.name


@functools.cache
def list_claims() -> tuple[ClaimFile, ...]:
    """Return the claims of the package in the order of their numbers."""
    here = Path(__file__).parent
    paths = [here / folder / f"{m.name}.py" for folder in FOLDERS for m in pkgutil.iter_modules([str(here / folder)])]
    return tuple(sorted(map(read_claim, paths), key=lambda file: file.claim.number or 0))


def find_claim(name: str) -> ClaimFile:
    """Return a claim by its name, its number or the path of its file; raise UsageError for anything else."""
    if name.endswith(".py"):
        return read_claim(Path(name))
    for file in list_claims():
        if name in (file.claim.name, str(file.claim.number)):
            return file
    names = [file.claim.name for file in list_claims()]
    raise UsageError(f"There is no claim {name!r}; {did_you_mean(name, names)} A number or a .py file is accepted too.")


def read_claim(path: Path) -> ClaimFile:
    """Import the file of a claim, which runs its code, and check its CLAIM; raise UsageError that names the field."""
    if not path.is_file():
        raise UsageError(f"{str(path)!r} is not a file: give the Python file of a claim.")
    return _read(path.resolve(), sha256(path))


@functools.cache
def _read(path: Path, hypothesis: str) -> ClaimFile:
    name = f"mlpconv_claim_{path.stem}_{hypothesis[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} cannot be imported: give a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, TypeError, NameError, ImportError, AttributeError) as error:
        raise UsageError(f"{path.name} cannot be imported: {type(error).__name__}: {error}.") from error
    if not hasattr(module, "CLAIM"):
        raise UsageError(f"{path.name} has no CLAIM: assign a mlpconv.claims.Claim to that name.")
    return ClaimFile(check_claim(module.CLAIM, path.name), path, hypothesis)


def check_unique(files: Iterable[ClaimFile]) -> None:
    """Raise UsageError if two claims share a name."""
    seen: dict[str, Path] = {}
    for file in files:
        if seen.setdefault(file.claim.name, file.path) != file.path:
            raise UsageError(f"{file.path.name}: name is {file.claim.name!r}, which another claim has; choose another.")
