"""What a trained network has seen besides the data of its last training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["pretrained_on", "timm_info"]

IMAGENET = "ImageNet"
IMAGENET_DATA = "imagenet-1k"
"""The data set that the shipped ImageNet networks name."""
IMAGENET_TAG = re.compile(r"(^|_)in\d+k(_|$)")
"""timm's tag of published weights names their data, as in a1_in1k or in12k_ft_in1k."""


def pretrained_on(info: Mapping[str, Any]) -> str | None:
    """Return "ImageNet" if a network, the weights it started from or its teacher saw it, by what its file says.

    `info` is that of a classifier. None: its file says nothing of it.
    """
    its_teacher = info.get("teacher")
    seen = [info.get("pretrained_on"), its_teacher.get("pretrained_on") if isinstance(its_teacher, dict) else None]
    return IMAGENET if IMAGENET in seen or info.get("data") == IMAGENET_DATA else None


def timm_info(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the info of a network of timm with its published weights, from timm's description of them."""
    return {"pretrained_on": IMAGENET} if IMAGENET_TAG.search(str(described.get("tag"))) else {}
