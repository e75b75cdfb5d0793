"""Ranges of settings: what `--over` accepts, and what it refuses with the closest name."""

from __future__ import annotations

import pytest

from mlpconv.errors import UsageError
from mlpconv.search.space import SETTINGS, parse_space, settings_of


def test_intervals_and_choices() -> None:
    width, depth, kernel, norm, lr, temperature = parse_space(
        ["width=0.25..2", "depth=1..3", "kernel=3,5", "norm=none,batch", "lr=0.001..0.1", "teacher_temperature=1..8"]
    )
    assert (width.low, width.high, width.integer, width.log) == (0.25, 2.0, False, False)
    assert (depth.low, depth.high, depth.integer) == (1, 3, True)
    assert kernel.choices == (3, 5)
    assert norm.choices == ("none", "batch")
    assert lr.log
    assert temperature.high == 8  # --set names the teacher
    assert [str(item) for item in (width, depth, kernel, norm)] == [
        "width=0.25..2.0", "depth=1..3", "kernel=3,5", "norm=none,batch",
    ]  # fmt: skip


def test_sampled_numbers_are_rounded_and_stay_inside() -> None:
    ranges = parse_space(["lr=0.012344..0.5", "last_relu=true,false,null"])
    assert settings_of(ranges, {"last_relu": None, "lr": 0.012344}) == {"lr": 0.012344, "last_relu": None}
    assert settings_of(ranges, {"last_relu": True, "lr": 0.1234567})["lr"] == 0.1235


def test_the_written_range_is_parsed_again() -> None:
    texts = ["last_relu=true,false,null", "width=0.5..1.0", "activation=relu,maxout", "depth=1..3"]
    assert [str(item) for item in parse_space(texts)] == texts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("widht=1..2", "did you mean 'width'?"),
        ("width", "NAME=LOW..HIGH"),
        ("width=2..1", "the first end must be below"),
        ("width=0..2", "out of range"),
        ("width=a..b", "give a number"),
        ("depth=0.5..3", "give a whole number"),
        ("kernel=3", "a single value"),
        ("kernel=3,3", "a single value"),
        ("optimizer=sgd,adam", "not accepted"),
        ("optimizer=a..b", "is not a number"),
        ("epochs=1..9", "all trials share it"),
        ("preprocessing=gcn,zca", "is a list"),
        ("source=scratch,squeezenet", "source is about pretrained weights, and a search trains from random ones"),
        ("tune=last,all", "tune is about pretrained weights"),
        ("weights=a,b", "weights is about pretrained weights"),
        ("add_classes=true,false", "add_classes is about pretrained weights"),
        ("calibrate=true,false", "all trials share it"),
    ],
)
def test_bad_ranges(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        parse_space([text])


def test_ranges_are_needed_and_given_once() -> None:
    with pytest.raises(UsageError, match="nothing to search"):
        parse_space([])
    with pytest.raises(UsageError, match="width has two ranges"):
        parse_space(["width=1..2", "width=2..3"])


def test_settings_of_the_measurement_are_not_searched() -> None:
    assert {"width", "depth", "kernel", "lr", "optimizer", "size"} <= set(SETTINGS)
    assert not {"seed", "epochs", "precision", "val_fraction", "sizes", "source", "tune"} & set(SETTINGS)
