"""Edits of a convolution, against the same change made by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mlpconv.errors import UsageError
from mlpconv.explorer import Subject
from mlpconv.explorer.edits import apply, parse_edits

FIRST, POINTWISE, CLASSES = "blocks.0.convs.0", "blocks.0.convs.1", "blocks.2.convs.2"


def step_of(subject: Subject, name: str) -> int:
    return next(step["id"] for step in subject.program.steps if step["name"] == name)


def by_hand(subject: Subject, name: str, change: object) -> torch.Tensor:
    """The logits of the first image after `change(module)` of a copy of the network."""
    model = copy.deepcopy(subject.classifier.model).double()
    with torch.no_grad():
        change(model.get_submodule(name))
        return model(subject.input(0)).reshape(-1)


def scaled(conv: nn.Conv2d) -> None:
    conv.weight[17] *= 0.25
    conv.bias[17] *= 0.25


def dropped(conv: nn.Conv2d) -> None:
    conv.weight[3], conv.bias[3] = 0, 0


def set_weight(conv: nn.Conv2d) -> None:
    conv.weight[5, 0, 1, 2] = -1.5  # weight 5 of the nine


def identity(conv: nn.Conv2d) -> None:
    conv.weight[:, :, 0, 0] = torch.eye(32)
    conv.bias.zero_()


def rank_three(conv: nn.Conv2d) -> None:
    u, s, v = torch.linalg.svd(conv.weight[:, :, 0, 0])
    conv.weight[:, :, 0, 0] = u[:, :3] @ torch.diag(s[:3]) @ v[:3]


@pytest.mark.parametrize(
    ("name", "form", "change"),
    [
        (POINTWISE, "s{}.17:0.25", scaled),
        (POINTWISE, "s{}.3:0", dropped),
        (FIRST, "w{}.5.5:-1.5", set_weight),
        (POINTWISE, "i{}", identity),
        (POINTWISE, "r{}.3", rank_three),
    ],
)
def test_an_edit_changes_the_logits_as_the_change_by_hand(
    digits: Subject, name: str, form: str, change: object
) -> None:
    edits, last = form.format(step_of(digits, name)), len(digits.program.steps) - 1
    (logits,) = digits.outputs(0, edits, [last])
    torch.testing.assert_close(logits.reshape(-1), by_hand(digits, name, change), rtol=1e-10, atol=1e-10)
    (before,) = digits.outputs(0, "", [last])
    assert not torch.equal(before, logits)


def test_edits_of_one_layer_add_up_and_the_network_itself_stays(digits: Subject) -> None:
    step = step_of(digits, POINTWISE)
    original = digits.classifier.model.get_submodule(POINTWISE).weight.clone()
    changed = apply(parse_edits(f"s{step}.1:2,w{step}.1.0:7,s{step}.1:0.5", digits.program), digits.program)
    weight = changed[POINTWISE][0].reshape(32, 32)
    assert weight[1, 0] == 3.5
    torch.testing.assert_close(weight[1, 1:], original.reshape(32, 32)[1, 1:].double())
    assert torch.equal(digits.classifier.model.get_submodule(POINTWISE).weight, original)


def test_the_accuracy_follows_an_edit_and_the_class_scores_do_too(digits: Subject) -> None:
    plain = digits.accuracy("")
    assert plain["n"] == 359
    assert plain["accuracy"] > 0.95
    assert plain["low"] < plain["accuracy"] < plain["high"]
    dead = digits.accuracy(",".join(f"s{step_of(digits, CLASSES)}.{k}:0" for k in range(1, 10)))
    assert dead["accuracy"] < 0.5


@pytest.mark.parametrize(
    "text",
    ["x1", "s1", "s1.1", "s1.1:nan", "s1.99:0", "w1.0.9:1", "r1.0", "r1.99", "i1", "s0.0:1", "s999.0:1", "i1:3", "r2.1",
     "s1.1.1:1", "s1.1:1e999", ",".join(["s1.0:1"] * 201)],
)  # fmt: skip
def test_edits_that_do_not_fit_are_refused_in_one_sentence(digits: Subject, text: str) -> None:
    with pytest.raises(UsageError, match=r"edit"):
        parse_edits(text, digits.program)


def test_an_edit_computes_only_what_it_can_change(digits: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    original = torch.nn.Conv2d._conv_forward
    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", lambda self, *words: ran.append("") or original(self, *words))
    last, step = len(digits.program.steps) - 1, step_of(digits, "blocks.2.convs.0")
    digits.outputs(1, "", [last])
    ran.clear()
    digits.outputs(1, f"s{step}.1:0.125", [last])
    assert len(ran) == 3  # of nine
