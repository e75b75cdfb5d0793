"""`mlpconv data`: which data sets there are, and fetching one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from mlpconv.cli.options import Switch

if TYPE_CHECKING:
    from mlpconv.data.catalog import Published
    from mlpconv.data.download import Progress

__all__ = ["app"]

app = App(name="data", help="List the data sets, or prepare one.")


@app.command(name="list")
def list_(
    *,
    data_dir: Annotated[Path | None, Parameter(name="--data")] = None,
    json: Switch = False,
) -> None:
    """List the named data sets: images, classes, size, licence, and which splits are here.

    Parameters
    ----------
    data_dir
        The folder to look in; by default the cache ($MLPCONV_DATA, or ~/.cache/mlpconv).
    json
        Print a JSON list with one object a data set, for machines.
    """
    from mlpconv.data.catalog import CATALOG
    from mlpconv.data.storage import cache_folder

    root = data_dir if data_dir is not None else cache_folder()
    rows = [_row(entry, root) for entry in CATALOG.values()]
    if json:
        _print_json(rows)
    else:
        _print_table(rows, root)


@app.command
def prepare(
    name: str,
    /,
    *,
    to: Path | None = None,
    mirror: str | None = None,
    extra: Switch = False,
    json: Switch = False,
) -> None:
    """Download a data set: resumed where it stopped, and verified before any file gets its name.

    Parameters
    ----------
    name
        digits, mnist, fashion_mnist, cifar10, cifar100 or svhn.
    to
        The folder to put it in; by default the cache ($MLPCONV_DATA, or ~/.cache/mlpconv).
    mirror
        The address of another folder with the same files; their bytes are verified all the same.
    extra
        Fetch the optional files too (the 531,131 extra images of svhn, 1.3 GB).
    json
        Print one JSON object with the paths of the files, for machines.
    """
    from mlpconv.data import download
    from mlpconv.data.catalog import CATALOG
    from mlpconv.data.storage import cache_folder
    from mlpconv.errors import UsageError, did_you_mean

    if name not in CATALOG:
        raise UsageError(f"no data set is called {name!r}: {did_you_mean(name, CATALOG)}")
    entry = CATALOG[name]
    root = to if to is not None else cache_folder()
    with _Bars() as bars:
        paths = download.prepare(entry, root, mirror=mirror, extra=extra, progress=bars)
    if json:
        _print_json({"name": name, "folder": str(root), "files": [str(path) for path in paths]})
    else:
        _say_ready(entry, paths, to)


def _row(entry: Published, root: Path) -> dict[str, Any]:
    """One data set as a JSON-able row."""
    return {
        "name": entry.name,
        "title": entry.title,
        "images": dict(entry.counts),
        "classes": len(entry.classes),
        "channels": entry.channels,
        "size": entry.size,
        "licence": entry.licence,
        "home": entry.home,
        "download_bytes": sum(file.bytes for file in entry.files if not file.optional),
        "here": _here(entry, root),
    }


def _here(entry: Published, root: Path) -> list[str]:
    """Which splits can be read now."""
    from mlpconv.data.published import file_locations
    from mlpconv.errors import DataError

    if not entry.files:
        return list(entry.counts)
    try:
        found, archive = file_locations(entry, root)
    except DataError:  # files of a split are missing: it cannot be read
        return []
    return list(entry.counts) if archive is not None else list(found)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))


def _print_table(rows: list[dict[str, Any]], root: Path) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mlpconv.cli.show import open_console, say

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("name", "images", "classes", "size", "licence", "download", "here"):
        right = heading in ("images", "classes", "download")
        table.add_column(heading, justify="right" if right else "left", overflow="fold", no_wrap=heading == "name")
    for row in rows:
        cells = (
            row["name"],
            f"{sum(row['images'].values()):,}",
            str(row["classes"]),
            f"{row['size']} x {row['size']} {'grey' if row['channels'] == 1 else 'colour'}",
            row["licence"],
            f"{row['download_bytes'] / 1e6:,.0f} MB" if row["download_bytes"] else "none",
            ", ".join(row["here"]) or "no",
        )
        table.add_row(*(Text(cell) for cell in cells))
    console = open_console()
    console.print(table)
    say(console, f"looked for in {root}", style="dim italic")


def _say_ready(entry: Published, paths: list[Path], to: Path | None) -> None:
    for path in paths:
        print(f"verified {path}")
    where = f" --data {to}" if to is not None and entry.files else ""
    print(f"{entry.name} is ready: mlpconv train {entry.name}{where}")
    print(f"licence: {entry.licence}; {entry.home}")


class _Bars:
    """A progress bar for each file, on stderr, while there is somebody to see it."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done)
