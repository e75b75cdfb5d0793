"""Threads that decode change neither the images nor their order, nor which errors are raised."""

from __future__ import annotations

import io
import multiprocessing
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpconv.data.decode_threads import SMALL_BYTES, in_threads
from mlpconv.data.inputs import array_batches, image_items, read_pixels
from mlpconv.decode_options import DEFAULT_DECODING
from mlpconv.errors import ImageError

SIZE = (3, 37, 37)
LARGE = b"x" * SMALL_BYTES


def noise(seed: int, side: int = 67) -> bytes:
    """Return a PNG of noise, which is larger than SMALL_BYTES."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def thread_of(_: bytes) -> str:
    return threading.current_thread().name


def test_large_files_are_decoded_by_threads() -> None:
    assert all(name.startswith("decode") for name in in_threads(thread_of, [LARGE, LARGE], threads=2))


@pytest.mark.parametrize(
    "files", [[b"x", b"x", b"x"], [LARGE], [LARGE, b"x"]], ids=["small", "one", "small on average"]
)
def test_other_files_are_decoded_without_threads(files: list[bytes]) -> None:
    assert set(in_threads(thread_of, files, threads=2)) == {threading.current_thread().name}


def test_one_thread_is_the_callers() -> None:
    assert set(in_threads(thread_of, [LARGE, LARGE], threads=1)) == {threading.current_thread().name}


def test_images_come_in_order_and_equal_those_read_alone(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(11)]
    for number, file in enumerate(files):
        file.write_bytes(noise(number, side=67 if number % 2 else 131))  # the slow ones between the fast ones
    assert all(file.stat().st_size > SMALL_BYTES for file in files)
    [(pixels, sources)] = array_batches(image_items(files), SIZE, 64, DEFAULT_DECODING)
    np.testing.assert_array_equal(pixels, np.stack([read_pixels(file, SIZE, DEFAULT_DECODING) for file in files]))
    assert sources == [str(file) for file in files]


def test_the_first_unreadable_image_is_named_and_all_can_be_skipped() -> None:
    content = [noise(0), noise(1)[:-9999], noise(2), b"no image" + LARGE]
    with pytest.raises(ImageError, match="damaged"):
        list(array_batches(image_items(content), SIZE, 64, DEFAULT_DECODING))
    failed: list[ImageError] = []
    [(pixels, _)] = array_batches(image_items(content), SIZE, 64, DEFAULT_DECODING, failed)
    assert len(pixels) == 2
    assert ["damaged" in str(error) for error in failed] == [True, False]


def test_threads_warn_no_more_than_the_main_thread() -> None:
    def warn(content: bytes) -> int:
        warnings.warn("odd metadata", stacklevel=1)
        return len(content)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_threads(warn, [LARGE] * 5, threads=2) == [SMALL_BYTES] * 5


def test_a_forked_process_starts_its_own_threads() -> None:
    both = threading.Barrier(2)
    in_threads(lambda _: both.wait(), [LARGE, LARGE], threads=2)  # both threads exist
    child = multiprocessing.get_context("fork").Process(target=in_threads, args=(thread_of, [LARGE] * 3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns that a process with threads is forked
        child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0
