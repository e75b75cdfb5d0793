"""The report of a run: `write_report` builds report.html from the files of a run folder."""

from __future__ import annotations

from pathlib import Path

from mlpconv.errors import RunFolderError
from mlpconv.files import write_atomic
from mlpconv.inference import Classifier
from mlpconv.report.headline import headline
from mlpconv.report.page import document
from mlpconv.report.run_contents import read_run
from mlpconv.report.sections import sections

__all__ = ["write_report"]


def write_report(folder: str | Path, classifier: Classifier | None = None) -> Path:
    """Write report.html into a run folder and return its path.

    `classifier` is that of the folder's model file; None reads the file. The page is self-contained, with embedded
    images and no scripts; missing or damaged parts are left out. Raises RunFolderError if there is no such folder,
    OSError if the page cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder: give a run folder, such as runs/digits-001.")
    run = read_run(folder, classifier)
    page = document(f"{run.title} · mlpconv", headline(run), sections(run))
    target = folder / "report.html"
    write_atomic(target, page.encode("utf-8", "backslashreplace"))
    return target
