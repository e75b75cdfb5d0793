"""`mlpconv data`: the table, its JSON, and the message of a failed download."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlpconv.cli import main
from mlpconv.data.catalog import CATALOG

Files = tuple[Path, np.ndarray, np.ndarray]


def test_the_table_names_every_set(mnist_files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--data", str(mnist_files[0])]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip() and line.split()[0] in CATALOG}
    assert list(rows) == list(CATALOG)
    assert rows["digits"].split()[-2:] == ["train,", "test"]
    assert rows["mnist"].split()[-1] == "train"
    assert rows["cifar10"].split()[-1] == "no"
    assert "60,000" in rows["cifar10"]
    assert "CC BY 4.0" in rows["digits"]
    assert lines[-1].strip() == f"searched in {mnist_files[0]}"


def test_data_list_prints_json(
    cifar10_files: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLPCONV_DATA", str(cifar10_files[0]))
    assert main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["cifar10"]["here"] == ["train"]
    assert rows["svhn"] == {
        "name": "svhn",
        "title": "Street view house numbers, cropped digits",
        "images": {"train": 73257, "test": 26032, "extra": 531131},
        "classes": 10,
        "channels": 3,
        "size": 32,
        "licence": "non-commercial use",
        "home": "http://ufldl.stanford.edu/housenumbers/",
        "download_bytes": 182040794 + 64275384,
        "here": [],
    }
    (cifar10_files[0] / "cifar-10-batches-bin" / "data_batch_2.bin").unlink()
    assert main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["cifar10"]["here"] == []


def test_digits_need_no_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "digits", "--to", str(tmp_path)]) == 0
    assert "digits is ready: mlpconv train digits\n" in capsys.readouterr().out
    assert main(["data", "prepare", "digits", "--to", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "digits", "folder": str(tmp_path), "files": []}
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "cifar"]) == 2
    assert "did you mean 'cifar10'?" in capsys.readouterr().err


def test_offline_prepare_prints_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "mnist", "--to", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mlpconv: train-images-idx3-ubyte.gz could not be downloaded (")
    assert f"copy it to '{tmp_path}/MNIST/raw'" in err
    assert err.count("\n") == 1


def test_prepare_prints_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpconv.data import download

    def pretend(entry: object, to: Path, **options: object) -> list[Path]:
        options["progress"]("file.gz", 5, 10)  # type: ignore[operator]
        assert (options["mirror"], options["extra"]) == ("https://example.org", True)
        return [to / "file.gz"]

    monkeypatch.setattr(download, "prepare", pretend)
    words = ["data", "prepare", "svhn", "--to", str(tmp_path), "--mirror", "https://example.org", "--extra"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert f"verified {tmp_path / 'file.gz'}" in out
    assert f"svhn is ready: mlpconv train svhn --data {tmp_path}" in out
    assert err == ""
