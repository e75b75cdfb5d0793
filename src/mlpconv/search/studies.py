"""Open a study: its folder, its Optuna store, and the definition that every process must share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from mlpconv.errors import RunFolderError, UsageError
from mlpconv.search.journal import Journal, file_lock
from mlpconv.text import option
from mlpconv.training import Recipe

__all__ = ["Definition", "StudyFolder", "open_study"]

STUDY = "mlpconv"
CHANGEABLE = ("workers", "checkpoint_minutes")  # they do not affect the results


@dataclass(frozen=True)
class Definition:
    """What a study searches: the data, the ranges, the recipe that they change, and the limits on the cost."""

    data: str
    fingerprint: str
    over: tuple[str, ...]
    recipe: dict[str, Any]
    max_macs: int | None
    max_parameters: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the definition as JSON values."""
        return asdict(self) | {"over": list(self.over)}


class StudyFolder:
    """The files of a study: the journal, the run folder and claim of each trial, and the results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal.log"
        self.lock = path / "study.lock"
        self.claims = path / "claims"
        self.runs = path / "trials"
        self.recipes = path / "recipes"

    def create(self) -> None:
        """Create the folders; raises RunFolderError if `path` cannot be written or holds something else."""
        foreign = [] if self.journal.exists() or not self.path.is_dir() else sorted(self.path.iterdir())
        foreign = [path for path in foreign if path not in (self.lock, self.claims, self.runs, self.recipes)]
        if foreign:
            raise RunFolderError(
                f"{self.path} is not a search (it contains {foreign[0].name}): choose another folder, "
                f"{option('out', 'FOLDER')}."
            )
        try:
            for folder in (self.claims, self.runs, self.recipes):
                folder.mkdir(parents=True, exist_ok=True)
            with file_lock(self.lock):
                pass
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def run(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.runs / f"{number:04d}"

    def claim(self, number: int) -> Path:
        """Return the file that the process which runs a trial keeps locked."""
        return self.claims / f"{number:04d}.lock"


def cannot_write(path: Path, error: OSError) -> RunFolderError:
    """Return the error for a store that cannot be written."""
    return RunFolderError(
        f"the search in {path} cannot be written ({error.strerror}); what is recorded is kept. Free disk space, or "
        f"choose another folder, {option('out', 'FOLDER')}."
    )


def open_study(folder: StudyFolder, store: str | None, definition: Definition) -> optuna.Study:
    """Create the study or join it; raises UsageError if it searches something else, RunFolderError without a store."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name = STUDY if store is None else f"{STUDY}-{folder.path.resolve().name}"
    try:
        with file_lock(folder.lock):
            study = optuna.create_study(
                storage=open_store(folder, store),
                study_name=name,
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
            stored = study.user_attrs.get("definition")
            if stored is None:
                study.set_user_attr("definition", definition.to_dict())
    except OSError as error:
        raise cannot_write(folder.path, error) from error
    except (ValueError, KeyError) as error:
        raise RunFolderError(
            f"{folder.journal} cannot be read ({error}): restore the file, or choose another folder, "
            f"{option('out', 'FOLDER')}."
        ) from error
    check_same(folder.path, stored or definition.to_dict(), definition.to_dict())
    return study


def open_store(folder: StudyFolder, url: str | None) -> optuna.storages.BaseStorage:
    """Return the journal of the folder, or the database of a URL; raises UsageError for SQLite and bad URLs."""
    if url is None:
        return optuna.storages.JournalStorage(Journal(folder.journal))
    if url.startswith("sqlite"):
        raise UsageError(
            "SQLite loses trials when processes write at the same time: leave the store out (a journal file in the "
            "folder of the search), or give the URL of a server, like postgresql://USER@HOST/NAME."
        )
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return optuna.storages.RDBStorage(url)
    except (ImportError, SQLAlchemyError) as error:
        raise RunFolderError(
            f"the store {url.split('@')[-1]} cannot be opened: {str(error).splitlines()[0]}"
        ) from error


def check_same(path: Path, stored: dict[str, Any], requested: dict[str, Any]) -> None:
    """Raise UsageError that names the first difference between a stored definition and the requested one."""
    other = f"another folder, {option('out', 'FOLDER')}"
    if stored.get("fingerprint") != requested["fingerprint"]:
        raise UsageError(
            f"{path} holds a search on other images ({stored.get('data')}; the fingerprints differ): continue it with "
            f"the same data, or choose {other}."
        )
    if stored.get("over") != requested["over"]:
        raise UsageError(
            f"{path} holds a search over {' '.join(stored.get('over', []))}, not over {' '.join(requested['over'])}: "
            f"repeat those ranges, or choose {other}."
        )
    for key in ("max_macs", "max_parameters"):
        if stored.get(key) != requested[key]:
            raise UsageError(
                f"{path} holds a search with {key}={stored.get(key)}, got {requested[key]}: repeat that limit, or "
                f"choose {other}."
            )
    recipe = Recipe().with_settings(**stored["recipe"]).to_dict()
    for key, value in recipe.items():
        if key not in CHANGEABLE and requested["recipe"][key] != value:
            raise UsageError(
                f"{path} holds a search with {key}={value}, got {key}={requested['recipe'][key]}: repeat its recipe "
                f"and settings, or choose {other}."
            )
