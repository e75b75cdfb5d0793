"""A rewritten network can be copied, saved, moved, trained and compiled like any other."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.graphs import randomised
from torch import Tensor, nn

from mlpconv.errors import SurgeryError
from mlpconv.surgery import convolutionalize, pool_head


class Net(nn.Module):
    """State that surgery could lose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.unused = nn.Linear(2, 3)
        self.fc = nn.Linear(6, 7)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.register_buffer("offset", torch.full((6, 1, 1), 0.25), persistent=False)
        self.note = "mine"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)) * self.scale + self.offset
        return self.fc(F.dropout(x.mean((2, 3)), 0.5, self.training))


SHAPE = (3, 9, 7)


def images(count: int = 2) -> Tensor:
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(1))


def made() -> tuple[nn.Module, nn.Module]:
    model = randomised(Net()).eval()
    return model, pool_head(model, SHAPE, latency=False).model


def test_names_buffers_and_attributes_are_kept() -> None:
    model, changed = made()
    assert list(changed.state_dict()) == list(model.state_dict())
    assert [name for name, _ in changed.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert [name for name, _ in changed.named_buffers()] == [name for name, _ in model.named_buffers()]
    assert changed.note == "mine"
    assert "rewritten from Net" in repr(changed)


def test_copies_and_pickles_are_equivalent_and_independent() -> None:
    _, changed = made()
    for other in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        with torch.no_grad():
            assert torch.equal(other(images()), changed(images()))
            assert torch.equal(other.category_maps(images()), changed.category_maps(images()))
            other.fc.bias.add_(1)
            assert not torch.equal(other(images()), changed(images()))


def test_the_state_dict_round_trips() -> None:
    _, changed = made()
    file = io.BytesIO()
    torch.save(changed.state_dict(), file)
    file.seek(0)
    other = pool_head(randomised(Net(), seed=4).eval(), SHAPE, latency=False).model
    other.load_state_dict(torch.load(file, weights_only=True))
    other.offset = changed.offset  # not in the state dict
    assert torch.equal(other(images()), changed(images()))


def test_it_converts_to_other_dtypes() -> None:
    model, changed = made()
    assert changed.double()(images().double()).dtype is torch.float64
    assert torch.allclose(changed(images().double()), model.double()(images().double()), atol=1e-12)


def test_it_compiles_and_exports() -> None:
    _, changed = made()
    exported = torch.export.export(changed, (images(),))
    assert torch.allclose(exported.module()(images()), changed(images()), atol=1e-6)


def test_channels_last_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 7 * 5, 7))
    changed = convolutionalize(model.to(memory_format=torch.channels_last), SHAPE, latency=False).model
    for weight in (changed.get_submodule("0").weight, changed.get_submodule("2").weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_frozen_layers_stay_frozen() -> None:
    model = randomised(Net()).eval()
    model.fc.weight.requires_grad_(False)
    model.conv.requires_grad_(False)
    changed = pool_head(model, SHAPE, latency=False).model
    trainable = {name for name, value in changed.named_parameters() if value.requires_grad}
    assert trainable == {name for name, value in model.named_parameters() if value.requires_grad}


class Tied(nn.Module):
    """Share the last layer's weight with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 7)
        self.words = nn.Embedding(7, 6)
        self.words.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("operation", [pool_head, convolutionalize])
def test_shared_weights_stay_shared(operation: object) -> None:
    model = randomised(Tied()).eval()
    result = operation(model, SHAPE, latency=False)
    changed = result.model
    assert changed.fc.weight is changed.words.weight
    assert any("words.weight" in note for note in result.report.notes)
    with torch.no_grad():
        assert torch.allclose(changed(images()), model(images()), atol=1e-5)
        changed.words.weight.zero_()
        assert torch.allclose(changed(images()), changed.fc.bias.expand(2, 7))


def test_a_parametrized_weight_stays_parametrized() -> None:
    model = Tied()
    model.words = nn.Identity()
    model.fc = nn.utils.parametrizations.weight_norm(nn.Linear(6, 7))
    randomised(model).eval()
    changed = pool_head(model, SHAPE, latency=False).model
    with torch.no_grad():
        assert torch.allclose(changed(images()), model(images()), atol=1e-5)
        changed.fc.parametrizations.weight.original0.mul_(2)
        model.fc.parametrizations.weight.original0.mul_(2)
        assert torch.allclose(changed(images()), model(images()), atol=1e-5)


class Stubborn(nn.Module):
    """Control flow depends on tensor values in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training and x.sum() > 0:
            x = -x
        return self.fc(x.mean((2, 3)))


def test_an_untraceable_training_pass_is_reported_and_rejected() -> None:
    model = randomised(Stubborn()).eval()
    result = pool_head(model, SHAPE, latency=False)
    assert any("eval mode only" in note for note in result.report.notes)
    assert torch.allclose(result.model(images()), model(images()), atol=1e-5)
    with pytest.raises(SurgeryError, match="only works in eval mode"):
        result.model.train()(images())


class Library(nn.Linear):
    """Like timm's: a subclass that calls the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class DropConnect(nn.Linear):
    """Drop weights in training mode, unlike nn.Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, 0.5, self.training), self.bias)


def test_a_subclass_of_linear_becomes_a_convolution() -> None:
    model = Net()
    model.fc = Library(6, 7)
    changed = pool_head(randomised(model).eval(), SHAPE, latency=False).model
    assert type(changed.fc) is nn.Conv2d
    assert torch.allclose(changed(images()), model(images()), atol=1e-5)


def test_a_weight_that_differs_in_training_still_differs() -> None:
    model = Net()
    model.fc = DropConnect(6, 7)
    changed = pool_head(randomised(model).eval(), SHAPE, latency=False).model
    outputs = []
    for each in (model.train(), changed.train()):
        torch.manual_seed(2)
        outputs.append(each(images()))
    assert torch.allclose(*outputs, atol=1e-5)
    assert torch.allclose(changed.eval()(images()), model.eval()(images()), atol=1e-5)


class Scaled(Tied):
    """Use the last layer's weight a second time in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.fc.weight.abs().mean() if self.training else x)


def test_a_replaced_weight_used_elsewhere_keeps_its_shape_there() -> None:
    model = Scaled()
    model.words = nn.Identity()
    result = pool_head(randomised(model).eval(), SHAPE, latency=False)
    assert any("fc is replaced, and its weight is used elsewhere" in note for note in result.report.notes)
    with pytest.raises(SurgeryError, match="eval mode"):
        result.model.train()(images())


def test_a_report_prints_and_serialises() -> None:
    model = randomised(Net()).eval()
    report = pool_head(model, SHAPE, images=images(3)).report
    text, data = str(report), report.to_dict()
    for part in ("pool_head of Net, images of 3×9×7: the same outputs, proven", "multiply-adds", "changed: fc", "ms"):
        assert part in text
    assert "3 given" in text
    assert data["before"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert data["after"]["macs"] - data["before"]["macs"] == 6 * 7 * (7 * 5 - 1)
    assert data["before"]["latency_ms"] > 0
    assert data["before"]["field"]["rows"]["whole"]
    assert {each["dtype"] for each in data["differences"]} == {"float32", "float64"}
    pickle.loads(pickle.dumps(data))
