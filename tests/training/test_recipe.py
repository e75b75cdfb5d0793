"""Recipes: shipped ones, files, and the validation of every setting."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from support.work import within

from mlpconv.errors import UsageError
from mlpconv.preprocessing import Preprocessing
from mlpconv.training import Recipe, find_recipe, list_recipes, read_recipe
from mlpconv.training.recipe import parse_setting

FIELDS = dataclasses.fields(Recipe)
HINTS = typing.get_type_hints(Recipe)


def titles() -> list[tuple[str, str]]:
    """Return every shipped recipe with a data set it supports."""
    return [(name, data) for name, sets in list_recipes().items() for data in (sets or ["photos"])]


def with_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    return path


# --- shipped recipes


def test_the_paper_ships_for_each_of_its_small_data_sets():
    assert set(list_recipes()["paper"]) >= {"cifar10", "cifar100", "mnist", "svhn"}


@pytest.mark.parametrize(("name", "data"), titles())
def test_a_shipped_recipe_reads_and_goes_through_json_unchanged(name: str, data: str):
    recipe = find_recipe(name, data)
    again = Recipe().with_settings(**json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.to_dict() == recipe.to_dict()
    assert list(Preprocessing.create(recipe.preprocessing, 3, (32, 32)).names) == list(recipe.preprocessing)


@pytest.mark.parametrize("data", ["cifar10", "svhn", "mnist"])
def test_the_learning_rates_of_the_paper_are_literal(data: str):
    recipe = find_recipe("paper", data)
    assert (recipe.lr, recipe.bias_lr, recipe.last_lr) == (0.1, 2.0, 0.1)
    assert (recipe.weight_decay, recipe.momentum, recipe.nesterov) == (1e-4, 0.9, False)
    assert (recipe.batch_size, recipe.epochs, recipe.milestones) == (128, 260, (200, 230))
    assert (recipe.last_relu, recipe.init, recipe.dropout, recipe.norm) == (True, "paper", 0.5, "none")


def test_paper_has_other_settings_on_cifar100():
    recipe = find_recipe("paper", "cifar100")
    assert (recipe.lr, recipe.bias_lr, recipe.last_lr, recipe.weight_decay) == (0.02, 2.0, 1.0, 5e-4)


def test_a_recipe_for_other_data_sets_is_refused():
    with pytest.raises(UsageError, match=r"recipe 'paper' is for cifar10, .*not for 'cats'"):
        find_recipe("paper", "cats")


def test_an_unknown_recipe_gets_a_suggestion():
    with pytest.raises(UsageError, match=r"unknown recipe 'papr': did you mean 'paper'\?"):
        find_recipe("papr", "mnist")


@pytest.mark.parametrize("name", ["", "../recipes/paper", "paper/", "a" * 5000, "paper\0", ".", "/"])
def test_a_hostile_name_is_an_unknown_recipe(name: str):
    with pytest.raises(UsageError, match="unknown recipe") as caught:
        find_recipe(name, "mnist")
    assert len(str(caught.value)) < 400


def test_a_long_data_name_is_accepted():
    with pytest.raises(UsageError, match="unknown recipe"):
        find_recipe("no-such", "x" * 300)


# --- single settings

WRONG: list[tuple[str, Any, str]] = [
    ("lr", "fast", "give a number"),
    ("lr", True, "give a number"),
    ("lr", None, "give a number"),
    ("lr", [0.1], "give a number"),
    ("epochs", 2.5, "give a whole number"),
    ("epochs", True, "give a whole number"),
    ("epochs", "ten", "give a whole number"),
    ("nesterov", 1, "give true or false"),
    ("nesterov", "yes", "give true or false"),
    ("model", 5, "give a word"),
    ("model", None, "give a word"),
    ("size", "large", "give a whole number"),
    ("last_relu", 0, "give true or false"),
    ("milestones", True, "give a list, like milestones=24,28,32"),
    ("preprocessing", None, "give a list, like preprocessing=gcn,zca"),
    ("milestones", "1,two", "give a whole number"),
    ("milestones", [1, 2.5], "give a whole number"),
    ("preprocessing", [1], "give a word"),
    ("preprocessing", [["zca"]], "give a word"),
    ("norm", None, "accepted: batch, network, none"),
    ("norm", ["batch"], "accepted"),
    ("lr", {}, "give a number"),
]


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_a_value_of_the_wrong_type_is_refused_by_name(key: str, value: Any, words: str):
    with pytest.raises(UsageError) as caught:
        Recipe().with_settings(**{key: value})
    assert str(caught.value).startswith(f"{key}=") or key in str(caught.value)
    assert words in str(caught.value)


def literals() -> list[str]:
    def choices(hint: Any) -> bool:
        return typing.get_origin(hint) is Literal or any(choices(part) for part in typing.get_args(hint))

    return [name for name, hint in HINTS.items() if choices(hint)]


@pytest.mark.parametrize("key", literals())
def test_every_choice_refuses_other_words_with_a_suggestion(key: str):
    hint = HINTS[key]
    options = typing.get_args(hint if typing.get_origin(hint) is Literal else typing.get_args(hint)[0])
    with pytest.raises(UsageError, match=f"^{key}='{options[0]}x' is not accepted; did you mean '{options[0]}'"):
        Recipe().with_settings(**{key: options[0] + "x"})
    for option in options:
        fits = {"steps": {"milestones": (1,)}}.get(option, {"source": "squeezenet"} if key == "tune" else {})
        assert getattr(Recipe().with_settings(**{key: option}, **fits), key) == option


@pytest.mark.parametrize(
    "field", [field for field in FIELDS if field.metadata["low"] is not None], ids=lambda f: f.name
)
def test_every_range_includes_its_ends_and_refuses_values_beyond(field: dataclasses.Field[Any]):
    low, high = field.metadata["low"], field.metadata["high"]
    whole = isinstance(field.default, int) or "int" in str(HINTS[field.name])
    step = 1 if whole else 1e-9
    beyond = [low - step, high + max(step, high * 1e-9 if not whole else 1)]
    if not whole:
        beyond += [float("nan"), float("inf"), float("-inf"), 10**400, -(10**400)]
    for value in beyond:
        with pytest.raises(UsageError, match=f"^{field.name}=.* is out of range: accepted are {low} to"):
            Recipe().with_settings(**{field.name: value})
    for value in (low, high):
        if (field.name, value) != ("lr", 0):
            assert getattr(Recipe(teacher="any").with_settings(**{field.name: value}), field.name) == value


def test_every_setting_has_a_help_text():
    assert [field.name for field in FIELDS if len(field.metadata["help"]) < 8] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0.0}, "lr=0"),
        ({"schedule": "steps"}, "milestones"),
        ({"milestones": (3,)}, "schedule=onecycle"),
        ({"schedule": "steps", "milestones": (0,)}, "milestones="),
        ({"schedule": "steps", "milestones": (-3,)}, "milestones="),
        ({"sizes": (0,)}, "sizes="),
        ({"sizes": (5000,)}, "sizes="),
        ({"sizes": (7, 11), "preprocessing": ("gcn", "zca")}, "sizes and zca"),
    ],
)
def test_incompatible_settings_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        Recipe().with_settings(**settings)


@pytest.mark.parametrize(
    ("key", "near"), [("ls", "lr"), ("epoch", "epochs"), ("learning_rate", None), ("wight_decay", "weight_decay")]
)
def test_an_unknown_setting_gets_a_suggestion(key: str, near: str | None):
    with pytest.raises(UsageError, match=f"unknown recipe setting '{key}'") as caught:
        Recipe().with_settings(**{key: 1})
    assert (f"did you mean {near!r}?" in str(caught.value)) == (near is not None)
    assert "batch_size" in str(caught.value)


@pytest.mark.parametrize("key", ["self", "__class__", "__dict__", "to_dict", "settings", "", "lr "])
def test_python_attributes_are_unknown_settings(key: str):
    with pytest.raises(UsageError, match="unknown recipe setting"):
        Recipe().with_settings(**{key: 1})


def test_a_recipe_is_immutable():
    recipe = Recipe()
    assert recipe.with_settings(lr=0.25).lr == 0.25
    assert recipe.lr == Recipe.lr == 0.05
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 1.0  # type: ignore[misc]


def test_long_values_make_short_messages():
    for key, value in (("lr", "9" * 10**6), ("norm", "b" * 10**6), ("epochs", 10**4000), ("k" * 10**6, 1)):
        with pytest.raises(UsageError) as caught:
            within(partial(Recipe().with_settings, **{key: value}), calls=20_000, megabytes=8)
        assert len(str(caught.value)) < 1500


def test_a_number_too_long_to_print_is_refused():
    with pytest.raises(UsageError, match="epochs=a int is out of range"):
        Recipe().with_settings(epochs=10**5000)


# --- the command line


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr=0.05", "lr", 0.05),
        ("lr=1e-3", "lr", 1e-3),
        (" lr = 0.5 ", "lr", 0.5),
        ("weight-decay=0", "weight_decay", 0),
        ("nesterov=true", "nesterov", True),
        ("nesterov=False", "nesterov", False),
        ("clip=none", "clip", None),
        ("clip=null", "clip", None),
        ("clip=None", "clip", None),
        ("norm=none", "norm", "none"),
        ("flip=none", "flip", "none"),
        ("model=nin_mnist", "model", "nin_mnist"),
        ('model="nin_mnist"', "model", "nin_mnist"),
        ("milestones=[3,5]", "milestones", [3, 5]),
        ("milestones=3,5", "milestones", "3,5"),
        ("model=a=b", "model", "a=b"),
        ("sizes=", "sizes", ""),
        ("lr=.05", "lr", 0.05),
        ("lr=-2.", "lr", -2.0),
        ("lr=.", "lr", "."),
        ("model=1.2.3", "model", "1.2.3"),
    ],
)
def test_a_setting_of_the_command_line_is_split(text: str, key: str, value: Any):
    assert parse_setting(text) == (key, value)
    assert type(parse_setting(text)[1]) is type(value)


@pytest.mark.parametrize("text", ["", "lr", "=0.5", "lr:0.5"])
def test_a_setting_without_an_equals_sign_is_refused(text: str):
    with pytest.raises(UsageError, match="give key=value, like lr=0.05"):
        parse_setting(text)


def test_lists_from_the_command_line_arrive_as_tuples():
    words = ["schedule=steps", "milestones=3,5", "preprocessing=gcn,zca"]
    recipe = Recipe().with_settings(**dict(parse_setting(text) for text in words))
    assert (recipe.milestones, recipe.preprocessing) == ((3, 5), ("gcn", "zca"))
    one = Recipe().with_settings(
        **dict(parse_setting(text) for text in ["schedule=steps", "milestones=7", "preprocessing=mean"])
    )
    assert (one.milestones, one.preprocessing) == ((7,), ("mean",))
    assert Recipe(sizes=(7,)).with_settings(**dict([parse_setting("sizes=[]")])).sizes == ()


@pytest.mark.parametrize(
    "text", ["lr=NaN", "lr=Infinity", "lr=1e400", "lr=-1", "dropout=1", "epochs=1e3", "lr=" + "[" * 10**5]
)
def test_a_hostile_value_of_the_command_line_is_refused(text: str):
    with pytest.raises(UsageError) as caught:
        Recipe().with_settings(**dict([parse_setting(text)]))
    assert text.split("=", maxsplit=1)[0] in str(caught.value)
    assert len(str(caught.value)) < 400


# --- files


def test_a_recipe_file_is_read(tmp_path: Path):
    path = with_file(tmp_path, b'{"about": {"what": "mine"}, "settings": {"lr": 1, "sizes": [7, 11], "clip": null}}')
    recipe = find_recipe(path, "mnist")
    assert recipe == read_recipe(path) == Recipe(lr=1.0, sizes=(7, 11))
    assert type(recipe.lr) is float


HOSTILE = {
    "empty": (b"", "is not JSON"),
    "text": (b"lr: 0.1", "is not JSON"),
    "cut": (b'{"settings": {"lr": 0.1', "is not JSON"),
    "not utf-8": (b'\xff\xfe{"settings"', "is not JSON"),
    "deep list": (b"[" * 10**5, "is not JSON"),
    "deep settings": (b'{"settings": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}", "is not JSON"),
    "long number": (b'{"settings": {"epochs": ' + b"9" * 10**5 + b"}}", "is not JSON"),
    "a list": (b"[]", "is not a recipe"),
    "null": (b"null", "is not a recipe"),
    "no settings": (b"{}", "is not a recipe"),
    "settings of another kind": (b'{"settings": [1]}', "is not a recipe"),
    "unknown part": (b'{"settings": {}, "setings": {}}', "unknown key 'setings': did you mean 'settings'"),
    "unknown key": (b'{"settings": {"lrr": 1}}', "unknown recipe setting 'lrr': did you mean 'lr'"),
    "class": (b'{"settings": {"__class__": "os.system"}}', "unknown recipe setting '__class__'"),
    "self": (b'{"settings": {"self": 1}}', "unknown recipe setting 'self'"),
    "surrogate": (b'{"settings": {"\\ud800": 1}}', r"unknown recipe setting '\ud800'"),
    "infinite": (b'{"settings": {"lr": 1e400}}', "lr=inf is out of range"),
    "nan": (b'{"settings": {"lr": NaN}}', "lr=nan is out of range"),
    "huge whole number": (b'{"settings": {"lr": 1' + b"0" * 400 + b"}}", "lr=inf is out of range"),
    "10 MB": (b" " * (10 << 20) + b"{}", "has 10,485,762 bytes"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_with_a_short_message(tmp_path: Path, kind: str):
    content, words = HOSTILE[kind]
    path = with_file(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        within(partial(read_recipe, path), calls=20_000, megabytes=8)
    assert words in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 1200


def test_paths_that_are_no_regular_file_are_refused(tmp_path: Path):
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name in ("missing.json", "folder.json", "pipe.json", "loop.json", "nul\0.json", "long" * 2000 + ".json"):
        with pytest.raises(UsageError, match=r"is not a file|cannot be read"):
            within(partial(find_recipe, tmp_path / name, "mnist"), calls=1_000)
