"""`mlpconv data`: list or download the named data sets, and pack images into tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from mlpconv.cli.options import Switch

if TYPE_CHECKING:
    from mlpconv.data.catalog import Published
    from mlpconv.data.download import Progress

__all__ = ["app"]

app = App(name="data", help="List or download the named data sets, or pack images into tar shards.")


@app.command(name="list")
def list_(
    *,
    data_dir: Annotated[Path | None, Parameter(name="--data")] = None,
    json: Switch = False,
) -> None:
    """List the named data sets: images, classes, size, licence and available splits.

    Parameters
    ----------
    data_dir
        The folder to search. Default: the cache ($MLPCONV_DATA, or ~/.cache/mlpconv).
    json
        Print a JSON list with one object per data set.
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
    """Download a data set and verify its files. Interrupted downloads are resumed.

    Parameters
    ----------
    name
        digits, mnist, fashion_mnist, cifar10, cifar100 or svhn.
    to
        The target folder. Default: the cache ($MLPCONV_DATA, or ~/.cache/mlpconv).
    mirror
        The URL of another folder with the same files, which are verified as usual.
    extra
        Also download the optional files (the 531,131 extra images of svhn, 1.3 GB).
    json
        Print a JSON object with the paths of the files.
    """
    from mlpconv.data import download
    from mlpconv.data.catalog import CATALOG
    from mlpconv.data.storage import cache_folder
    from mlpconv.errors import UsageError, did_you_mean

    if name not in CATALOG:
        raise UsageError(f"there is no data set {name!r}: {did_you_mean(name, CATALOG)}")
    entry = CATALOG[name]
    root = to if to is not None else cache_folder()
    with _ProgressBars() as bars:
        paths = download.prepare(entry, root, mirror=mirror, extra=extra, progress=bars)
    if json:
        _print_json({"name": name, "folder": str(root), "files": [str(path) for path in paths]})
    else:
        _print_ready(entry, paths, to)


@app.command
def pack(
    folder: Path,
    /,
    *,
    out: Path,
    per_shard: int = 10_000,
    seed: int = 0,
    json: Switch = False,
) -> None:
    """Pack a folder or Parquet files into tar shards (webdataset's format), which train without being unpacked.

    Parameters
    ----------
    folder
        A folder with class folders, or with train/, val/ and test/; or a Parquet file, or a folder of them.
    out
        A new folder for the shards: train-000000.tar, val-000000.tar, ...
    per_shard
        Images in a shard.
    seed
        Seed of the order of the images.
    json
        Print a JSON object with the paths of the shards.
    """

    from mlpconv.cli.bar import Bar
    from mlpconv.data.catalog import shell_data
    from mlpconv.data.pack import pack as pack_folder
    from mlpconv.text import counted

    with Bar("packing", 1) as bar:
        packed = pack_folder(
            folder, out, per_shard=per_shard, seed=seed, progress=lambda done, total: bar(done / total)
        )
    if json:
        _print_json({"shards": [str(path) for path in packed.shards], "images": packed.images, "notes": packed.notes})
        return
    for note in packed.notes:
        print(note)
    counts = f"{counted(packed.images, 'image')} in {counted(len(packed.shards), 'shard')}"
    print(f"{counts}: mlpconv train {shell_data(out)}")


def _row(entry: Published, root: Path) -> dict[str, Any]:
    """Return a data set as a JSON-able row."""
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
        "here": _available_splits(entry, root),
    }


def _available_splits(entry: Published, root: Path) -> list[str]:
    """Return the splits whose files exist."""
    from mlpconv.data.published import file_locations
    from mlpconv.errors import DataError

    if not entry.files:
        return list(entry.counts)
    try:
        files, archive = file_locations(entry, root)
    except DataError:  # some files of a split are missing
        return []
    return list(entry.counts) if archive is not None else list(files)


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
    say(console, f"searched in {root}", style="dim italic")


def _print_ready(entry: Published, paths: list[Path], to: Path | None) -> None:
    for path in paths:
        print(f"verified {path}")
    from mlpconv.text import shell_path

    where = f" --data {shell_path(to)}" if to is not None and entry.files else ""
    print(f"{entry.name} is ready: mlpconv train {entry.name}{where}")
    print(f"licence: {entry.licence}; {entry.home}")


class _ProgressBars:
    """A progress bar for each file on stderr, if it is a terminal."""

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
