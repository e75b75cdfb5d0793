"""Explain why a network cannot be traced."""

from __future__ import annotations

from pathlib import Path
from traceback import extract_tb

import torch
from torch import Tensor, nn

from mlpconv.analysis.meta import batches_taken, failure_of
from mlpconv.errors import first_line

__all__ = ["failure_message", "reason_of", "refusal_message"]


def reason_of(error: Exception) -> str:
    """Return why a step fails on meta tensors."""
    text = first_line(error)
    if "Meta kernel" in text:
        return f"PyTorch has no shape rule for {text.partition(': ')[0]}"
    if "meta" in text.lower() or "unallocated storage" in text:
        return f"it depends on the values in a tensor: {text}"
    return text


def _network_and_size(shadow: nn.Module, image: Tensor) -> str:
    return f"{type(shadow).__name__}, on images of {'x'.join(map(str, image.shape[1:]))},"


def failure_message(shadow: nn.Module, image: Tensor, reason: str) -> str:
    """Return the message for a network that rejects such images, with the batch sizes that it accepts, if any."""
    return f"{_network_and_size(shadow, image)} fails: {reason}{batches_taken(shadow, image) or '.'}"


def refusal_message(shadow: nn.Module, image: Tensor, error: Exception) -> str:
    """Return the message for a network that cannot be traced: it rejects the images, or a step is untraceable."""
    failure = failure_of(shadow, image)
    if failure is not None:
        return failure_message(shadow, image, reason_of(failure))
    return (
        f"{_network_and_size(shadow, image)} cannot be traced{_line_of(error)}: {first_line(error)}. Its forward pass "
        "must take the same steps for all images of one size."
    )


def _line_of(error: Exception) -> str:
    """Return the line of the network's source that raised an error; empty if there is none."""
    ours = (*torch.__path__, str(Path(__file__).parents[1]), "<")
    lines = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f" (line {lines[-1].lineno} of {Path(lines[-1].filename).name})" if lines else ""
