"""Networks that return several tensors: the maps belong to the logits, and the other outputs are unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from support.graphs import randomised
from support.small_networks import close, images
from support.wrapped import Lambda
from torch import Tensor, nn

from mlpconv.errors import SurgeryError, UsageError
from mlpconv.surgery import convolutionalize, pool_head
from mlpconv.surgery.proof.compare import flat_tensors

SHAPE = (3, 9, 7)
FEATURES, CLASSES = 5, 7


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class Answer:
    logits: Tensor | None = None
    features: Tensor | None = None


class Backbone(nn.Module):
    """Return maps and pooled maps as an object, like Hugging Face backbones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, FEATURES, 3), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Answer:
        x = self.conv(x)
        return Answer(features=x, logits=self.pool(x))


def net(function: Callable[..., Any]) -> nn.Module:
    """Return a network of a convolution, a linear layer and this forward function."""
    layers = {"fc": nn.Linear(FEATURES, CLASSES), "other": nn.Linear(FEATURES, 4), "backbone": Backbone()}
    return randomised(Lambda(function, conv=nn.Conv2d(3, FEATURES, 3), **layers)).eval()


def pooled(m: Any, x: Tensor) -> Tensor:
    return m.conv(x).mean((2, 3))


def both(kind: Callable[[Tensor, Tensor], Any]) -> Callable[..., Any]:
    """Return a forward function that returns features and logits in a container of this kind."""

    def forward(m: Any, x: Tensor) -> Any:
        features = pooled(m, x)
        return kind(features, m.fc(features))

    return forward


SHAPES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "tuple": (lambda f, y: (f, y), "1"),
    "list, logits first": (lambda f, y: [y, f], "0"),
    "dict": (lambda f, y: {"features": f, "logits": y}, "logits"),
    "namedtuple": (Pair, "logits"),
    "dataclass": (lambda f, y: Answer(features=f, logits=y), "logits"),
    "nested": (lambda f, y: {"all": [f], "out": {"logits": y}}, "out.logits"),
    "logits and their softmax": (lambda _, y: (y.softmax(1), y), "1"),
    "logits and classes": (lambda _, y: (y.argmax(1), y), "1"),
    "logits and the best": (lambda _, y: (*y.topk(2), y), "2"),
    "logits and energy": (lambda _, y: (y, y.logsumexp(1)), "0"),
}


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(flat_tensors(copy.deepcopy(model).double()(x)))


def maps(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double().category_maps(x)


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "in a module"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_maps_are_those_of_the_logits(shape: str, wrapped: bool) -> None:
    kind, name = SHAPES[shape]
    model = net(both(kind))
    model = Lambda(lambda m, x: m.inner(x), inner=model).eval() if wrapped else model
    result = pool_head(model, SHAPE, latency=False)
    x = images(2, 3, 11, 13)
    before, after = outputs(model, x), outputs(result.model, x)
    assert list(before) == list(after)
    assert all(close(before[key].double(), after[key].double()) for key in before)
    assert close(before[name], maps(result.model, x).mean((2, 3)))
    assert result.report.details["output"] == name
    assert f"category maps are those of output '{name}'" in str(result.report)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_output_slides_over_larger_images(shape: str) -> None:
    kind, name = SHAPES[shape]
    model = net(both(kind))
    result = convolutionalize(model, SHAPE, latency=False)
    x = images(2, 3, 12, 9)
    after, dense = outputs(result.model, x), maps(result.model, x)
    assert result.report.details["equal"]
    assert result.report.details["output"] == name
    assert dense.shape == (2, CLASSES, 4, 3)
    for row in range(4):
        for column in range(3):
            crop = outputs(model, x[:, :, row : row + 9, column : column + 7])
            assert close(crop[name], dense[:, :, row, column])
            assert all(close(crop[key].double(), after[key][..., row, column].double()) for key in crop)


def test_feature_map_outputs_are_unchanged() -> None:
    model = net(lambda m, x: (m.conv(x), m.fc(pooled(m, x))))
    result = convolutionalize(model, SHAPE, latency=False)
    x = images(1, 3, 12, 9)
    after = outputs(result.model, x)
    assert torch.equal(after["0"], outputs(model, x)["0"])
    assert after["1"].shape == (1, CLASSES, 4, 3)
    assert result.report.details["equal"]


def test_the_first_of_two_heads_is_the_default_and_output_selects_another() -> None:
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        features = pooled(m, x)
        return {"animal": m.fc(features), "weather": m.other(features)}

    model, x = net(forward), images(2, 3, 11, 13)
    before = outputs(model, x)
    for output, name in ((None, "animal"), ("weather", "weather"), (1, "weather"), (-2, "animal"), ("0", "animal")):
        result = pool_head(model, SHAPE, output=output, latency=False)
        assert close(before[name], maps(result.model, x).mean((2, 3)))
        assert ("output= selects another: 'weather'" in str(result.report)) == (output is None)
        dense = convolutionalize(model, SHAPE, output=output, latency=False)
        assert maps(dense.model, x).shape == (2, before[name].shape[1], 3, 7)
        assert dense.report.details["output"] == name


def test_output_can_select_features() -> None:
    model, x = net(both(lambda f, y: (f, y))), images(2, 3, 11, 13)
    result = pool_head(model, SHAPE, output=0, latency=False)
    assert close(outputs(model, x)["0"], maps(result.model, x).mean((2, 3)))


@pytest.mark.parametrize("operation", [pool_head, convolutionalize])
@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("scores", ["output='scores' is not an output", "features (N, 5), logits (N, 7)"]),
        (5, ["output=5 is not an output"]),
        ("maps", ["maps (N, 5, 7, 5), which is not (N, K)"]),
    ],
)
def test_an_output_that_is_not_logits_is_refused(operation: Any, output: Any, says: list[str]) -> None:
    model = net(lambda m, x: {"maps": m.conv(x), "features": pooled(m, x), "logits": m.fc(pooled(m, x))})
    with pytest.raises(UsageError) as caught:
        operation(model, SHAPE, output=output)
    assert all(text in str(caught.value) for text in says)
    with pytest.raises(UsageError, match="one output, which needs no name"):
        operation(net(lambda m, x: m.fc(pooled(m, x))), SHAPE, output="logits")


def test_a_backbone_that_returns_an_object_is_traced() -> None:
    model, x = net(lambda m, x: Answer(logits=m.fc(m.backbone(x).logits.flatten(1)))), images(2, 3, 11, 13)
    result = pool_head(model, SHAPE, latency=False)
    assert close(outputs(model, x)["logits"], maps(result.model, x).mean((2, 3)))
    dense = convolutionalize(model, SHAPE, latency=False)
    assert dense.report.details["equal"]
    assert maps(dense.model, x).shape == (2, CLASSES, 3, 7)


def test_a_loss_over_the_batch_is_refused() -> None:
    model = net(lambda m, x: (m.fc(pooled(m, x)), m.fc(pooled(m, x)).square().mean((0, 1), keepdim=True)))
    with pytest.raises(SurgeryError, match="mixes the images of a batch"):
        convolutionalize(model, SHAPE, latency=False)


def test_pooled_features_fed_back_into_maps_do_not_slide() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = m.conv(x)
        features = x.mean((2, 3))
        return m.fc(features), x * features[:, :, None, None]

    model, x = net(forward), images(2, 3, 11, 13)
    with pytest.raises(SurgeryError, match="back into feature maps"):
        convolutionalize(model, SHAPE, latency=False)
    changed = pool_head(model, SHAPE, latency=False).model
    before, after = outputs(model, x), outputs(changed, x)
    assert close(before["0"], after["0"])
    assert close(before["1"], after["1"])


@pytest.mark.parametrize("output", [0, 1])
def test_a_dropout_before_both_outputs_trains_as_before(output: int) -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        features = m.drop(pooled(m, x))
        return features, m.fc(features)

    model, x = net(forward), images(3, 3, 11, 13)
    model.drop = nn.Dropout(0.4)
    changed = pool_head(model, SHAPE, output=output, latency=False).model
    found = []
    for each in (model.double().train(), changed.double().train()):
        torch.manual_seed(5)
        found.append(dict(flat_tensors(each(x))))
    assert all(close(found[0][key], found[1][key]) for key in ("0", "1"))


def test_a_head_module_used_in_training_only_is_unchanged() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.fc(pooled(m, x))
        return m.last(y) if m.training else (y, m.last(y))

    model, x = net(forward), images(2, 3, 11, 13)
    model.last = nn.Linear(CLASSES, 4)
    result = pool_head(model.eval(), SHAPE, output=0, latency=False)
    before, after = outputs(model, x), outputs(result.model, x)
    assert all(close(before[key], after[key]) for key in before)
    assert result.report.changed == ("fc",)
    assert "last belongs to the head in training and not in eval mode" in str(result.report)
