"""PyTorch's meta device in place of a GPU, and a record of what is copied to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["META", "Copies"]

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Record each copy to the device, and whether it is asynchronous."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[bool] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        onto = torch.device(kwargs.get("device") or "cpu")
        if func is torch.ops.aten._to_copy.default and onto == META and args[0].device != META:
            self.waiting.append(not kwargs.get("non_blocking"))
        return func(*args, **kwargs)
