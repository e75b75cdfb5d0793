"""Folding of batch norms, consecutive linear layers, dropout and identities, and what must not be folded."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_networks import assert_same, count, shaken
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

from mlpconv.errors import SurgeryError, UsageError
from mlpconv.models import create_model
from mlpconv.surgery import fold

IMAGE = (3, 13, 11)
NORMS = (nn.modules.batchnorm._BatchNorm,)


def folded(model: nn.Module, size: tuple[int, int, int] = IMAGE, *, kept: int = 0) -> nn.Module:
    """Fold in float64, and check that the outputs are equal and that `kept` norms are left."""
    model = shaken(model).double()
    result = fold(model, size)
    assert_same(model, result.model, size)
    assert len(result.report.details["kept"]) == kept == count(result.model, *NORMS)
    return result.model


def net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


BEFORE = {
    "a convolution": net(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)),
    "without bias": net(nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7)),
    "without weight": net(nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7, affine=False)),
    "groups": net(nn.Conv2d(3, 6, 3, groups=3, padding=2, padding_mode="circular"), nn.BatchNorm2d(6)),
    "transposed": net(nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5)),
    "transposed, groups": net(nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3), nn.BatchNorm2d(6)),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(429, 7), nn.BatchNorm1d(7), nn.ReLU()),
    "an average pool": net(nn.Conv2d(3, 7, 3), nn.AvgPool2d(2, ceil_mode=True), nn.BatchNorm2d(7)),
    "an adaptive pool": net(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(4), nn.BatchNorm2d(7)),
    "a padded average that knows": net(
        nn.Conv2d(3, 7, 3), nn.AvgPool2d(3, padding=1, count_include_pad=False), nn.BatchNorm2d(7)
    ),
    "a max pool": net(nn.Conv2d(3, 7, 3), nn.MaxPool2d(3, 2, padding=1), nn.BatchNorm2d(7)),
    "a dropout between": net(nn.Conv2d(3, 7, 3), nn.Dropout2d(0.4), nn.Identity(), nn.BatchNorm2d(7)),
}


@pytest.mark.parametrize("model", BEFORE.values(), ids=BEFORE.keys())
def test_a_norm_folds_into_the_layer_before_it(model: nn.Module) -> None:
    assert count(folded(model), nn.Dropout2d, nn.Identity) == 0


AFTER = {
    "without padding": net(nn.BatchNorm2d(3), nn.Conv2d(3, 7, 3)),
    "1x1 of a stride": net(nn.BatchNorm2d(3), nn.Conv2d(3, 7, 1, stride=2, bias=False)),
    "groups": net(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, groups=3)),
    "reflected": net(nn.BatchNorm2d(3), nn.Conv2d(3, 7, 3, padding=1, padding_mode="reflect")),
    "linear": nn.Sequential(nn.Flatten(), nn.ReLU(), nn.BatchNorm1d(429), nn.Linear(429, 5)),
}


@pytest.mark.parametrize("model", AFTER.values(), ids=AFTER.keys())
def test_a_norm_folds_into_the_layer_after_it(model: nn.Module) -> None:
    folded(model)


def test_zero_padding_keeps_a_norm_that_shifts_and_not_one_that_does_not() -> None:
    model = net(nn.BatchNorm2d(3), nn.Conv2d(3, 7, 3, padding=1))
    folded(model, kept=1)
    assert "1 pads its input with zeros" in fold(model, IMAGE).report.details["kept"]["0"]
    model[0].bias.data.zero_()
    model[0].running_mean.zero_()
    changed = fold(model, IMAGE).model
    assert count(changed, *NORMS) == 0
    assert_same(model, changed, IMAGE, 1e-5)


class Twice(nn.Module):
    """Two norms of one convolution, one norm of two convolutions, or a second consumer of the convolution."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3) if how == "conv" else nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.how == "conv":
            return self.norm(y) + self.other(self.conv(y))
        if self.how == "norm":
            return self.norm(y) + self.norm(self.other(x))
        return self.norm(y) + self.other(y)


@pytest.mark.parametrize(("how", "kept", "reason"), [
    ("conv", 2, "used more than once"),
    ("norm", 1, "used more than once"),
    ("sum", 1, "has other consumers"),
])  # fmt: skip
def test_a_norm_stays_if_a_module_or_an_output_is_used_twice(how: str, kept: int, reason: str) -> None:
    model = Twice(how)
    folded(model, kept=kept)
    assert reason in str(fold(model, IMAGE).report.details["kept"])


def test_layers_with_shared_or_parametrized_weights_keep_their_norm() -> None:
    tied = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    tied[3].weight = tied[0].weight
    folded(tied, kept=1)
    for computed in (parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), spectral_norm(nn.Conv2d(3, 3, 3))):
        model = nn.Sequential(computed, nn.BatchNorm2d(3), nn.ReLU())
        folded(model, kept=1)
        assert "are parametrized" in str(fold(model, IMAGE).report)


def test_a_norm_stays_if_the_pool_before_it_does_not_commute() -> None:
    negative = net(nn.Conv2d(3, 7, 3), nn.MaxPool2d(2), nn.BatchNorm2d(7))
    shaken(negative, negative=True)
    result = fold(negative, IMAGE)
    assert "1 before it takes a maximum" in result.report.details["kept"]["2"]
    assert_same(negative, result.model, IMAGE)
    for pool in (nn.AvgPool2d(3, padding=1), nn.AvgPool2d(2, divisor_override=3)):
        folded(net(nn.Conv2d(3, 7, 3), pool, nn.BatchNorm2d(7)), kept=1)


def test_a_norm_along_another_axis_or_without_statistics_stays() -> None:
    rows = nn.Sequential(nn.Flatten(2), nn.Linear(143, 5), nn.BatchNorm1d(3), nn.ReLU())
    folded(rows, kept=1)
    still = net(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7, track_running_stats=False))
    result = fold(shaken(still), IMAGE)
    assert "no running statistics" in result.report.details["kept"]["1"]


ROWS = {
    "1x1 and 1x1": ([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)], True),
    "three 1x1s": ([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 7, 1, bias=False), nn.Conv2d(7, 2, 1)], True),
    "3x3 and 1x1": ([nn.Conv2d(3, 7, 3, 2, 1, bias=False), nn.Conv2d(7, 4, 1)], True),
    "3x3 and 1x1 with a stride": ([nn.Conv2d(3, 7, 3, 2, 1, dilation=2), nn.Conv2d(7, 2, 1, stride=2)], True),
    "1x1 and 3x3": ([nn.Conv2d(3, 7, 1), nn.Conv2d(7, 4, 3)], True),
    "1x1 and padded 3x3": ([nn.Conv2d(3, 7, 1), nn.Conv2d(7, 4, 3, padding=1)], False),
    "1x1 without bias and padded 3x3": ([nn.Conv2d(3, 7, 1, bias=False), nn.Conv2d(7, 4, 3, padding=1)], True),
    "1x1 and reflected 3x3": ([nn.Conv2d(3, 7, 1), nn.Conv2d(7, 4, 3, padding=1, padding_mode="reflect")], True),
    "padded 1x1 and 3x3": ([nn.Conv2d(3, 7, 1, padding=1), nn.Conv2d(7, 4, 3)], False),
    "strided 1x1 and 3x3": ([nn.Conv2d(3, 7, 1, stride=2), nn.Conv2d(7, 4, 3)], False),
    "3x3 and 3x3": ([nn.Conv2d(3, 7, 3), nn.Conv2d(7, 4, 3)], False),
    "a bottleneck": ([nn.Conv2d(3, 2, 1), nn.Conv2d(2, 9, 1)], False),
    "depthwise and 1x1": ([nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 1)], False),
    "same padding and a stride": ([nn.Conv2d(3, 7, 3, padding="same"), nn.Conv2d(7, 2, 1, stride=2)], False),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "one"), ROWS.values(), ids=ROWS.keys())
def test_consecutive_convolutions_merge_if_that_is_exact_and_no_more_expensive(layers: list, one: bool) -> None:
    changed = folded(net(*layers))
    assert (count(changed, nn.Conv2d) == 1) is one
    if one:
        assert [name for name, _ in changed.named_parameters() if "weight" in name] == ["0.weight"]


def test_consecutive_fully_connected_layers_merge() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(429, 8), nn.Dropout(0.5), nn.Linear(8, 4), nn.BatchNorm1d(4))
    assert count(folded(model), nn.Linear) == 1


@pytest.mark.parametrize("frozen", [(False, True), (True, False), (True, True), (False, False)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_merged_layer_requires_gradients_if_either_layer_did(frozen: tuple[bool, bool], bias: bool) -> None:
    model = net(nn.Conv2d(3, 8, 1, bias=bias), nn.Conv2d(8, 2, 1))
    for layer, still in zip(model, frozen, strict=False):
        layer.requires_grad_(not still)
    changed = folded(model)
    assert {parameter.requires_grad for parameter in changed.parameters()} == {not all(frozen)}
    assert count(changed, nn.Conv2d) == 1


def test_a_norm_after_consecutive_layers_folds_and_the_layers_merge() -> None:
    layers = [
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 8, 1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1),
        nn.Dropout(),
        nn.Conv2d(8, 2, 1),
    ]
    assert count(folded(net(*layers)), nn.Conv2d) == 1


class Branches(nn.Module):
    """A residual block, a concatenation and a head, with every kind of module that is folded."""

    def __init__(self, seed: int, groups: int, pool: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.pool, self.drop, self.same = pool, nn.Dropout(0.3), nn.Identity()
        self.bn3, self.head = nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.same(self.bn2(self.conv2(y))) + self.down(x))
        x = torch.cat([self.pool(x), self.pool(y)], 1).mean((2, 3))
        return self.head(self.drop(self.bn3(x)))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    groups=st.sampled_from((1, 2, 4)),
    pool=st.sampled_from((nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Identity())),
    negative=st.booleans(),
)
def test_graphs_of_branches_fold_exactly(seed: int, groups: int, pool: nn.Module, negative: bool) -> None:
    model = shaken(Branches(seed, groups, pool), seed, negative=negative).double()
    result = fold(model, IMAGE)
    assert count(result.model, *NORMS, nn.Dropout) == 0
    assert_same(model, result.model, IMAGE)


def test_the_original_is_unchanged_and_its_settings_are_kept() -> None:
    model = shaken(Branches(1, 2, nn.MaxPool2d(2))).to(memory_format=torch.channels_last)
    model.conv1.weight.requires_grad_(False)
    model.conv2.weight.requires_grad_(False)
    model.stem.train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    changed = fold(model, IMAGE).model
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert type(changed) is Branches
    gone = {name for name in before if "bn" in name or name.startswith(("stem.1", "down.1"))}
    assert set(changed.state_dict()) == set(before) - gone | {"stem.0.bias", "conv2.bias"}
    assert changed.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    grads = {name for name, parameter in changed.named_parameters() if not parameter.requires_grad}
    assert grads == {"conv1.weight", "conv2.weight", "conv2.bias"}
    assert changed.stem.training
    assert not changed.down.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept_and_equality_is_proven_in_float64(dtype: torch.dtype) -> None:
    model = shaken(Branches(1, 1, nn.AvgPool2d(2))).to(dtype)
    result = fold(model, IMAGE)
    assert {tensor.dtype for tensor in result.model.parameters()} == {dtype}
    worst = max(each.relative for each in result.report.differences if each.dtype == "float64")
    assert worst < 1e-12


class ByPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.Conv2d(5, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts[3](self.parts[2](self.parts[1](self.parts[0](x))).relu()).mean((2, 3))


def test_an_identity_replaces_a_child_that_the_forward_pass_counts() -> None:
    changed = folded(ByPlace())
    assert [type(part) for part in changed.parts] == [nn.Conv2d, nn.Identity, nn.Identity, nn.Conv2d]


class NormAct(nn.BatchNorm2d):
    """A norm that also applies an activation, as in timm."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.ndim == 4, "maps are accepted")
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class Shifted(nn.BatchNorm2d):
    """A norm that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


class SamePadded(nn.Conv2d):
    """A subclass of a convolution that pads its input itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """A convolution that normalises its weight, so that scaling it changes nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


def test_a_norm_with_an_activation_leaves_the_activation() -> None:
    changed = folded(
        nn.Sequential(nn.Conv2d(3, 7, 3), NormAct(7, nn.SiLU()), nn.Conv2d(7, 3, 1), NormAct(3, nn.PReLU()))
    )
    assert count(changed, nn.SiLU) == 1
    assert "3.act.weight" in changed.state_dict()
    folded(net(nn.Conv2d(3, 7, 3), Shifted(7)), kept=1)
    folded(net(NormAct(3, nn.SiLU()), nn.Conv2d(3, 7, 3)), kept=1)


def test_subclasses_of_convolutions_are_checked_numerically() -> None:
    folded(net(SamePadded(3, 7, 3, bias=False), nn.BatchNorm2d(7)))
    model = net(Standardised(3, 7, 3), nn.BatchNorm2d(7))
    folded(model, kept=1)
    assert "whose output does not scale" in fold(model, IMAGE).report.details["kept"]["1"]


def test_a_network_of_this_package_keeps_its_class_and_configuration() -> None:
    model = shaken(create_model("nin_tiny", dropout=0.3, pool_first=True))
    result = fold(model)
    assert type(result.model) is type(model)
    assert (result.model.config.norm, result.model.config.dropout) == (None, 0.0)
    plain = create_model("nin_tiny", norm=None, dropout=0.0, pool_first=True)
    plain.load_state_dict(result.model.state_dict())
    assert_same(model, plain, model.input_size, 1e-5)
    with torch.no_grad():
        model.blocks[0].norms[2].weight[3] = -1.0
    result = fold(model)
    assert result.model.config.norm == "batch"
    assert "negative weight" in str(result.report)
    assert_same(model, result.model, model.input_size)
    head = shaken(create_model("nin_mnist", head="fc+dropout", width=0.1))
    assert_same(head, fold(head).model, head.input_size, 1e-5)


def test_a_network_in_train_mode_is_folded_for_eval_mode_with_a_note() -> None:
    model = shaken(net(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)))
    result = fold(model.train(), IMAGE)
    assert "train mode" in str(result.report)
    assert result.model.training
    assert_same(model, result.model, IMAGE, 1e-5)


def test_a_missing_input_size_is_requested() -> None:
    with pytest.raises(UsageError, match="give input_shape"):
        fold(nn.Conv2d(3, 3, 1))
    model = shaken(net(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)))
    model.default_cfg = {"input_size": IMAGE}
    assert fold(model).report.input_shape == IMAGE


def test_hooks_are_refused_and_an_unchanged_network_is_reported() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    assert "nothing to fold" in str(fold(model, IMAGE).report)
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(SurgeryError, match="hooks"):
        fold(model, IMAGE)
