"""The error classes match the tree in the docstring, and each has an exit code."""

from __future__ import annotations

import re

import pytest

from mlpconv import errors

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BaseException)]


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    above: list[str] = []
    drawn: dict[str, str] = {}
    roots = {"MlpconvError": "Exception", "Interrupted": "KeyboardInterrupt"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([│├└─ ]*)([A-Z]\w+)  ", line)
        if found:
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            drawn[found[2]] = above[depth - 1] if depth else roots[found[2]]
    assert drawn == {error.__name__: error.__base__.__name__ for error in FAMILY if error.__base__}


def test_every_name_is_public_and_in_order() -> None:
    names = sorted([error.__name__ for error in FAMILY])
    assert errors.__all__ == [*names, "did_you_mean", "first_line"]


def test_ctrl_c_ends_a_loop_that_catches_errors() -> None:
    with pytest.raises(KeyboardInterrupt):
        try:
            raise errors.Interrupted("stopped", 2)
        except (errors.MlpconvError, Exception):  # noqa: BLE001  (what a careless loop writes)
            pass


@pytest.mark.parametrize("error", FAMILY, ids=lambda error: error.__name__)
def test_each_error_ends_a_command_with_its_code(error: type[errors.MlpconvError]) -> None:
    raised = error("stopped", 15) if error is errors.Interrupted else error("stopped")  # type: ignore[call-arg]
    assert str(raised) == "stopped"
    assert raised.exit_code == {"UsageError": 2, "Interrupted": 143}.get(error.__name__, 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [("cifar1", "did you mean 'cifar10'? Accepted: cifar10, mnist."), ("zzz", "accepted: cifar10, mnist.")],
)
def test_an_unknown_name_suggests_the_closest(given: str, words: str) -> None:
    assert errors.did_you_mean(given, ["mnist", "cifar10"]) == words


def test_of_many_names_only_close_ones_are_listed() -> None:
    names = [f"layer.{number}.conv" for number in range(300)]
    assert errors.did_you_mean("layer.77", names).startswith("closest: layer.77.conv, ")
    assert errors.did_you_mean("layer.77", names).endswith("; 300 names are accepted.")
    assert errors.did_you_mean("zzz", names) == "for example 'layer.0.conv'; 300 names are accepted."
    assert "layer.59.conv" in errors.did_you_mean("zzz", names[:60])
