"""`mlpconv maps` from end to end, in a folder of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mlpconv import modelfile
from mlpconv.cli import main
from mlpconv.cli.maps import _print_table
from mlpconv.data import decode as room
from mlpconv.models.registry import create_model
from mlpconv.preprocessing import Preprocessing

CLASSES = ("<b>cat</b>", "dog", "[red]emu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that passes the brightest pixel on to class `dog`, halved to `emu`, and nothing to `cat`."""
    net = create_model("nin_cifar10", width=0.05, in_channels=1, num_classes=3).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
            module.weight.data[:, :, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1 / module.in_channels
    net.last_conv.weight.data *= torch.tensor([0.0, 100.0, 50.0])[:, None, None, None]
    path = tmp_path_factory.mktemp("model") / "dots.safetensors"
    chain = Preprocessing.create(("scale",), 1, (32, 32))
    modelfile.save(path, net, chain, classes=CLASSES, input_size=(1, 32, 32), info={})
    return path


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures with a bright square, of 320 x 320 and of 400 x 320 pixels."""
    monkeypatch.chdir(tmp_path)
    for name, width, at in (("a", 320, (70, 150)), ("b", 400, (310, 30))):
        image = np.zeros((320, width, 3), dtype=np.uint8)
        image[at[1] : at[1] + 10, at[0] : at[0] + 10] = 255
        (tmp_path / "album").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "album" / f"{name}.png")
    return tmp_path


def output(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_overlays_and_a_sheet_are_written_to_a_new_folder(model: Path, album: Path, capsys: Any) -> None:
    assert main(["maps", str(model), "album"]) == 0
    assert files(album / "maps-001") == ["a-maps.png", "b-maps.png", "sheet.png"]
    with Image.open(album / "maps-001" / "sheet.png") as sheet:
        assert min(sheet.size) > 300
    out = capsys.readouterr().out
    for name in ("album/a.png", "maps-001/a-maps.png", "Sheet: maps-001/sheet.png", *CLASSES):
        assert name in out
    assert main(["maps", str(model), "album/a.png"]) == 0
    assert files(album / "maps-002") == ["a-maps.png", "sheet.png"]


def test_json_has_positions_in_pixels_of_the_file(model: Path, album: Path, capsys: Any) -> None:
    assert main(["maps", str(model), "album/*.png", "--out", "new/deep", "--json", "--top", "2"]) == 0
    report = output(capsys)
    assert report["sheets"] == ["new/deep/sheet.png"]
    first, second = report["images"]
    assert (first["file"], first["width"], first["height"]) == ("album/a.png", 320, 320)
    assert (second["file"], second["width"], second["height"]) == ("album/b.png", 400, 320)
    assert [one["label"] for one in first["classes"]] == ["dog", "[red]emu"]
    assert first["picture"] == "new/deep/a-maps.png"
    for row, middle in ((first, (75, 155)), (second, (315, 35))):
        for one in row["classes"]:
            assert abs(one["peak"]["x"] - middle[0]) <= 30  # three pixels of the network, ten of the file each
            assert abs(one["peak"]["y"] - middle[1]) <= 30
            assert one["box"]["left"] <= one["peak"]["x"] <= one["box"]["right"]
    # Class dog has twice the evidence of class emu, and cat has none: confidence is the softmax of the logits.
    assert first["classes"][0]["logit"] == pytest.approx(2 * first["classes"][1]["logit"], rel=1e-4)


def test_positions_in_a_huge_photograph_are_those_of_the_file(
    model: Path, album: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the small: a JPEG beyond the limit is decoded at a fraction of its size; its orientation turns it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(album / "album" / "b.png").transpose(Image.Transpose.ROTATE_90)
    turned.save(album / "b.jpg", quality=98, exif=exif)
    found = []
    for limit in (room.MAX_PIXELS, 50_000):
        monkeypatch.setattr(room, "MAX_PIXELS", limit)
        assert main(["maps", str(model), "b.jpg", "--json", "--force", "--out", "drawn"]) == 0
        (row,) = output(capsys)["images"]
        assert (row["width"], row["height"]) == (400, 320)
        found.append(row["classes"][0])
    assert found[0]["box"] == found[1]["box"]
    assert found[0]["peak"] == pytest.approx(found[1]["peak"])


def test_a_constant_map_has_no_peak(model: Path, album: Path, capsys: Any) -> None:
    assert main(["maps", str(model), "album/a.png", "--out", "x", "--json"]) == 0
    last = output(capsys)["images"][0]["classes"][2]
    assert (last["label"], last["peak"], last["box"], last["logit"]) == ("<b>cat</b>", None, None, 0)
    assert main(["maps", str(model), "album/a.png", "--out", "x", "--force"]) == 0
    assert "none (constant map)" in capsys.readouterr().out


@pytest.mark.parametrize("taken", ["a-maps.png", "sheet.png"])
def test_nothing_is_overwritten_without_force(model: Path, album: Path, capsys: Any, taken: str) -> None:
    (album / "out").mkdir()
    (album / "out" / taken).write_text("mine")
    assert main(["maps", str(model), "album", "--out", "out"]) == 1
    assert f"out/{taken} already exists" in capsys.readouterr().err
    assert files(album / "out") == [taken]
    assert (album / "out" / taken).read_text() == "mine"
    assert main(["maps", str(model), "album", "--out", "out", "--force"]) == 0
    assert (album / "out" / taken).read_bytes().startswith(b"\x89PNG")


def test_existing_output_is_reported_before_the_model_is_loaded(model: Path, album: Path, capsys: Any) -> None:
    (album / "out").mkdir()
    (album / "out" / "sheet.png").write_text("mine")
    assert main(["maps", "no-model", "album", "--out", "out"]) == 1
    assert "out/sheet.png already exists" in capsys.readouterr().err


def test_a_file_given_twice_has_two_overlays(model: Path, album: Path, capsys: Any) -> None:
    assert main(["maps", str(model), "album/b.png", "album/a.png", "album/b.png", "--out", "out", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    assert [Path(row["file"]).name for row in rows] == ["b.png", "a.png", "b.png"]
    assert [Path(row["picture"]).name for row in rows] == ["b-maps.png", "a-maps.png", "b-2-maps.png"]


def test_files_with_the_same_name_get_unique_overlays(model: Path, album: Path) -> None:
    (album / "other").mkdir()
    for name in ("A.png", "a.bmp", "a-2.png", "é" * 120 + ".png"):
        Image.new("L", (40, 40), 99).save(album / "other" / name)
    assert main(["maps", str(model), "album/a.png", "other", "--out", "out"]) == 0
    made = files(album / "out")
    assert len(made) == len({name.lower() for name in made}) == 6
    assert max(len(os.fsencode(name)) for name in made) < 220


def test_an_unreadable_file_is_reported_and_the_others_are_drawn(model: Path, album: Path, capsys: Any) -> None:
    (album / "album" / "0.png").write_bytes(b"no image")
    assert main(["maps", str(model), "album", "--json", "--out", "out"]) == 1
    captured = capsys.readouterr()
    assert [Path(row["file"]).name for row in json.loads(captured.out)["images"]] == ["a.png", "b.png"]
    assert "0.png" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_no_folder_is_created_if_no_file_is_readable(model: Path, album: Path, capsys: Any) -> None:
    (album / "bad.png").write_bytes(b"no image")
    assert main(["maps", str(model), "bad.png", "--json"]) == 1
    assert output(capsys) == {"images": [], "sheets": []}
    assert files(album) == ["album", "bad.png"]


def test_many_images_make_several_sheets(model: Path, album: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("mlpconv.cli.maps.SHEET_ROWS", 1)
    assert main(["maps", str(model), "album", "--out", "out", "--json"]) == 0
    assert output(capsys)["sheets"] == ["out/sheet.png", "out/sheet-2.png"]
    assert files(album / "out") == ["a-maps.png", "b-maps.png", "sheet-2.png", "sheet.png"]


def test_positions_in_a_rotated_photograph_are_upright(model: Path, album: Path, capsys: Any) -> None:
    image = np.zeros((320, 400, 3), dtype=np.uint8)
    image[30:40, 310:320] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned right by a quarter: (x, y) -> (319 - y, x)
    Image.fromarray(image).save(album / "turned.png", exif=exif)
    assert main(["maps", str(model), "turned.png", "--out", "out", "--json"]) == 0
    row = output(capsys)["images"][0]
    assert (row["width"], row["height"]) == (320, 400)
    peak = row["classes"][0]["peak"]
    assert abs(peak["x"] - 284) <= 30
    assert abs(peak["y"] - 315) <= 30


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["album", "--top", "0"], 2, "--top is 0"),
        ([], 2, "No images given"),
        (["nowhere.png"], 2, "does not exist"),
        (["album", "--out", "album/a.png"], 1, "is a file"),
    ],
)
def test_wrong_usage_prints_one_sentence(
    model: Path, album: Path, capsys: Any, words: list[str], code: int, sentence: str
) -> None:
    assert main(["maps", str(model), *words]) == code
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert files(album) == ["album"]


def test_a_network_without_maps_is_refused(tmp_path: Path, album: Path, capsys: Any) -> None:
    net = create_model("nin_cifar10", width=0.05, head="fc", num_classes=3)
    chain = Preprocessing.create(("scale",), 3, (32, 32))
    modelfile.save(tmp_path / "fc.safetensors", net, chain, classes=CLASSES, input_size=(3, 32, 32), info={})
    assert main(["maps", str(tmp_path / "fc.safetensors"), "album"]) == 2
    assert "has category maps" in capsys.readouterr().err
    assert not (album / "maps-001").exists()


def test_a_peak_at_the_border_has_no_minus_zero(capsys: Any) -> None:
    seen = {"label": "cat", "confidence": 0.5, "peak": {"x": -0.4, "y": 12.6}}
    _print_table([{"file": "a.png", "picture": "p.png", "classes": [seen]}], [])
    assert " 0, 13 " in capsys.readouterr().out
