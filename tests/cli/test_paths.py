"""Files, folders and patterns become image files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlpconv.cli import paths
from mlpconv.cli.options import check_can_be_written
from mlpconv.cli.paths import check_target, expand, find_images
from mlpconv.errors import DataError, UsageError


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "deep/c.webp", "deep/deeper/d.bmp", ".hidden.png", ".git/e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(files: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in files]


def test_a_folder_yields_its_visible_images_sorted(album: Path) -> None:
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
def test_a_pattern_matches_image_files(album: Path, pattern: str, expected: list[str]) -> None:
    assert names(expand([f"{album}/{pattern}"]), album) == expected


def test_the_order_of_the_arguments_is_kept(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    Path("deep/link.png").symlink_to("../b.png")
    given = ["deep/c.webp", "b.png", "a.JPG", "b.png", "deep/link.png", "*.png"]
    assert expand(given) == [Path(name) for name in [*given[:-1], "b.png"]]


def test_a_pattern_yields_each_file_once(album: Path) -> None:
    assert names(expand([f"{album}/**"]), album) == ["a.JPG", "b.png", "deep/c.webp", "deep/deeper/d.bmp"]


def test_linked_folders_are_searched_as_in_training(album: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "f.png").write_bytes(b"x")
    (album / "deep" / "away").symlink_to(elsewhere, target_is_directory=True)
    (album / "same").symlink_to("deep/deeper", target_is_directory=True)
    expected = ["a.JPG", "b.png", "deep/away/f.png", "deep/c.webp", "deep/deeper/d.bmp", "same/d.bmp"]
    assert names(expand([album]), album) == expected


def test_skipped_files_are_reported(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def closed(folder: Path) -> Any:
        if Path(folder).name == "deeper":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    (album / "gone.png").symlink_to(album / "nowhere")
    for argument in (album, f"{album}/*", f"{album}/**"):
        images = find_images([argument])
        assert names(images.files, album) == ["a.JPG", "b.png", "deep/c.webp"]
        assert any("deeper' cannot be read: permission denied." in sentence for sentence in images.unreadable)
        assert any("gone.png' is not a regular file." in sentence for sentence in images.unreadable)
    assert find_images([album]).foreign == {".txt": 1}
    with pytest.raises(DataError, match="cannot be read|not a regular"):
        expand([album])
    assert find_images([album / "deep" / "deeper"]).files == []


def test_multiplying_links_are_limited(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_FOLDERS", 50)
    for here in "uvwxyz":
        (album / here).mkdir()
        for there in "uvwxyz":
            (album / here / there).symlink_to(album / there, target_is_directory=True)
    with pytest.raises(UsageError, match="Links lead to more than 50 folders"):
        expand([album])


def test_a_file_given_by_name_needs_no_image_extension(album: Path) -> None:
    assert names(expand([album / "notes.txt"]), album) == ["notes.txt"]


def test_a_name_with_brackets_is_a_file_not_a_pattern(album: Path) -> None:
    (album / "holiday[1].png").write_bytes(b"x")
    assert names(expand([album / "holiday[1].png"]), album) == ["holiday[1].png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos [2023]/*/*.png", ["photos [2023]/cat/a.png", "photos [2023]/dog [1]/b.png"]),
        ("photos [2023]/*.png", ["photos [2023]/c.png"]),
        ("*/dog [1]/*.png", ["photos [2023]/dog [1]/b.png"]),
        ("**/dog [1]/b.png", ["photos [2023]/dog [1]/b.png"]),
        ("photos [[]2023]/c*", ["photos [2023]/c.png", "photos [2023]/cat/a.png"]),
    ],
)
def test_a_name_with_brackets_may_begin_a_pattern(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ("photos [2023]/cat/a.png", "photos [2023]/dog [1]/b.png", "photos [2023]/c.png", "photos 2/cat/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(expand([f"{tmp_path}/{pattern}"]), tmp_path) == expected


def test_loops_of_links_end(album: Path) -> None:
    (album / "loop").symlink_to(album, target_is_directory=True)
    (album / "deep" / "up").symlink_to(album, target_is_directory=True)
    four = ["a.JPG", "b.png", "deep/c.webp", "deep/deeper/d.bmp"]
    assert names(expand([album]), album) == four
    assert names(expand([f"{album}/**/*.png"]), album) == ["b.png"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere.png", "does not exist"),
        ("*.webp", "matches no image"),
        ("empty", "holds no image"),
        ("pipe", "not a regular file"),
        ("**x", "not a valid pattern"),
    ],
)
def test_an_argument_that_names_no_image_is_refused(album: Path, argument: str, message: str) -> None:
    (album / "empty").mkdir()
    os.mkfifo(album / "pipe")
    with pytest.raises(UsageError, match=message):
        expand([album / "b.png", f"{album}/{argument}"])


def test_no_argument_is_refused() -> None:
    with pytest.raises(UsageError, match="No images given"):
        expand([])


def test_a_file_in_a_folder_that_is_not_writable_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    for check in (lambda path: check_target(path, "--csv"), lambda path: check_can_be_written(csv=path)):
        with pytest.raises(UsageError, match="not writable: give"):
            check(tmp_path / "p.csv")
        check(Path(os.devnull))
