"""Parquet files become tar shards: columns, class names, splits, and what cannot be read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlpconv.cli import main
from mlpconv.data import open_data
from mlpconv.data.pack import pack
from mlpconv.data.parquet import find_parquet
from mlpconv.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(tmp_path / "cache"))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, images: list[Any], labels: list[Any], names: list[str] | None = None, **columns: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({columns.get("image", "image"): images, columns.get("label", "label"): labels})
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, path)
    return path


def test_rows_of_hugging_face_become_samples(tmp_path: Path) -> None:
    rows = [{"bytes": png(seed), "path": f"{seed}.png"} for seed in range(9)]
    labels = [seed % 2 for seed in range(9)]
    write(tmp_path / "in" / "train-00000-of-00001.parquet", rows[:6], labels[:6], ["cat", "dog"])
    write(tmp_path / "in" / "test-00000-of-00001.parquet", rows[6:], labels[6:], ["cat", "dog"])
    packed = pack(tmp_path / "in", tmp_path / "out", per_shard=4)
    assert [path.name for path in packed.shards] == ["test-000000.tar", "train-000000.tar", "train-000001.tar"]
    assert packed.images == 9
    dataset = open_data(tmp_path / "out", val_fraction=0)
    assert dataset.classes == ("cat", "dog")
    assert dataset.split("train").labels.tolist() == labels[:6]
    expected = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])))[None] for row in rows[:6]])
    assert (dataset.split("train").images[:] == expected).all()


def test_names_as_labels_and_rows_without_an_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [png(1), b"text", None, png(2)], ["b", "a", "a", "a"], image="img")
    packed = pack(path, tmp_path / "out")
    assert packed.images == 2
    assert packed.notes == ["left out 2 rows of a.parquet that hold no image; accepted: PNG, JPEG, WebP, BMP, PNM."]
    assert open_data(tmp_path / "out", val_fraction=0).split("train").labels.tolist() == [1, 0]


def test_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.parquet", [png(1)], [0], label="colour")
    with pytest.raises(DataError, match="has no label column .it has image, colour.; .*Accepted: .*. Rename one"):
        pack(path, tmp_path / "out")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        pack(path, tmp_path / "out")
    assert main(["data", "pack", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "cannot be read as Parquet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_are_found_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9):
        write(tmp_path / f"p{number}.parquet", [png(1)], [0])
    assert [path.name for path in find_parquet(tmp_path)] == ["p9.parquet", "p10.parquet"]
    assert find_parquet(tmp_path / "p9.parquet") == [tmp_path / "p9.parquet"]
    assert find_parquet(tmp_path / "absent") == []
