"""The network that comes back: it can be copied, stored, moved, trained and compiled like any other."""

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
    """Everything that could be lost on the way."""

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


def test_names_buffers_and_attributes_stay() -> None:
    model, changed = made()
    assert list(changed.state_dict()) == list(model.state_dict())
    assert [name for name, _ in changed.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert [name for name, _ in changed.named_buffers()] == [name for name, _ in model.named_buffers()]
    assert changed.note == "mine"
    assert "rewritten from Net" in repr(changed)


def test_copies_and_pickles_compute_the_same_and_share_nothing() -> None:
    _, changed = made()
    for other in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        with torch.no_grad():
            assert torch.equal(other(images()), changed(images()))
            assert torch.equal(other.category_maps(images()), changed.category_maps(images()))
            other.fc.bias.add_(1)
            assert not torch.equal(other(images()), changed(images()))


def test_weights_go_out_and_come_back() -> None:
    _, changed = made()
    file = io.BytesIO()
    torch.save(changed.state_dict(), file)
    file.seek(0)
    other = pool_head(randomised(Net(), seed=4).eval(), SHAPE, latency=False).model
    other.load_state_dict(torch.load(file, weights_only=True))
    other.offset = changed.offset  # which is not stored
    assert torch.equal(other(images()), changed(images()))


def test_it_moves_to_other_formats() -> None:
    model, changed = made()
    assert changed.double()(images().double()).dtype is torch.float64
    assert torch.allclose(changed(images().double()), model.double()(images().double()), atol=1e-12)


def test_it_is_compiled_and_exported() -> None:
    _, changed = made()
    exported = torch.export.export(changed, (images(),))
    assert torch.allclose(exported.module()(images()), changed(images()), atol=1e-6)


def test_channels_last_stays() -> None:
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
    """The last layer's weight is that of the embedding beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 7)
        self.words = nn.Embedding(7, 6)
        self.words.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("operation", [pool_head, convolutionalize])
def test_a_weight_that_is_shared_stays_shared(operation: object) -> None:
    model = randomised(Tied()).eval()
    result = operation(model, SHAPE, latency=False)
    changed = result.model
    assert changed.fc.weight is changed.words.weight
    assert any("words.weight" in note for note in result.report.notes)
    with torch.no_grad():
        assert torch.allclose(changed(images()), model(images()), atol=1e-5)
        changed.words.weight.zero_()
        assert torch.allclose(changed(images()), changed.fc.bias.expand(2, 7))


def test_a_weight_that_is_worked_out_stays_so() -> None:
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
    """In training its forward decides by the numbers in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training and x.sum() > 0:
            x = -x
        return self.fc(x.mean((2, 3)))


def test_a_training_that_cannot_be_written_down_is_said_and_refused() -> None:
    model = randomised(Stubborn()).eval()
    result = pool_head(model, SHAPE, latency=False)
    assert any("eval mode only" in note for note in result.report.notes)
    assert torch.allclose(result.model(images()), model(images()), atol=1e-5)
    with pytest.raises(SurgeryError, match="only works in eval mode"):
        result.model.train()(images())


class Library(nn.Linear):
    """As timm's: a class of its own that calls the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class DropConnect(nn.Linear):
    """In training it loses weights: another layer than its name says."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, 0.5, self.training), self.bias)


def test_a_linear_layer_of_a_librarys_own_class_becomes_a_convolution() -> None:
    model = Net()
    model.fc = Library(6, 7)
    changed = pool_head(randomised(model).eval(), SHAPE, latency=False).model
    assert type(changed.fc) is nn.Conv2d
    assert torch.allclose(changed(images()), model(images()), atol=1e-5)


def test_a_weight_that_is_another_in_training_is_so_still() -> None:
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
    """In training its forward uses the last layer's weight once more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.fc.weight.abs().mean() if self.training else x)


def test_a_replaced_weight_that_is_read_elsewhere_is_not_read_in_another_shape() -> None:
    model = Scaled()
    model.words = nn.Identity()
    result = pool_head(randomised(model).eval(), SHAPE, latency=False)
    assert any("fc is replaced, and its weight is used elsewhere" in note for note in result.report.notes)
    with pytest.raises(SurgeryError, match="eval mode"):
        result.model.train()(images())


def test_a_report_is_a_table_and_data() -> None:
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
