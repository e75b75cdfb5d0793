"""Arbitrary steps after the pool: applied at each cell of larger images, or moved before the pool if linear."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.graphs import randomised
from support.small_networks import close, images
from support.wrapped import Lambda
from torch import Tensor, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery import convolutionalize, pool_head

SHAPE = (3, 9, 7)
FEATURES, CLASSES = 6, 7
Forward = Callable[[Any, Tensor], Tensor]


class GeM(nn.Module):
    """Generalised mean pooling with a learned exponent."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(self.p), 1).pow(1 / self.p)


def net(function: Forward) -> nn.Module:
    model = Lambda(
        function,
        conv=nn.Conv2d(3, FEATURES, 3),
        fc=nn.Linear(FEATURES, CLASSES),
        other=nn.Linear(FEATURES, CLASSES),
        square=nn.Linear(FEATURES, FEATURES),
        layer=nn.LayerNorm(FEATURES),
        group=nn.GroupNorm(2, FEATURES),
        rms=nn.RMSNorm(FEATURES),
        prelu=nn.PReLU(FEATURES),
        gem=GeM(),
    )
    randomised(model)
    model.temperature, model.scales = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.linspace(0.5, 2, CLASSES))
    model.register_buffer("chosen", torch.tensor([5, 0, 2]))
    with torch.no_grad():
        model.gem.p.fill_(2.5)
    return model.eval()


def mean(m: Any, x: Tensor) -> Tensor:
    return m.conv(x).mean((2, 3))


def logits(m: Any, x: Tensor) -> Tensor:
    return m.fc(mean(m, x))


def dueling(m: Any, x: Tensor) -> Tensor:
    """Dueling head: advantages minus their mean."""
    y = logits(m, x)
    return y - y.mean(1, keepdim=True)


BENT: dict[str, Forward] = {
    "layer norm": lambda m, x: m.fc(m.layer(mean(m, x))),
    "layer norm, channels last": lambda m, x: m.fc(
        m.layer(F.adaptive_avg_pool2d(m.conv(x), 1).permute(0, 2, 3, 1)).flatten(1)
    ),
    "linear of kept means": lambda m, x: m.fc(m.layer(m.conv(x).permute(0, 2, 3, 1).mean((1, 2), True))).flatten(1),
    "group norm": lambda m, x: m.fc(m.group(mean(m, x))),
    "group norm of one cell": lambda m, x: m.fc(m.group(F.adaptive_avg_pool2d(m.conv(x), 1)).flatten(1)),
    "RMS norm": lambda m, x: m.fc(m.rms(mean(m, x))),
    "generalised mean": lambda m, x: m.fc(m.gem(m.conv(x)).flatten(1)),
    "root of a mean": lambda m, x: m.fc(m.conv(x).square().mean((2, 3)) ** 0.5),
    "cosines": lambda m, x: F.linear(F.normalize(mean(m, x)), F.normalize(m.other.weight)) * m.temperature.exp(),
    "norm by hand": lambda m, x: m.fc(mean(m, x) / mean(m, x).norm(dim=1, keepdim=True)),
    "a slope for each channel": lambda m, x: m.fc(m.prelu(mean(m, x))),
    "gate": lambda m, x: m.fc(mean(m, x) * m.square(mean(m, x)).sigmoid()),
    "gated linear unit": lambda m, x: F.glu(m.square(mean(m, x))),
    "averages and maxima": lambda m, x: m.fc(m.conv(x).mean((2, 3)) + m.conv(x).amax((2, 3))),
    "maxima": lambda m, x: m.fc(m.conv(x).amax((2, 3))),
    "maxima of flat maps": lambda m, x: m.fc(m.conv(x).flatten(2).max(-1)[0]),
    "maxima by name": lambda m, x: m.fc(m.conv(x).flatten(2).max(-1).values),
    "maxima of whole maps": lambda m, x: m.fc(F.max_pool2d(m.conv(x), (7, 5)).flatten(1)),
    "two heads' product": lambda m, x: logits(m, x) * m.other(mean(m, x)),
    "two heads' maximum": lambda m, x: torch.maximum(logits(m, x), m.other(mean(m, x))),
}
"""Heads that slide but have no exact maps."""
LINEAR: dict[str, Forward] = {
    "negation": lambda m, x: -m.fc(-mean(m, x)),
    "temperature": lambda m, x: logits(m, x) / m.temperature,
    "computed temperature": lambda m, x: m.temperature.exp() * logits(m, x),
    "a factor for each class": lambda m, x: logits(m, x) * m.scales + m.scales,
    "sums": lambda m, x: m.fc(m.conv(x).sum((2, 3))),
    "sums of sums": lambda m, x: m.fc(m.conv(x).sum(3).sum(2) / 35),
    "matrix product": lambda m, x: mean(m, x) @ m.other.weight.t() + m.other.bias,
    "product and sum": lambda m, x: torch.addmm(m.other.bias, mean(m, x), m.other.weight.t()),
    "sum of products": lambda m, x: torch.einsum("nc,kc->nk", mean(m, x), m.other.weight),
    "some classes": lambda m, x: logits(m, x)[:, 1:6:2],
    "some classes in another order": lambda m, x: logits(m, x).index_select(1, m.chosen),
    "half of the classes": lambda m, x: logits(m, x).tensor_split(2, 1)[1],
    "a chunk": lambda m, x: m.square(mean(m, x)).chunk(2, 1)[1],
    "chunks in another order": lambda m, x: torch.cat(m.square(mean(m, x)).chunk(2, 1)[::-1], 1),
    "less their mean": dueling,
    "weighted maps": lambda m, x: m.fc((m.conv(x) * m.conv(x).mean(1, True).sigmoid()).sum((2, 3))),
    "two heads": lambda m, x: torch.cat([logits(m, x), m.other(mean(m, x))], 1),
    "another number format": lambda m, x: m.fc(mean(m, x).type(torch.float64).type(x.dtype)),
}
"""Heads that commute with an average."""
AFTER: dict[str, Forward] = {
    "softmax": lambda m, x: logits(m, x).softmax(1),
    "softmax by hand": lambda m, x: logits(m, x).exp() / logits(m, x).exp().sum(1, keepdim=True),
    "reciprocals": lambda m, x: 1 / logits(m, x),
    "powers": lambda m, x: logits(m, x) ** 3,
}


def in_float64(model: nn.Module, x: Tensor, method: str = "forward") -> Tensor:
    with torch.no_grad():
        return getattr(copy.deepcopy(model).double(), method)(x)


@pytest.mark.parametrize("head", [*BENT, *LINEAR, *AFTER])
def test_every_head_equals_the_original_on_crops(head: str) -> None:
    model = net((BENT | LINEAR | AFTER)[head])
    result = convolutionalize(model, SHAPE, latency=False)
    x = images(2, 3, 11, 9)
    places = product(range(3), range(3))
    crops = [in_float64(model, x[:, :, row : row + 9, column : column + 7]) for row, column in places]
    assert close(torch.stack(crops, 2).unflatten(2, (3, 3)), in_float64(result.model, x))
    notes = str(result.report)
    assert result.report.details["equal"] or "nearly the same for every crop" in notes
    assert result.report.details["step"] == [1, 1]
    assert close(in_float64(model, x[:, :, :9, :7]), in_float64(result.model, x[:, :, :9, :7]))


@pytest.mark.parametrize("head", LINEAR)
def test_the_mean_of_the_maps_is_the_logits_of_every_linear_head(head: str) -> None:
    model = net(LINEAR[head])
    result = pool_head(model, SHAPE, latency=False)
    x = images(2, 3, 11, 13)
    maps = in_float64(result.model, x, "category_maps")
    assert maps.shape[2:] == (9, 11)
    assert close(in_float64(model, x), maps.mean((2, 3)))
    assert close(in_float64(model, x), in_float64(result.model, x))
    assert not any("enters" in note for note in result.report.notes)


@pytest.mark.parametrize("head", ["layer norm", "generalised mean", "cosines", "gate"])
def test_sliding_heads_train_as_before(head: str) -> None:
    model = net(BENT[head]).double().train()
    changed = convolutionalize(model, SHAPE, latency=False).model
    gradients = []
    for each in (model, changed):
        each(images(3, *SHAPE)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in each.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None) == (other is None)
        assert gradient is None or close(gradient.flatten(), other.flatten())


@pytest.mark.parametrize("operation", [pool_head, convolutionalize])
def test_dropout_uses_the_same_random_numbers_after_a_permutation(operation: Any) -> None:
    model = net(lambda m, x: F.dropout(logits(m, x).flip(1), 0.4, m.training)).double().train()
    changed, found = operation(model, SHAPE, latency=False).model, []
    for each in (model, changed):
        torch.manual_seed(5)
        found.append(each(images(3, *SHAPE)))
    assert close(*found)


@pytest.mark.parametrize("head", BENT)
def test_a_nonlinear_head_is_refused_with_the_reason(head: str) -> None:
    with pytest.raises(SurgeryError, match="not linear") as caught:
        pool_head(net(BENT[head]), SHAPE, latency=False)
    assert "bug" not in str(caught.value)
    assert "convolutionalize" in str(caught.value)


@pytest.mark.parametrize("head", ["softmax", "reciprocals", "powers"])
def test_the_maps_are_the_inputs_of_the_first_nonlinear_step(head: str) -> None:
    model = net(AFTER[head])
    result = pool_head(model, SHAPE, latency=False)
    x = images(2, 3, 11, 13)
    assert close(in_float64(net(logits), x), in_float64(result.model, x, "category_maps").mean((2, 3)))
    assert close(in_float64(model, x), in_float64(result.model, x))
    assert "mean of the category maps is what enters" in str(result.report)


def test_classes_selected_after_a_softmax_keep_their_maps() -> None:
    model = net(lambda m, x: logits(m, x).softmax(1)[:, [4, 1]])
    maps = in_float64(pool_head(model, SHAPE, latency=False).model, images(2, 3, 11, 13), "category_maps")
    assert close(in_float64(net(logits), images(2, 3, 11, 13))[:, [4, 1]], maps.mean((2, 3)))


@pytest.mark.parametrize(
    "pool", [lambda x: x.amax((2, 3)), lambda x: F.adaptive_max_pool2d(x, 1).flatten(1), lambda x: x.amax(3).amax(2)]
)
@pytest.mark.parametrize("then", [lambda y: y, lambda y: y.softmax(1)])
def test_maps_whose_maximum_is_the_logit_are_reported(pool: Any, then: Any) -> None:
    model = net(lambda m, x: then(pool(m.conv(x))))
    result = pool_head(model, SHAPE, latency=False)
    x = images(2, 3, 11, 13)
    maps = in_float64(result.model, x, "category_maps")
    assert close(in_float64(model, x), then(maps.amax((2, 3))))
    assert "maximum of each category map" in str(result.report)
    assert "mean of the category maps" not in str(result.report)


@pytest.mark.parametrize("module", [False, True])
def test_an_average_with_divisor_override(module: bool) -> None:
    pool = nn.AvgPool2d((7, 5), divisor_override=11)
    call = (
        (lambda m, x: m.fc(m.pool(m.conv(x)).flatten(1)))
        if module
        else (lambda m, x: m.fc(F.avg_pool2d(m.conv(x), (7, 5), divisor_override=11).flatten(1)))
    )
    model, x = net(call), images(2, *SHAPE)
    model.pool = pool
    result = pool_head(model, SHAPE, latency=False)
    assert close(in_float64(model, x), in_float64(result.model, x, "category_maps").mean((2, 3)))
    assert "pools fixed windows of 7x5 cells: on images of another size" in str(result.report)
    assert convolutionalize(model, SHAPE, latency=False).report.details["equal"]


@pytest.mark.parametrize("name", ["avg_pool2d", "max_pool2d"])
def test_windows_of_a_fixed_size_keep_their_size(name: str) -> None:
    """5x5 windows on 7x5 maps skip two rows; in a larger image the next window starts 5 rows below."""
    model = net(lambda m, x: m.fc(getattr(F, name)(m.conv(x), 5).flatten(1)))
    with pytest.raises(SurgeryError, match=r"7x5 cells to 1x1 with a fixed window size"):
        pool_head(model, SHAPE, latency=False)
    report = convolutionalize(model, SHAPE, latency=False).report
    assert (report.details["step"], report.details["equal"]) == ([5, 5], True)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda m, x: logits(m, x) - logits(m, x).mean(0), "mean() in the forward mixes the images of a batch"),
        (lambda m, x: logits(m, x) * torch.rand_like(logits(m, x)), "mixes the images of a batch, depends"),
        (lambda m, x: m.fc(m.conv(x).flatten(2).var(-1)), "var() in the forward"),
        (
            lambda m, x: torch.gather(logits(m, x), 1, m.conv(x).flatten(2).max(-1)[1] % 3),
            "reads the indices",
        ),
    ],
)
def test_a_step_that_cannot_run_per_cell_is_refused(function: Forward, says: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        convolutionalize(net(function), SHAPE, latency=False)
    assert says in str(caught.value)


# ---- networks that cannot slide


def strict(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.conv(x.reshape(-1, 3, 9, 7)).mean((2, 3)))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda m, x: m.fc(F.interpolate(m.conv(x), (5, 3)).mean((2, 3))), "gives a map of 1x1 cells"),
        (lambda m, x: m.fc(m.conv(F.adaptive_avg_pool2d(x, (9, 7))).mean((2, 3))), "gives a map of 1x1 cells"),
        (lambda m, x: m.fc((m.conv(x) * m.places).mean((2, 3))), "a larger image is an error: The size of tensor a"),
    ],
)
def test_a_network_that_cannot_slide_is_refused_with_the_cause(function: Forward, says: str) -> None:
    model = net(function)
    model.places = nn.Parameter(torch.rand(7, 5))
    with pytest.raises(SurgeryError) as caught:
        convolutionalize(model, SHAPE, latency=False)
    assert "cannot slide over larger images" in str(caught.value)
    assert says in str(caught.value)


def test_the_stride_is_inferred_from_sizes_without_a_receptive_field() -> None:
    """An instance norm sees the whole image, so cells have no own receptive field; the stride is still defined."""
    model = randomised(
        nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 5, 3, 3), nn.Flatten())
    )
    model.append(nn.Linear(5 * 2 * 3, CLASSES))
    report = convolutionalize(model.eval(), (3, 17, 23), latency=False).report
    assert (report.details["step"], report.details["equal"]) == ([6, 6], False)
    assert "sees more of the image than the crop" in str(report)


def test_uneven_windows_are_compared_with_unrounded_weights() -> None:
    """7x5 cells to 3x3: float32 kernels differ by 1e-8, which must not look like an effect of the image."""
    model = net(lambda m, x: m.wide(F.adaptive_avg_pool2d(m.conv(x), 3).flatten(1)))
    model.wide = nn.Linear(9 * FEATURES, CLASSES)
    report = convolutionalize(model.eval(), SHAPE, latency=False).report
    assert report.details["equal"]
    assert report.details["relative"] < 1e-12


def test_a_float32_head_is_compared_within_its_own_rounding() -> None:
    model = net(lambda m, x: F.linear(mean(m, x).float(), m.fc.weight.float(), m.fc.bias.float()).to(x.dtype))
    report = convolutionalize(model, SHAPE, latency=False).report
    assert report.details["equal"]
    assert 1e-9 < report.details["relative"] < 1e-5
