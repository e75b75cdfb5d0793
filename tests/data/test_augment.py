"""Batch augmentation equals a plain loop over the images and depends only on the seed and the step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpconv.data.augment import Augmentation, augment, generator, mixup, resize

N, C, H, W = 17, 3, 13, 11


def pictures(n: int = N, channels: int = C, height: int = H, width: int = W) -> torch.Tensor:
    """Return images with distinct nonzero values."""
    count = n * channels * height * width
    return torch.arange(1, count + 1, dtype=torch.float32).view(n, channels, height, width)


def changed(images: torch.Tensor, kinds: Augmentation, seed: int = 3, step: int = 5, epoch: int = 0) -> torch.Tensor:
    return augment(images, kinds, seed=seed, step=step, epoch=epoch, index=torch.arange(len(images)))


def windows(image: np.ndarray, pad: int, mode: str) -> dict[tuple[int, int, bool], np.ndarray]:
    """Return every crop of a padded image (C, H, W) by its offset, unflipped and flipped."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), "reflect" if mode == "reflect" else "constant")
    places = itertools.product(range(2 * pad + 1), repeat=2)
    crops = {(row, column): padded[:, row : row + height, column : column + width] for row, column in places}
    return {
        (*place, flip): crop[:, :, ::-1] if flip else crop for place, crop in crops.items() for flip in (False, True)
    }


def placed(before: torch.Tensor, after: torch.Tensor, pad: int, mode: str) -> list[tuple[int, int, bool]]:
    """Return the offset of each image's crop, by trying all of them."""
    places = []
    for image, result in zip(before.numpy(), after.numpy(), strict=True):
        fitting = [place for place, crop in windows(image, pad, mode).items() if np.array_equal(crop, result)]
        assert len(fitting) == 1
        places += fitting
    return places


# --- crops and flips


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("pad", [1, 2, 4])
def test_every_crop_is_a_window_of_the_padded_image(mode: str, pad: int):
    images = pictures()
    places = placed(images, changed(images, Augmentation(crop=pad, crop_mode=mode)), pad, mode)
    assert not any(flip for _, _, flip in places)
    assert len({(row, column) for row, column, _ in places}) > 3  # each image has a place of its own


def test_crops_are_also_flipped():
    images = pictures()
    places = placed(images, changed(images, Augmentation(crop=2, flip="random")), 2, "reflect")
    assert {flip for _, _, flip in places} == {False, True}


def test_crop_positions_are_uniform():
    images = pictures(1, 1, 3, 3).expand(2003, 1, 3, 3)
    crops = changed(images, Augmentation(crop=1, crop_mode="zero", flip="random")).numpy()
    table = {
        crop.tobytes(): place
        for place, crop in ((p, np.ascontiguousarray(c)) for p, c in windows(images[0].numpy(), 1, "zero").items())
    }
    counts = dict.fromkeys(table.values(), 0)
    for crop in crops:
        counts[table[np.ascontiguousarray(crop).tobytes()]] += 1
    expected = 2003 / 18
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 40  # chi squared, 17 degrees: p 0.001


def test_the_padding_modes_differ_only_at_the_border():
    images = pictures()
    zero, reflect = (changed(images, Augmentation(crop=2, crop_mode=mode)) for mode in ("zero", "reflect"))
    differ = zero != reflect
    assert differ.any()
    assert (zero[differ] == 0).all()
    assert (reflect > 0).all()


def test_reflection_falls_back_to_zeros_for_small_images():
    images = pictures(N, 3, 3, 7)
    for pad, same in ((2, False), (3, True)):  # a row of three can be mirrored over two
        reflect, zero = (changed(images, Augmentation(crop=pad, crop_mode=mode)) for mode in ("reflect", "zero"))
        assert torch.equal(reflect, zero) == same


def test_random_flips_flip_about_half():
    images = pictures(1009, 1, 1, 3)
    mirrored = (changed(images, Augmentation(flip="random")) == images.flip(3)).flatten(1).all(1)
    assert 430 < mirrored.sum() < 580
    assert torch.equal(changed(images, Augmentation(flip="random"))[~mirrored], images[~mirrored])


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_alternate_flips_flip_every_image_every_second_epoch(seed: int):
    images = pictures(1009, 1, 1, 3)
    kinds = Augmentation(flip="alternate")
    epochs = [changed(images, kinds, seed=seed, step=7 * epoch, epoch=epoch) for epoch in range(5)]
    for before, after in itertools.pairwise(epochs):
        assert torch.equal(before, after.flip(3))
    mirrored = (epochs[0] == images.flip(3)).flatten(1).all(1)
    assert 430 < mirrored.sum() < 580
    assert 430 < (mirrored[1:] == mirrored[:-1]).sum() < 580  # neighbours go their own ways


def test_alternate_flips_do_not_depend_on_the_position_in_the_batch():
    images, kinds = pictures(), Augmentation(flip="alternate")
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = augment(images[order], kinds, seed=3, step=99, epoch=0, index=order)
    assert torch.equal(shuffled, changed(images, kinds, step=1)[order])


# --- cutout


def test_cutout_zeroes_one_square_clipped_at_the_border():
    side = 5
    after = changed(pictures(997, 2, H, W), Augmentation(cutout=side))
    rows, columns = set(), set()
    for image in after.numpy():
        hole = (image == 0).all(0)
        assert ((image == 0).any(0) == hole).all()  # through all channels
        r, c = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(r) * len(c)  # a rectangle without gaps
        assert hole[r[0] : r[-1] + 1, c[0] : c[-1] + 1].all()
        for found, size in ((r, H), (c, W)):
            assert len(found) == side or 0 in found or size - 1 in found
            assert side // 2 < len(found) <= side
        rows.add((r[0], r[-1]))
        columns.add((c[0], c[-1]))
    assert len(rows) == H  # every centre comes up
    assert len(columns) == W


@pytest.mark.parametrize("side", [1, 2, 4])
def test_cutout_has_the_requested_side(side: int):
    after = changed(pictures(499, 1, 23, 23), Augmentation(cutout=side))
    areas = (after == 0).flatten(1).sum(1)
    assert areas.max() == side**2
    assert areas.min() >= max(1, (side // 2) ** 2)
    assert (areas == side**2).float().mean() > 0.6


def test_cutout_may_cover_the_image():
    assert (changed(pictures(5), Augmentation(cutout=64)) == 0).all()


# --- mixup


@settings(max_examples=30)
@given(alpha=st.floats(0.01, 10), step=st.integers(0, 10**6))
def test_mixup_mixes_images_and_targets_by_the_same_weight(alpha: float, step: int):
    images = torch.rand(7, 2, 3, 5, generator=torch.Generator().manual_seed(step))
    targets = torch.eye(7)
    mixed, blended = mixup(images, targets, alpha, seed=1, step=step)
    torch.testing.assert_close(blended.sum(1), torch.ones(7))
    torch.testing.assert_close(blended.sum(0), torch.ones(7))
    assert blended.min() >= 0
    torch.testing.assert_close(mixed.flatten(1), blended @ images.flatten(1))  # each target says what was mixed


def test_mixup_weights_have_the_moments_of_the_beta_distribution():
    shares = np.array(
        [mixup(torch.zeros(2, 1, 1, 1), torch.eye(2), 0.5, seed=7, step=step)[1].max() for step in range(997)]
    )
    shares = shares[shares < 1]  # half of the time the other is the image itself
    assert np.mean(shares) == pytest.approx(0.5 + 1 / np.pi, abs=0.03)  # of max(s, 1 - s), s ~ Beta(1/2, 1/2)


# --- what it depends on


EVERYTHING = Augmentation(crop=2, crop_mode="reflect", flip="random", cutout=3)


def test_seed_and_step_determine_the_batch():
    images = pictures()
    first = changed(images, EVERYTHING)
    torch.manual_seed(1234)
    torch.rand(17)
    assert torch.equal(changed(images, EVERYTHING), first)
    assert not torch.equal(changed(images, EVERYTHING, step=6), first)
    assert not torch.equal(changed(images, EVERYTHING, seed=4), first)
    targets = torch.eye(N)
    mixed = mixup(images, targets, 1.0, seed=3, step=5)
    assert all(torch.equal(a, b) for a, b in zip(mixup(images, targets, 1.0, seed=3, step=5), mixed, strict=True))
    assert not torch.equal(mixup(images, targets, 1.0, seed=3, step=6)[1], mixed[1])
    assert not torch.equal(mixup(images, targets, 1.0, seed=4, step=5)[1], mixed[1])


def test_the_global_generator_is_unchanged():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    changed(pictures(), EVERYTHING)
    mixup(pictures(), torch.eye(N), 1.0, seed=3, step=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_differ_by_seed_purpose_and_number():
    draws = [
        tuple(torch.randint(0, 2**31, (2,), generator=generator(seed, purpose, number)).tolist())
        for seed in (0, 1, 11)
        for purpose in ("order", "augment")
        for number in (0, 1, 11, 111)
    ]
    assert len(set(draws)) == len(draws)


def test_the_input_images_are_unchanged():
    images = pictures()
    for kinds in (EVERYTHING, Augmentation(crop=2), Augmentation(flip="random"), Augmentation(cutout=3)):
        changed(images, kinds)
    mixup(images, torch.eye(N), 1.0, seed=3, step=5)
    assert torch.equal(images, pictures())


@pytest.mark.parametrize("kinds", [Augmentation(crop=2), Augmentation(flip="random"), EVERYTHING])
def test_the_result_is_channels_last(kinds: Augmentation):
    after = changed(pictures(), kinds)
    assert after.is_contiguous(memory_format=torch.channels_last)
    assert after.shape == (N, C, H, W)


def test_no_augmentation_returns_the_images():
    images = pictures()
    assert changed(images, Augmentation()) is images


@pytest.mark.parametrize(
    "kinds", [Augmentation(crop=1), Augmentation(crop=3, crop_mode="zero", flip="alternate", cutout=1), EVERYTHING]
)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 7), (3, 1, 7, 1), (5, 7, 2, 2)])
def test_the_smallest_images_keep_their_shape(kinds: Augmentation, shape: tuple[int, ...]):
    after = changed(pictures(*shape), kinds)
    assert after.shape == shape
    assert torch.isfinite(after).all()


def test_a_single_pixel_is_kept_or_replaced_by_padding():
    images = torch.ones(997, 1, 1, 1)
    share = changed(images, Augmentation(crop=1)).mean().item()
    assert share == pytest.approx(1 / 9, abs=0.05)


# --- sizes


def test_resizing_keeps_means_and_skips_images_of_the_right_size():
    images = pictures(3, 2, 12, 12)
    assert resize(images, 12) is images
    small = resize(images, 6)
    assert small.shape == (3, 2, 6, 6)
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)))
    flat = torch.full((2, 1, 13, 13), 0.7)
    torch.testing.assert_close(resize(flat, 5), torch.full((2, 1, 5, 5), 0.7))


def test_resizing_is_antialiased():
    stripes = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(8).view(1, 1, 1, 32).expand(1, 1, 32, 32)
    small = resize(stripes, 8)
    assert (small[..., 1:-1] - 0.25).abs().max() < 0.1  # the pixels next to the middle alone would give 0
