"""Files, folders and patterns become image files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlpconv.cli.paths import expand
from mlpconv.errors import UsageError


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "deep/c.webp", "deep/deeper/d.bmp", ".hidden.png", ".git/e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(paths: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def test_a_folder_gives_its_visible_images_sorted(album: Path) -> None:
    assert names(expand([album]), album) == ["a.JPG", "b.png", "deep/c.webp", "deep/deeper/d.bmp"]
    assert names(expand([album], recursive=False), album) == ["a.JPG", "b.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("?.*", ["a.JPG", "b.png"]),
        ("**/*.webp", ["deep/c.webp"]),
        ("de*", ["deep/c.webp", "deep/deeper/d.bmp"]),
    ],
)
def test_a_pattern(album: Path, pattern: str, expected: list[str]) -> None:
    assert names(expand([f"{album}/{pattern}"]), album) == expected


def test_a_file_named_twice_counts_once(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    assert expand(["b.png", str(album / "b.png"), "./deep/../b.png", "*.png"]) == [Path("b.png")]


def test_a_file_named_outright_needs_no_image_ending(album: Path) -> None:
    assert names(expand([album / "notes.txt"]), album) == ["notes.txt"]


def test_a_name_with_brackets_is_a_file_not_a_pattern(album: Path) -> None:
    (album / "holiday[1].png").write_bytes(b"x")
    assert names(expand([album / "holiday[1].png"]), album) == ["holiday[1].png"]


def test_loops_of_links_pipes_and_broken_links_are_passed_by(album: Path) -> None:
    os.mkfifo(album / "pipe.png")
    (album / "loop").symlink_to(album, target_is_directory=True)
    (album / "deep" / "up").symlink_to(album, target_is_directory=True)
    (album / "gone.png").symlink_to(album / "nowhere")
    (album / "self.png").symlink_to("self.png")
    four = ["a.JPG", "b.png", "deep/c.webp", "deep/deeper/d.bmp"]
    assert names(expand([album]), album) == four
    assert names(expand([f"{album}/**/*.png"]), album) == ["b.png"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere.png", "does not exist"),
        ("*.webp", "matches no image"),
        ("empty", "holds no image"),
        ("pipe", "not a regular file"),
        ("**x", "not a pattern"),
    ],
)
def test_nothing_found_is_said(album: Path, given: str, said: str) -> None:
    (album / "empty").mkdir()
    os.mkfifo(album / "pipe")
    with pytest.raises(UsageError, match=said):
        expand([album / "b.png", f"{album}/{given}"])


def test_no_argument_is_refused() -> None:
    with pytest.raises(UsageError, match="No image"):
        expand([])
