"""Networks with factorized convolutions: configuration, training, folding, deepening, engine and model file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from mlpconv import inference, modelfile
from mlpconv.analysis import profile
from mlpconv.errors import UsageError
from mlpconv.inference.engine import Engine, supported
from mlpconv.inference.layer_chain import chain_of
from mlpconv.models import build, create_model
from mlpconv.models.base import Network
from mlpconv.models.folding import fold_norm
from mlpconv.preprocessing import Preprocessing
from mlpconv.surgery import deepen

RANKS = [[[2, 5], [0, 3], [0, 0]], [[0, 7], [0, 0], [0, 2]], [[3, 0], [0, 0], [0, 4]]]
"""The ranks of the three convolutions in each of the three blocks of nin_tiny."""
PARTS = [3, 2, 1, 2, 1, 2, 2, 1, 2]


def described(**options: Any) -> dict[str, Any]:
    """Return the configuration of a factorized nin_tiny as data."""
    plain = create_model("nin_tiny", **({"in_channels": 3, "size": 13, "num_classes": 7} | options)).config.to_dict()
    plain["blocks"] = [block | {"ranks": ranks} for block, ranks in zip(plain["blocks"], RANKS, strict=True)]
    return json.loads(json.dumps(plain))


def network(**options: Any) -> Network:
    """Return the network with random parameters and statistics."""
    torch.manual_seed(5)
    model = build(described(**options)).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, (2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            nn.init.uniform_(module.weight, 0.2, 1.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
    return model


def images(count: int = 4, side: int = 13) -> Tensor:
    return torch.randn(count, 3, side, side + 2, generator=torch.Generator().manual_seed(2))


def close(one: Tensor, other: Tensor, share: float = 1e-5) -> bool:
    one, other = one.detach(), other.detach()
    return float(one.std()) > 1e-3 and float((one - other).abs().max()) <= share * float(one.abs().max())


@pytest.mark.parametrize("options", [{}, {"norm": None}, {"activation": "maxout"}, {"head": "fc"}], ids=str)
def test_the_configuration_counts_parameters_and_survives_json(options: dict[str, Any]) -> None:
    model = network(**options)
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.parameters
    assert build(json.loads(json.dumps(model.config.to_dict()))).config == model.config
    convs = [conv for block in model.blocks for conv in block.convs]
    assert [len(conv) if isinstance(conv, nn.Sequential) else 1 for conv in convs] == PARTS
    assert [model.blocks[0].convs[0][0].out_channels, model.blocks[0].convs[0][2].in_channels] == [2, 5]


def test_a_factorized_convolution_is_the_product_of_its_parts() -> None:
    """Compare with one convolution of the composed weight."""
    first, core, last = network().double().blocks[0].convs[0]
    weight = torch.einsum("or,rskl,si->oikl", last.weight[:, :, 0, 0], core.weight, first.weight[:, :, 0, 0])
    x = images().double()
    torch.testing.assert_close(last(core(first(x))), F.conv2d(x, weight, last.bias, padding=1))
    assert first.bias is None and core.bias is None


def test_first_and_last_convolution_of_a_factorized_network() -> None:
    model = network()
    assert model.first_conv is model.blocks[0].convs[0][0]
    assert model.last_conv is model.last_layer is model.blocks[2].convs[2][1]
    torch.testing.assert_close(model.category_maps(images()).mean((2, 3)), model(images()))
    assert network(head="fc").last_conv is None
    assert isinstance(network(head="fc").last_layer, nn.Linear)


def test_a_factorized_network_trains_from_scratch() -> None:
    torch.manual_seed(0)
    model = build(described())
    loss = F.cross_entropy(model(images(8)), torch.arange(8) % 7)
    loss.backward()
    assert abs(loss.item() - 1.95) < 0.3
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_norms_fold_into_the_last_convolution() -> None:
    model = network(pool_first=False)
    folded = fold_norm(model)
    assert folded.config.norm is None
    assert folded.config.blocks == model.config.blocks
    assert sum(parameter.numel() for parameter in folded.parameters()) == folded.config.parameters
    assert close(model(images()), folded(images()))


def test_a_factorized_block_can_be_deepened() -> None:
    model = network()
    result = deepen(model, "blocks.1")
    assert result.report.exact
    assert result.model.config.blocks[1].ranks == ((0, 7), (0, 0), (0, 2), (0, 0))
    assert build(result.model.config.to_dict()).state_dict().keys() == result.model.state_dict().keys()


@pytest.mark.skipif(not supported(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("options", [{}, {"norm": None}, {"last_relu": True}], ids=str)
def test_the_engine_computes_the_same(options: dict[str, Any]) -> None:
    model = network(**options)
    chain = chain_of(model, (13, 15))
    assert chain is not None and sum(isinstance(layer, nn.Conv2d) for layer in chain.layers) == sum(PARTS)
    with torch.inference_mode():
        assert close(model(images()), Engine(chain, torch.float32)(images()))
    assert chain.macs == profile(model, (3, 13, 15)).totals.macs
    model.blocks[0].convs[0] = nn.Sequential()
    assert chain_of(model, (13, 15)) is None
    model.blocks[0].convs[0] = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU())
    assert chain_of(model, (13, 15)) is None


def saved(path: Path, model: Network) -> dict[str, Any]:
    """Return the document in the metadata of a model file."""
    chain = Preprocessing.create(["scale"], 3, (13, 13))
    modelfile.save(path, model, chain, classes=[f"{k}" for k in range(7)], input_size=(3, 13, 13), info={})
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["mlpconv"])


def test_a_model_file_has_a_version_that_older_programs_refuse(tmp_path: Path) -> None:
    model = network()
    document = saved(tmp_path / "m", model)
    assert document["version"] == 2
    assert [block["ranks"] for block in document["model"]["blocks"]] == RANKS
    loaded = inference.load(tmp_path / "m")
    assert loaded.model.config == model.config
    assert all(torch.equal(tensor, loaded.model.state_dict()[name]) for name, tensor in model.state_dict().items())
    x = torch.randint(0, 256, (3, 3, 13, 13), dtype=torch.uint8)
    assert close(model(loaded.preprocessing(x)), loaded.logits(x))


def test_model_files_without_ranks_are_unchanged(tmp_path: Path) -> None:
    document = saved(tmp_path / "m", create_model("nin_tiny", in_channels=3, size=13, num_classes=7))
    assert document["version"] == 1
    assert "ranks" not in json.dumps(document)


def with_ranks(ranks: Any) -> dict[str, Any]:
    given = described()
    given["blocks"][1] = given["blocks"][1] | {"ranks": ranks}
    return given


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([[0, 1]], "ranks has 1 pairs; 0 or 3"),
        ([[0, 1]] * 99, "at most 16"),
        ([[0, 1, 2]] * 3, "at most 2"),
        ([[1]] * 3, "number of a convolution's ranks is 1"),
        ([[0, -1]] * 3, "a rank is -1"),
        ([[0, 1.0]] * 3, "a rank is 1.0"),
        ([[0, True]] * 3, "a rank is True"),
        ([[0, 10**6]] * 3, "from 0 to 16384"),
        ([3, 4, 5], "ranks is 3"),
        ("abc", "ranks is 'abc'"),
        ({"a": 1}, "ranks is"),
    ],
    ids=str,
)
def test_hostile_ranks_are_refused(ranks: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(with_ranks(ranks))


@pytest.mark.parametrize(
    ("channels", "ranks"), [([48, 48, 48], [[0, 0], [16384, 16384], [0, 0]]), ([48, 16384, 16384], [[0, 1]] * 3)]
)
def test_oversized_ranks_and_channels_are_refused_before_allocation(channels: list[int], ranks: Any) -> None:
    given = with_ranks(ranks)
    given["blocks"][1]["channels"] = channels
    with pytest.raises(UsageError, match="parameters; at most"):
        build(given)


def test_copies_are_independent() -> None:
    model = network()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[0].convs[0][1].weight.zero_()
    assert bool(model.blocks[0].convs[0][1].weight.any())
