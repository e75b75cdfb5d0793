"""Why a network cannot be traced, in words that are true of the network."""

from __future__ import annotations

from pathlib import Path
from traceback import extract_tb

import torch
from torch import Tensor, nn

from mlpconv.analysis.meta import batches_taken, failure_of
from mlpconv.errors import first_line

__all__ = ["failure_message", "reason_of", "refusal_message"]


def reason_of(error: Exception) -> str:
    """Why a step fails on tensors without storage."""
    text = first_line(error)
    if "Meta kernel" in text:
        return f"PyTorch has no rule for the shape of what {text.partition(': ')[0]} returns"
    if "meta" in text.lower() or "unallocated storage" in text:
        return f"it needs the numbers in a tensor: {text}"
    return text


def _what(shadow: nn.Module, image: Tensor) -> str:
    return f"{type(shadow).__name__}, on images of {'x'.join(map(str, image.shape[1:]))},"


def failure_message(shadow: nn.Module, image: Tensor, reason: str) -> str:
    """Say why a network does not take such images, and which batches it takes, if that is the reason."""
    return f"{_what(shadow, image)} cannot be followed: {reason}{batches_taken(shadow, image) or '.'}"


def refusal_message(shadow: nn.Module, image: Tensor, error: Exception) -> str:
    """Why there is no graph of a network: it does not take the images itself, or what it does cannot be traced."""
    failure = failure_of(shadow, image)
    if failure is not None:
        return failure_message(shadow, image, reason_of(failure))
    return (
        f"{_what(shadow, image)} cannot be traced{_line_of(error)}: {first_line(error)}. Accepted is a forward "
        "pass that takes the same steps for all images of one size."
    )


def _line_of(error: Exception) -> str:
    """The line of the network's own source that an error came from; empty where there is none."""
    ours = (*torch.__path__, str(Path(__file__).parents[1]), "<")
    lines = [each for each in extract_tb(error.__traceback__) if not each.filename.startswith(ours)]
    return f" (line {lines[-1].lineno} of {Path(lines[-1].filename).name})" if lines else ""
