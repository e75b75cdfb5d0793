"""The classifier: every way of giving an image gives the same answer, and nothing ambiguous is guessed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlpconv.errors import ImageError, ModelFileError, UsageError
from mlpconv.inference import Classifier, Predictions
from mlpconv.models import create_model
from mlpconv.preprocessing import Preprocessing

CLASSES = ("ant", "bee", "cat", "dog", "eel")
SIZE = (3, 11, 13)


def make_classifier(size: tuple[int, int, int] = SIZE, **options: Any) -> Classifier:
    """A small network whose answers depend on the image."""
    torch.manual_seed(4)
    model = create_model("nin_tiny", width=0.25, num_classes=5, in_channels=size[0], dropout=0.5, **options)
    for tensor in model.state_dict().values():
        if tensor.dim() == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
    preprocessing = Preprocessing.create(["standardize"], size[0], size[1:])
    preprocessing.fit(torch.randint(0, 256, (7, *size), dtype=torch.uint8))
    return Classifier(model, preprocessing, CLASSES, size, {"seed": 4})


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


CLASSIFIER = make_classifier()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return CLASSIFIER


def hand(classifier: Classifier, batch: np.ndarray) -> np.ndarray:
    """Probabilities from the parts, for (N, C, H, W)."""
    with torch.no_grad():
        logits = classifier.model(classifier.preprocessing(torch.from_numpy(batch)))
    return logits.softmax(1).numpy()


def as_path(image: Image.Image, folder: Path) -> Path:
    image.save(folder / "image.png")
    return folder / "image.png"


def as_bytes(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


WAYS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "path": as_path,
    "text": lambda image, folder: str(as_path(image, folder)),
    "bytes": lambda image, _: as_bytes(image),
    "pillow": lambda image, _: image,
    "array": lambda image, _: np.asarray(image),
    "batch": lambda image, _: np.asarray(image).transpose(2, 0, 1)[None],
    "tensor": lambda image, _: torch.from_numpy(np.array(image).transpose(2, 0, 1)[None]),
    "list": lambda image, _: [image],
    "tuple": lambda image, _: (np.asarray(image),),
    "generator": lambda image, _: (each for each in [image]),
    "turned axes": lambda image, _: np.asfortranarray(np.asarray(image)),
    "read-only": lambda image, _: np.frombuffer(np.asarray(image).tobytes(), np.uint8).reshape(image.height, -1, 3),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("size", [(11, 13), (23, 29), (7, 5), (2, 1), (31, 11)])
def test_every_input_type_gives_the_same_prediction(
    classifier: Classifier, way: Callable[..., Any], size: tuple[int, int], tmp_path: Path
) -> None:
    image = Image.fromarray(pixels(*size, 3))
    expected = hand(classifier, classifier.pixels(image).numpy())
    if size == SIZE[1:]:
        np.testing.assert_array_equal(classifier.pixels(image)[0].numpy(), np.asarray(image).transpose(2, 0, 1))
    np.testing.assert_allclose(classifier.predict(way(image, tmp_path)).probabilities, expected, rtol=1e-4, atol=1e-6)


def test_a_single_pixel_is_an_image_if_its_axes_are_known(classifier: Classifier) -> None:
    red = Image.new("RGB", (1, 1), (200, 3, 5))
    expected = np.broadcast_to(np.array([200, 3, 5], np.uint8)[:, None, None], SIZE)
    for image in (red, as_bytes(red), np.array([200, 3, 5], np.uint8).reshape(1, 3, 1, 1)):
        np.testing.assert_array_equal(classifier.pixels(image)[0].numpy(), expected)


def test_mixed_images_keep_their_order_and_their_files(classifier: Classifier, tmp_path: Path) -> None:
    images = [Image.fromarray(pixels(17, 19, 3, seed=seed)) for seed in range(4)]
    opened = Image.open(as_path(images[3], tmp_path))
    mixed = [images[0], np.asarray(images[1]), as_bytes(images[2]), opened, str(opened.filename)]
    found = classifier.predict(mixed, batch_size=2)
    expected = [classifier.predict(image).probabilities[0] for image in (*images, images[3])]
    np.testing.assert_allclose(found.probabilities, np.stack(expected), rtol=1e-4, atol=1e-6)
    assert found.sources == (None, None, None, str(tmp_path / "image.png"), str(tmp_path / "image.png"))
    assert len({tuple(row) for row in np.stack(expected[:4])}) == 4


@pytest.mark.parametrize("shape", [(11, 13), (11, 13, 1), (11, 13, 4), (17, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_transparent_arrays_are_converted(shape: tuple[int, ...], channels: int) -> None:
    array = pixels(*shape)
    array[..., -1] = 255 if len(shape) == 3 and shape[2] == 4 else array[..., -1]
    made = make_classifier((channels, 11, 13)).pixels(array)
    assert made.shape == (1, channels, 11, 13)
    if shape == (11, 13):
        assert (made[0].numpy() == array).all()
    if shape == (11, 13, 4) and channels == 3:
        np.testing.assert_array_equal(made[0].numpy(), array[..., :3].transpose(2, 0, 1))


def test_transparent_images_are_composited_on_white(classifier: Classifier) -> None:
    assert (classifier.pixels(np.zeros((11, 13, 4), np.uint8)) == 255).all()


@pytest.mark.parametrize(("given", "channels"), [(1, 3), (3, 1), (4, 3), (4, 1), (3, 3)])
def test_a_batch_of_other_channels_or_size_is_converted(given: int, channels: int) -> None:
    batch = pixels(3, given, 17, 19)
    model = make_classifier((channels, 11, 13))
    singly = [model.pixels(np.squeeze(image.transpose(1, 2, 0))) for image in batch]
    assert torch.equal(model.pixels(batch), torch.cat(singly))


REFUSED: dict[str, tuple[Any, str]] = {
    "3x3x3": (pixels(3, 3, 3), r"is ambiguous: write Image.fromarray\(array\) for \(H, W, C\)"),
    "1x1x1": (pixels(1, 1, 1), "is ambiguous"),
    "1x1x3": (pixels(1, 1, 3), "is ambiguous"),
    "3x9x4": (pixels(3, 9, 4), "is ambiguous"),
    "channels first": (pixels(3, 11, 13), r"write array\[None\] if it is \(C, H, W\)"),
    "grey batch": (pixels(8, 11, 13), r"write array\[:, None\] if it is a batch"),
    "two channels": (pixels(11, 13, 2), "not .* 1, 3 or 4 channels"),
    "five axes": (pixels(2, 2, 2, 2, 2), "is not an image"),
    "one axis": (pixels(13), "is not an image"),
    "no axis": (np.uint8(3).reshape(()), "is not an image"),
    "no rows": (pixels(0, 13, 3), "is not an image"),
    "no pixels in a batch": (pixels(2, 3, 0, 5), "has no pixels"),
    "an empty batch": (pixels(0, 3, 5, 5), "has no pixels"),
    "batch, channels last": (pixels(2, 11, 13, 3), r"Write array.transpose\(0, 3, 1, 2\)"),
    "batch of five channels": (pixels(2, 5, 11, 13), "not .* 1, 3 or 4 channels"),
    "one tensor": (torch.zeros(3, 11, 13, dtype=torch.uint8), r"write tensor\[None\]"),
    "a grey tensor": (torch.zeros(11, 13, dtype=torch.uint8), r"write tensor\[None\]"),
    "a list of tensors": ([torch.zeros(3, 11, 13, dtype=torch.uint8)], r"write tensor\[None\]"),
    "floats": (np.zeros((11, 13, 3)), r"Expected uint8 pixels, got float64: .* \(array \* 255\).round"),
    "a batch of floats": (torch.zeros(2, 3, 11, 13), r"got float32: .*preprocessed images go to .model"),
    "16 bits": (np.zeros((11, 13), np.uint16), r"write Image\.fromarray\(array\), which is read like a 16-bit file"),
    "int64": (np.zeros((11, 13), np.int64), r"array.astype\('uint8'\)"),
    "truths": (np.zeros((11, 13), bool), "Expected uint8 pixels, got bool"),
    "texts": (np.array(["a.png", "b.png"]), "Expected uint8 pixels"),
    "nothing": ([], "Got no images; accepted: paths"),
    "none": (None, "A NoneType is not an image"),
    "a number": (3, "A int is not an image"),
    "a list of numbers": ([1, 2], "A int is not an image"),
    "nested lists": ([[1, 2], [3, 4]], "A list is not an image"),
}


@pytest.mark.parametrize(("images", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_anything_but_an_image_is_refused(classifier: Classifier, images: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        classifier.predict(images)


@given(st.lists(st.integers(0, 6), min_size=0, max_size=5), st.sampled_from(["uint8", "float32", "int32", "bool"]))
def test_any_array_is_read_as_documented_or_refused(shape: list[int], dtype: str) -> None:
    array = np.zeros(shape, dtype)
    one = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4))
    batch = len(shape) == 4 and shape[1] in (1, 3, 4)
    if dtype == "uint8" and 0 not in shape and (one or batch):
        assert CLASSIFIER.pixels(array).shape == (shape[0] if batch else 1, *SIZE)
    else:
        with pytest.raises(UsageError):
            CLASSIFIER.pixels(array)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_file_is_named(classifier: Classifier, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png"):
        classifier.predict(tmp_path / "a.png")
    with pytest.raises(ImageError):
        classifier.predict(content)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None])
def test_a_batch_has_at_least_one_image(classifier: Classifier, batch_size: Any) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        classifier.predict(pixels(11, 13), batch_size=batch_size)


def test_images_are_read_a_batch_at_a_time(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a batch is decoded before it is computed."""
    events: list[str] = []
    compute = classifier.probabilities
    monkeypatch.setattr(classifier, "probabilities", lambda *a, **k: (events.append("compute"), compute(*a, **k))[1])

    def endless() -> Iterator[np.ndarray]:
        for seed in range(7):
            events.append("read")
            yield pixels(11, 13, 3, seed=seed)

    assert len(classifier.predict(endless(), batch_size=3)) == 7
    assert events == ["read"] * 3 + ["compute"] + ["read"] * 3 + ["compute"] + ["read", "compute"]


def test_a_prediction_does_not_depend_on_the_batch(classifier: Classifier) -> None:
    """The same image alone, and among others in any batch size."""
    batch = pixels(13, *SIZE)
    batch[::2] = 255
    alone = np.concatenate([classifier.predict(image[None]).probabilities for image in batch])
    for size in (2, 5, 128):
        np.testing.assert_allclose(classifier.predict(batch, batch_size=size).probabilities, alone, atol=1e-5)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
@pytest.mark.parametrize("steps", [["gcn"], ["lcn"], ["standardize"], ["gcn", "zca", "lcn"]], ids=",".join)
def test_constant_images_give_finite_probabilities(value: int, steps: list[str]) -> None:
    preprocessing = Preprocessing.create(steps, 3, (11, 13)).fit(torch.from_numpy(pixels(5, *SIZE)))
    made = Classifier(CLASSIFIER.model, preprocessing, CLASSES, SIZE)
    found = np.asarray(made.predict(np.full((2, *SIZE), value, np.uint8)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_a_network_that_overflows_is_an_error() -> None:
    broken = make_classifier(norm=None)
    with torch.no_grad():
        for parameter in broken.model.parameters():
            parameter.fill_(1e30)
    with pytest.raises(ModelFileError, match=r"outputs NaN or infinity for 2 of 2 images .* index 0"):
        broken.predict(pixels(2, *SIZE))


def test_it_computes_in_eval_mode_whatever_the_mode(classifier: Classifier) -> None:
    made = make_classifier()
    assert not made.model.training
    quiet = made.predict(pixels(3, *SIZE)).probabilities
    made.model.train()
    frozen = made.model.blocks[0].eval()
    np.testing.assert_array_equal(made.predict(pixels(3, *SIZE)).probabilities, quiet)
    training = {module: module.training for module in made.model.modules()}
    assert training == {module: module not in set(frozen.modules()) for module in training}
    assert not made.logits(torch.from_numpy(pixels(2, *SIZE))).requires_grad


def test_tta_flip_averages_the_logits(classifier: Classifier) -> None:
    batch = pixels(3, *SIZE)
    x = torch.from_numpy(batch)
    both = (classifier.logits(x) + classifier.logits(x.flip(3))) / 2
    torch.testing.assert_close(classifier.logits(x, tta_flip=True), both)
    flipped = classifier.predict(batch, tta_flip=True).probabilities
    np.testing.assert_allclose(flipped, classifier.predict(batch[..., ::-1], tta_flip=True).probabilities, atol=1e-6)
    assert np.abs(flipped - classifier.predict(batch).probabilities).max() > 1e-3


def test_maps_average_to_the_logits(classifier: Classifier) -> None:
    x = torch.from_numpy(pixels(3, *SIZE))
    maps = classifier.maps(x)
    assert maps.shape[:2] == (3, 5)
    torch.testing.assert_close(maps.mean((2, 3)), classifier.logits(x))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, *SIZE), "torch.float32"),
        (torch.zeros(SIZE, dtype=torch.uint8), r"\(3, 11, 13\)"),
        (pixels(2, *SIZE), "ndarray"),
        (torch.zeros(2, 1, 11, 13, dtype=torch.uint8), "Expected 3 channels, got 1"),
    ],
)
def test_logits_take_pixels_only(classifier: Classifier, given: Any, message: str) -> None:
    for compute in (classifier.logits, classifier.maps):
        with pytest.raises(UsageError, match=message):
            compute(given)


def test_repr_describes_the_classifier(classifier: Classifier) -> None:
    count = sum(p.numel() for p in classifier.model.parameters())
    expected = f"<Classifier 'nin_tiny': images 3x11x13, 5 classes (ant, bee, cat, ...), {count:,} parameters>"
    assert repr(classifier) == expected
    assert classifier.to("cpu") is classifier


def test_predictions_are_a_sequence(classifier: Classifier) -> None:
    found = classifier.predict(pixels(7, *SIZE))
    array = np.asarray(found)
    assert array.shape == (7, 5)
    assert array.dtype == np.float32
    assert np.asarray(found, dtype=np.float64).dtype == np.float64
    np.testing.assert_allclose(array.sum(1), 1, rtol=1e-5)
    assert len(found) == len(list(found)) == 7
    assert found.labels == tuple(CLASSES[k] for k in array.argmax(1)) == tuple(one.label for one in found)
    np.testing.assert_array_equal(found.confidences, array.max(1))
    one = found[-1]
    assert one.probabilities == dict(zip(CLASSES, array[6].tolist(), strict=True))
    assert one.confidence == max(one.probabilities.values()) == one.probabilities[one.label]
    assert one.top(2) == sorted(one.probabilities.items(), key=lambda pair: -pair[1])[:2]
    assert len(one.top(99)) == 5
    assert isinstance(found[2:5], Predictions)
    np.testing.assert_array_equal(found[2:5].probabilities, array[2:5])
    with pytest.raises(IndexError):
        found[7]


def test_predictions_refuse_different_counts() -> None:
    with pytest.raises(UsageError, match="2 images and 5 classes"):
        Predictions(np.zeros((3, 5), np.float32), CLASSES, ["a", "b"])
    with pytest.raises(UsageError, match="3 images and 5 classes"):
        Predictions(np.zeros((3, 4), np.float32), CLASSES)


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_on_error_skip_skips_unreadable_images(classifier: Classifier, tmp_path: Path, batch_size: int) -> None:
    good, bad, missing = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "missing.png"
    Image.fromarray(pixels(11, 13, 3)).save(good)
    bad.write_bytes(b"no image")
    found = classifier.predict([bad, good, missing, good], batch_size, on_error="skip")
    assert found.sources == (str(good), str(good))
    assert [str(error).split("'")[1] for error in found.skipped] == [str(bad), str(missing)]
    np.testing.assert_allclose(found.probabilities, classifier.predict([good, good]).probabilities, rtol=1e-5)
    nothing = classifier.predict([bad], on_error="skip")
    assert (len(nothing), nothing.probabilities.shape, len(nothing.skipped)) == (0, (0, 5), 1)
    with pytest.raises(ImageError):
        classifier.predict([good, bad])
    with pytest.raises(UsageError, match=r"on_error is 'ignore'; .*accepted: raise, skip\."):
        classifier.predict([good], on_error="ignore")  # type: ignore[arg-type]
