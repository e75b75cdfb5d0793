"""Features come from a network that stays as it is, and from the disk where they were computed before."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpconv.inference import dispatch
from mlpconv.inference.engine import supported
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing
from mlpconv.transfer import features
from mlpconv.transfer.cache import FeatureCache, hash_of
from mlpconv.transfer.features import FastForward, extract, frozen_hash

IMAGES = np.random.default_rng(0).integers(0, 256, (53, 3, 37, 31), np.uint8)


@pytest.fixture
def backbone() -> tuple[torch.nn.Module, Preprocessing]:
    torch.manual_seed(0)
    model = create_model("efficientnet_lite0", width=0.25)  # with batch norm and dropout, in training mode
    chain = Preprocessing.create(["standardize"], 3, (37, 31)).fit(IMAGES)
    return model.train(), chain


def test_features_are_the_mean_of_the_maps_that_the_classifier_takes(backbone) -> None:
    model, chain = backbone
    found, flipped = (
        extract(FastForward(model, "fp32"), chain, IMAGES),
        extract(FastForward(model, "fp32"), chain, IMAGES, flip=True),
    )
    model.eval()
    with torch.no_grad():
        expected = model.forward_features(chain(IMAGES)).mean((2, 3))
        mirrored = model.forward_features(chain(np.ascontiguousarray(IMAGES[..., ::-1]))).mean((2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flipped, mirrored, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, flipped)


def test_frozen_means_frozen(backbone) -> None:
    model, chain = backbone
    before, rng = frozen_hash(model, chain), torch.get_rng_state()
    extract(FastForward(model, "fp32"), chain, IMAGES)
    assert frozen_hash(model, chain) == before
    assert model.training and model.bn1.training
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_hash_sees_every_number(backbone) -> None:
    model, chain = backbone
    before = frozen_hash(model, chain)
    with torch.no_grad():
        model.bn1.running_mean[3] += 1e-3
    assert frozen_hash(model, chain) != before


def test_computed_once_for_the_same_images_and_weights(backbone, tmp_path: Path) -> None:
    model, chain = backbone
    cache, done = FeatureCache(folder=tmp_path / "features"), []
    first = extract(FastForward(model, "fp32"), chain, IMAGES, cache=cache, progress=done.append)
    assert done == [48, 53]
    assert torch.equal(extract(FastForward(model, "fp32"), chain, IMAGES, cache=cache, progress=done.append), first)
    assert done == [48, 53]
    extract(FastForward(model, "fp32"), chain, IMAGES[:7], cache=cache, progress=done.append)
    extract(FastForward(model, "fp32"), chain, IMAGES, cache=cache, flip=True, progress=done.append)
    assert done == [48, 53, 7, 48, 53]


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    cache, computed = FeatureCache(folder=tmp_path), []

    def compute() -> torch.Tensor:
        computed.append(1)
        return torch.arange(15.0).view(5, 3)

    cache.get("k", compute)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    for content in (whole[:-1], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], b"", b"{}"):
        entry.write_bytes(content)
        assert torch.equal(cache.get("k", compute), torch.arange(15.0).view(5, 3))
        assert entry.read_bytes() == whole
    assert len(computed) == 5


def test_the_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = FeatureCache(gigabytes=5000 / 1e9, folder=tmp_path)  # room for two entries of 2,000 bytes
    for age, key in enumerate("ab"):
        cache.get(key, lambda: torch.zeros(500))
        os.utime(tmp_path / f"{key}.features", (age, age))
    cache.get("a", lambda: pytest.fail("it is there"))  # used now
    cache.get("c", lambda: torch.zeros(500))
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c"}
    cache.get("large", lambda: torch.zeros(5000))
    assert not (tmp_path / "large.features").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert FeatureCache(folder=tmp_path / "x").get("k", lambda: torch.ones(3)).sum() == 3


def test_a_file_in_the_place_of_the_folder_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    assert FeatureCache(folder=tmp_path / "x").get("k", lambda: torch.ones(3)).sum() == 3
    assert (tmp_path / "x").read_text() == "mine"


def test_hashes_tell_parts_apart() -> None:
    one, other = torch.zeros(2, 3), torch.zeros(3, 2)
    assert len({hash_of(parts) for parts in (["ab"], ["a", "b"], [one], [other], [one, other], [other.double()])}) == 6


def test_the_network_is_compiled_once_for_all_views(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.Size] = []
    monkeypatch.setattr(features, "trusted_engine", lambda network, x, *given, **rest: tried.append(x.shape))
    model = create_model("squeezenet", width=0.25)
    forward, chain = FastForward(model, "fp32"), Preprocessing.create(["scale"], 3, (37, 31)).fit(IMAGES)
    for flip in (False, True):
        extract(forward, chain, IMAGES, flip=flip)
    assert tried == [(8, 3, 37, 31)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_engine_gives_what_the_network_does(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(dispatch, "MIN_MACS", 0)
    model = create_model("squeezenet", width=0.25)
    chain = Preprocessing.create(["standardize"], 3, (37, 31)).fit(IMAGES)
    forward = FastForward(model, precision)
    found = extract(forward, chain, IMAGES)
    assert (forward.engine is not None) is supported()
    forward.engine = None  # the network itself
    tolerance = 1e-5 if precision == "fp32" else 0.03
    torch.testing.assert_close(found, extract(forward, chain, IMAGES), rtol=0, atol=tolerance * float(found.max()))
