"""A run folder as one page for people: `write_report` builds report.html from what lies in the folder."""

from __future__ import annotations

from pathlib import Path

from mlpconv.errors import RunFolderError
from mlpconv.files import write_atomic
from mlpconv.inference import Classifier
from mlpconv.report.page import document
from mlpconv.report.run_contents import read_run
from mlpconv.report.sections import headline, sections

__all__ = ["write_report"]


def write_report(folder: str | Path, classifier: Classifier | None = None) -> Path:
    """Write report.html into a run folder, from whatever parts of a run are there, and return its path.

    `classifier` is that of the folder's model file, which is read where it is None.

    The page stands alone: pictures and style are inside, it asks for nothing and runs nothing. What is missing or
    damaged is left out. Raises RunFolderError where there is no such folder, OSError where it cannot be written.
    """
    where = Path(folder)
    if not where.is_dir():
        raise RunFolderError(f"{where} is not a folder: give the folder of a run, like runs/digits-001.")
    run = read_run(where, classifier)
    page = document(f"{run.title} · mlpconv", headline(run), sections(run))
    target = where / "report.html"
    write_atomic(target, page.encode("utf-8", "backslashreplace"))
    return target
