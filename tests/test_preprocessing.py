"""Preprocessing equals independent formulas, and handles images that break such formulas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, ndimage

from mlpconv.errors import UsageError
from mlpconv.preprocessing import STEPS, Preprocessing, chain

CHAINS = [
    ("scale",),
    ("mean",),
    ("standardize",),
    ("gcn",),
    ("zca",),
    ("lcn",),
    ("gcn", "zca"),
    ("lcn", "standardize"),
]
FITTED = [chain for chain in CHAINS if set(chain) & {"mean", "standardize", "zca"}]


def pictures(count: int = 31, channels: int = 3, size: tuple[int, int] = (7, 5), seed: int = 0) -> torch.Tensor:
    """Return smooth random images, whose neighbouring pixels correlate as in photographs."""
    noise = np.random.default_rng(seed).normal(size=(count, channels, *size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1, 1))
    low, high = smooth.min(), smooth.max()
    return torch.from_numpy(((smooth - low) / (high - low) * 255).astype(np.uint8))


def fitted(names: tuple[str, ...], images: torch.Tensor) -> Preprocessing:
    return Preprocessing.create(names, images.shape[1], tuple(images.shape[2:])).fit(images)


def check_equal(names: tuple[str, ...], images: torch.Tensor, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(fitted(names, images)(images).numpy(), wanted, rtol=tolerance, atol=tolerance)


def test_scale_and_mean_and_standardize() -> None:
    images = pictures()
    x = images.numpy() / 255.0
    check_equal(("scale",), images, x)
    check_equal(("mean",), images, x - x.mean((0, 2, 3), keepdims=True))
    check_equal(("standardize",), images, (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True))


def gcn(images: torch.Tensor) -> np.ndarray:
    """Normalise as in pylearn2, on grey levels."""
    rows = images.numpy().astype(np.float64).reshape(len(images), -1)
    rows = rows - rows.mean(1)[:, None]
    divisors = np.sqrt((rows**2).sum(1)) / 55.0
    divisors[divisors < 1e-8] = 1.0
    return (rows / divisors[:, None]).reshape(images.shape)


def test_gcn_gives_each_image_the_norm_55_and_the_mean_0() -> None:
    images = pictures()
    check_equal(("gcn",), images, gcn(images), 1e-4)
    y = fitted(("gcn",), images)(images).flatten(1)
    torch.testing.assert_close(y.norm(dim=1), torch.full((31,), 55.0))
    torch.testing.assert_close(y.mean(1), torch.zeros(31), atol=1e-5, rtol=0)


def whitened(x: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(x), -1)
    centred = rows - rows.mean(0)
    root = linalg.sqrtm(centred.T @ centred / len(rows) + 0.1 * np.eye(rows.shape[1]))
    return np.linalg.solve(np.real(root), centred.T).T.reshape(x.shape)


def test_zca_is_the_inverse_root_of_the_covariance() -> None:
    images = pictures(101)
    check_equal(("zca",), images, whitened(images.numpy() / 255.0), 1e-4)
    check_equal(("gcn", "zca"), images, whitened(gcn(images)), 1e-3)


def test_zca_makes_the_pixels_of_the_papers_chain_independent() -> None:
    images = pictures(997, 1, (5, 7))
    y = fitted(("gcn", "zca"), images)(images).flatten(1).double()
    covariance = np.cov(y.numpy().T, bias=True)
    values = np.linalg.eigvalsh(np.cov(gcn(images).reshape(997, -1).T, bias=True))
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance), np.maximum(values, 0) / (values + 0.1), atol=1e-3)
    assert abs(covariance - np.diag(np.diag(covariance))).max() < 0.2


def test_zca_learns_from_the_training_images_only() -> None:
    train, test = pictures(101), pictures(7, seed=1)
    chain = fitted(("zca",), train)
    rows = train.numpy().reshape(101, -1) / 255.0
    root = np.real(linalg.sqrtm(np.cov(rows.T, bias=True) + 0.1 * np.eye(rows.shape[1])))
    wanted = np.linalg.solve(root, (test.numpy().reshape(7, -1) / 255.0 - rows.mean(0)).T).T
    np.testing.assert_allclose(chain(test).flatten(1).numpy(), wanted, atol=1e-4)


def lcn(images: torch.Tensor) -> np.ndarray:
    """Compute Jarrett's normalisation with SciPy: zeros beyond the border, weighted by the window's overlap."""
    offsets = np.arange(9) - 4
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / 8.0)
    window /= window.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        inside = ndimage.correlate(np.ones_like(x), window, mode="constant")
        return ndimage.correlate(x, window, mode="constant") / inside

    out = np.empty(images.shape)
    for n, image in enumerate(images.numpy() / 255.0):
        for c, channel in enumerate(image):
            centred = channel - blur(channel)
            deviation = np.sqrt(blur(centred**2))
            out[n, c] = centred / np.maximum(np.maximum(deviation, deviation.mean()), 1e-4)
    return out


@pytest.mark.parametrize("size", [(13, 17), (7, 5), (1, 1), (31, 2)])
def test_lcn_is_jarretts(size: tuple[int, int]) -> None:
    images = pictures(5, 2, size, seed=3) if size != (1, 1) else torch.full((5, 2, 1, 1), 77, dtype=torch.uint8)
    check_equal(("lcn",), images, lcn(images), 1e-3)


def test_the_order_of_the_steps_counts() -> None:
    images = pictures(101)
    one, other = fitted(("gcn", "zca"), images)(images), fitted(("zca", "gcn"), images)(images)
    assert not torch.allclose(one, other, atol=0.1)
    torch.testing.assert_close(other.flatten(1).norm(dim=1), torch.full((101,), 55.0))


@pytest.mark.parametrize("names", CHAINS, ids=str)
@pytest.mark.parametrize("level", [0, 1, 85, 255])
def test_constant_images_become_zeros(names: tuple[str, ...], level: int) -> None:
    flat = torch.full((5, 3, 7, 5), level, dtype=torch.uint8)
    y = fitted(names, flat)(flat)  # all there is to learn from is constant
    assert y.isfinite().all()
    assert y.abs().max() <= (1 if names == ("scale",) else 1e-2)
    mixed = torch.cat([pictures(101), flat])
    y = fitted(names, mixed)(mixed)
    assert y.isfinite().all()
    if names in (("gcn",), ("lcn",)):
        assert y[101:].abs().max() < 1e-2


@pytest.mark.parametrize("names", CHAINS, ids=str)
def test_rank_deficient_channels_stay_finite(names: tuple[str, ...]) -> None:
    images = pictures(11)  # fewer images than values
    images[:, 1] = images[:, 0]  # two channels alike
    images[:, 2] = 200  # one constant
    y = fitted(names, images)(images)
    assert y.isfinite().all()
    assert y.abs().max() < 100


def test_gcn_keeps_the_faintest_contrast() -> None:
    images = torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)
    images[1, 0, 5, 5] = 201
    y = fitted(("gcn",), images)(images)
    assert y[0].abs().max() < 1e-2
    assert y[1, 0, 5, 5].item() == pytest.approx(55, rel=1e-2)


@pytest.mark.parametrize("names", FITTED, ids=str)
def test_fitting_in_chunks_gives_the_same_result(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(53)
    whole = fitted(names, images)
    sizes: list[int] = []
    run = Preprocessing.run
    monkeypatch.setattr(chain, "CHUNK", 3 * 105)
    monkeypatch.setattr(Preprocessing, "run", lambda self, x, steps: (sizes.append(len(x)), run(self, x, steps))[1])
    pieces = fitted(names, images)
    assert max(sizes) == 3
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_arrays_and_memory_mapped_files_are_accepted(tmp_path: Path) -> None:
    images = pictures()
    np.save(tmp_path / "pixels.npy", images.numpy())
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    chain = Preprocessing.create(("standardize",), 3, (7, 5)).fit(mapped)
    assert torch.equal(chain(mapped), fitted(("standardize",), images)(images))
    assert torch.equal(chain(mapped[:, :, ::-1]), chain(images.flip(2)))


@pytest.mark.parametrize("names", CHAINS, ids=str)
def test_configuration_and_state_restore_the_chain(names: tuple[str, ...]) -> None:
    images = pictures()
    chain = fitted(names, images)
    again = Preprocessing.from_config(json.loads(json.dumps(chain.config())))
    again.load_state_dict(chain.state_dict())
    assert torch.equal(again(images), chain(images))
    assert all(value.dtype == torch.float32 for value in chain.state_dict().values())
    assert again.config() == chain.config()


@pytest.mark.parametrize("names", FITTED, ids=str)
def test_an_unfitted_chain_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="not fitted yet"):
        Preprocessing.create(names, 3, (7, 5))(pictures())


def test_loading_the_state_of_a_parent_module_fits_the_chain() -> None:
    images = pictures()
    chain = fitted(("standardize",), images)
    parent = torch.nn.ModuleDict({"pre": Preprocessing.from_config(chain.config())})
    parent.load_state_dict({f"pre.{key}": value for key, value in chain.state_dict().items()})
    assert torch.equal(parent["pre"](images), chain(images))


def test_every_step_except_zca_accepts_other_sizes() -> None:
    images, larger = pictures(), pictures(size=(11, 13))
    for names in CHAINS:
        if "zca" not in names:
            assert fitted(names, images)(larger).shape == larger.shape
    with pytest.raises(UsageError, match="images of 3x11x13; it is fitted to 3x7x5"):
        fitted(("gcn", "zca"), images)(larger)
    with pytest.raises(UsageError, match="fitted to 3x7x5"):
        Preprocessing.create(("zca",), 3, (7, 5)).fit(larger)


def test_bfloat16_does_not_reach_the_whitening() -> None:
    images = pictures()
    chain = fitted(("lcn", "zca"), images)
    with torch.autocast("cpu", torch.bfloat16):
        y = chain(images)
    assert torch.equal(y, chain(images))


@pytest.mark.parametrize(
    ("names", "channels", "size", "words"),
    [
        ((), 3, (8, 8), "no steps; give at least one of: scale, mean"),
        (("gnc",), 3, (8, 8), "did you mean 'gcn'"),
        (("gcn", "gcn"), 3, (8, 8), "more than once"),
        ((["gcn"],), 3, (8, 8), "no preprocessing step"),
        (("zca",), 3, (64, 64), "3x64x64 = 12,288 values; accepted: at most 8,192"),
        (("scale",), 0, (8, 8), "channels=0"),
        (("scale",), True, (8, 8), "channels=True"),
        (("scale",), 3, (0, 8), "rows=0"),
        (("scale",), 3, (8, 8.0), "columns=8.0"),
        (("scale",), 3, (8, 10**9), "columns=1000000000"),
        (("standardize",), 10**9, (8, 8), "channels=1000000000"),
    ],
    ids=str,
)
def test_invalid_steps_and_sizes_are_refused(names: tuple, channels: int, size: tuple, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Preprocessing.create(names, channels, size)


@pytest.mark.parametrize("bad", [None, {}, {"steps": 3, "channels": 3, "size": [8, 8]}, {"steps": ["gcn"]}])
def test_a_malformed_configuration_is_refused(bad: object) -> None:
    with pytest.raises(UsageError):
        Preprocessing.from_config(bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        Preprocessing.from_config({"steps": ["gcn"], "channels": 3, "size": [8, 8], "extra": 1})
    with pytest.raises(UsageError):
        Preprocessing.from_config({"steps": ["gcn"], "channels": 3, "size": [8, 8, 8]})


def test_images_that_are_not_raw_are_refused() -> None:
    chain = Preprocessing.create("scale", 3, (7, 5))
    with pytest.raises(UsageError, match="raw uint8 images"):
        chain(pictures().float())
    with pytest.raises(UsageError, match="raw uint8 images"):
        chain(pictures().numpy().astype(np.float32))
    with pytest.raises(UsageError, match="3 dimensions"):
        chain(pictures()[0])
    with pytest.raises(UsageError, match="expects 3 channels, got 1"):
        chain(pictures(channels=1))
    with pytest.raises(UsageError, match="no images to fit"):
        chain.fit(pictures()[:0])
    assert chain(pictures()[:0]).shape == (0, 3, 7, 5)


@settings(max_examples=30)
@given(
    names=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4, unique=True),
    channels=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([(1, 1), (2, 7), (11, 5), (13, 3)]),
    count=st.sampled_from([1, 2, 7]),
    seed=st.integers(0, 99),
)
def test_any_chain_keeps_the_shape_and_makes_no_nan(
    names: list[str], channels: int, size: tuple[int, int], count: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, *size), dtype=np.uint8)
    images = torch.from_numpy(pixels)
    y = fitted(tuple(names), images)(images)
    assert y.shape == images.shape
    assert y.dtype == torch.float32
    assert y.isfinite().all()
