"""Recipe files: those of the package, of a search, and of the user.

The files in `mlpconv/recipes` ship with the package: `NAME-DATA.json` is the recipe NAME for one data set, `NAME.json`
the default for all others. A file has two keys: `about` (a description, with the source) and `settings`.
"""

from __future__ import annotations

import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.training.recipe import Recipe, shorten

__all__ = ["find_recipe", "list_recipes", "read_recipe"]

MAX_FILE_BYTES = 1 << 20
BEST_OF = "best-of:"


def list_recipes() -> dict[str, list[str]]:
    """Return the names of the shipped recipes, each with the data sets that have their own file."""
    names: dict[str, list[str]] = {}
    for stem in shipped_files():
        name, _, data = stem.partition("-")
        names.setdefault(name, []).extend([data] if data else [])
    return names


def shipped_files() -> dict[str, Traversable]:
    """Return the recipe files of the package by stem, in alphabetical order."""
    files = [file for file in resources.files("mlpconv.recipes").iterdir() if file.name.endswith(".json")]
    return {file.name.removesuffix(".json"): file for file in sorted(files, key=lambda file: file.name)}


def find_recipe(name: str | Path, data: str | None = None) -> Recipe:
    """Return the recipe `name` for a published set `data` or (None) other data, of a .json file or best-of:STUDY."""
    if str(name).endswith(".json"):
        return read_recipe(Path(name))
    if str(name).startswith(BEST_OF):
        return read_recipe(best_recipe(str(name).removeprefix(BEST_OF)))
    files = shipped_files()
    for stem in (f"{name}-{data}", str(name)):
        if stem in files:
            return parse_recipe(files[stem].read_bytes(), f"{stem}.json")
    names = list_recipes()
    if str(name) in names:
        given = repr(data) if data else "this data"
        raise UsageError(
            f"recipe {str(name)!r} is for {', '.join(names[str(name)])}, not for {given}: choose another recipe."
        )
    suggestion = did_you_mean(str(name)[:80], names)
    raise UsageError(f"unknown recipe {shorten(str(name))}: {suggestion} A path that ends in .json is read as a file.")


def best_recipe(study: str) -> Path:
    """Return the file with the best recipe of a search; raises UsageError if there is none."""
    path = Path(study, "best.json")
    if not path.is_file():
        raise UsageError(
            f"{BEST_OF}{study} is not a finished search ({path} is missing): give the folder that "
            "`mlpconv search` wrote."
        )
    return path


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a JSON file; raises UsageError if it is missing, too long or not a recipe."""
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file: give the name of a recipe or the path of a JSON file.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} has {path.stat().st_size:,} bytes: a recipe may have at most {MAX_FILE_BYTES:,}.")
        return parse_recipe(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


def parse_recipe(content: bytes, name: str) -> Recipe:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{name} is not JSON ({type(error).__name__}): a recipe is an object with the key 'settings'."
        ) from error
    if not isinstance(value, dict) or not isinstance(value.get("settings"), dict):
        raise UsageError(
            f"{name} is not a recipe: give a JSON object with the key 'settings' and, optionally, 'about'."
        )
    for key in value:
        if key not in ("about", "settings"):
            raise UsageError(
                f"{name} has an unknown key {shorten(key)}: {did_you_mean(key[:80], ('about', 'settings'))}"
            )
    return Recipe().with_settings(**value["settings"])
