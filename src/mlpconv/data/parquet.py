"""Read images and labels from Parquet files: a column of image bytes, and a column of numbers or names.

The layout is that of Hugging Face data sets: an image is bytes, or a struct with the field `bytes`; class names are in
the schema's metadata. Needs pyarrow, the extra `parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlpconv.errors import DataError, did_you_mean
from mlpconv.text import composed, natural, printable

__all__ = ["ParquetImages", "find_parquet"]

IMAGE_COLUMNS = ("image", "img", "picture", "bytes", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label", "target", "cls")
ROWS = 64  # read at a time


def find_parquet(source: Path) -> list[Path]:
    """Return the Parquet files that a path names, a file or a folder of them, in natural order; [] for none."""
    if source.suffix == ".parquet" and source.is_file():
        return [source]
    files = [path for path in source.glob("*.parquet") if path.is_file()] if source.is_dir() else []
    return sorted(files, key=lambda path: natural(path.name))


class ParquetImages:
    """The rows of one Parquet file; raises DataError if it is damaged or has no columns of images and labels."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.path, self.error = path, pa.ArrowException
        try:
            self.file = parquet.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{str(path)!r} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        schema = self.file.schema_arrow
        self.image = self.column(IMAGE_COLUMNS, "image", schema.names)
        self.label = self.column(LABEL_COLUMNS, "label", schema.names)
        self.names = class_names(schema.metadata or {}, self.label)

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    def column(self, accepted: tuple[str, ...], what: str, names: list[str]) -> str:
        """Return the name of a column."""
        for name in accepted:
            if name in names:
                return name
        listed = ", ".join(printable(name) for name in names[:20])
        raise DataError(
            f"{str(self.path)!r} has no {what} column (it has {listed}); {did_you_mean(what, accepted)} Rename one."
        )

    def classes(self) -> set[str]:
        """Return the class names of all rows, from the column of labels alone."""
        return {name for batch in self.batches([self.label]) for name in self.class_of(batch[self.label])}

    def rows(self) -> Iterator[tuple[bytes | None, str]]:
        """Yield the image bytes (None if there are none) and the class name of every row."""
        for batch in self.batches([self.image, self.label]):
            for value, name in zip(batch[self.image], self.class_of(batch[self.label]), strict=True):
                content = value.get("bytes") if isinstance(value, dict) else value
                yield content if isinstance(content, bytes) else None, name

    def batches(self, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
        """Yield the values of some columns, a few rows at a time."""
        try:
            for batch in self.file.iter_batches(ROWS, columns=columns):
                yield {name: batch.column(name).to_pylist() for name in columns}
        except (OSError, self.error) as error:
            raise DataError(f"{str(self.path)!r} is damaged: {str(error).splitlines()[0]}") from error

    def class_of(self, values: list[Any]) -> Iterator[str]:
        """Yield the class name of each label."""
        for value in values:
            if isinstance(value, int) and 0 <= value < len(self.names):
                yield self.names[value]
            else:
                yield composed(printable(str(value)))[:200]


def class_names(metadata: dict[bytes, bytes], column: str) -> list[str]:
    """Return the names of numbered classes in the metadata of Hugging Face's data sets; [] if there are none."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return [composed(printable(name))[:200] for name in names] if valid else []
