"""Trace calls that PyTorch hides from tracers: autograd functions and checkpointed or compiled functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch.autograd import Function
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from mlpconv.analysis.meta import replaced
from mlpconv.surgery.tracing.proxy import ShapedProxy

__all__ = ["hidden_calls_traced"]

GENERATOR = "_checkpoint_without_reentrant_generator"


@dataclass(frozen=True)
class FunctionCall:
    """A call of an autograd.Function as one step of a graph, with the function's own gradient."""

    function: type[Function]

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the function."""
        return self.function.apply(*args, **kwargs)


@contextmanager
def hidden_calls_traced() -> Iterator[None]:
    """Record an autograd.Function as one step, and checkpointed or compiled functions as the steps inside them.

    Calls without proxies, such as those of other threads, are unaffected.
    """
    with ExitStack() as stack:
        apply = vars(Function)["apply"].__func__
        stack.enter_context(replaced(Function, "apply", classmethod(_applied(apply))))
        if hasattr(checkpoint, GENERATOR):
            plain = _without_checkpoint(getattr(checkpoint, GENERATOR))
            stack.enter_context(replaced(checkpoint, GENERATOR, plain))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(sys.modules["torch._dynamo"].config.patch(error_on_nested_fx_trace=False))
        yield


def _first_proxy(*values: Any) -> ShapedProxy | None:
    """Return the first proxy among these values."""
    return next((leaf for leaf in tree_leaves(values) if issubclass(type(leaf), ShapedProxy)), None)


def _applied(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `Function.apply` that records calls with proxies."""

    def applied(function: type[Function], *args: Any, **kwargs: Any) -> Any:
        proxy = _first_proxy(args, kwargs)
        if proxy is None:
            return apply(function, *args, **kwargs)
        if function is checkpoint.CheckpointFunction:
            inside, _, *inputs = args
            return inside(*inputs)
        return proxy.tracer.create_proxy("call_function", FunctionCall(function), args, kwargs)

    return applied


def _without_checkpoint(generator: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
    """Return the generator around a checkpointed call, which does nothing for proxies."""

    def checkpoint_context(*args: Any, **kwargs: Any) -> Iterator[None]:
        if _first_proxy(args, kwargs) is None:
            yield from generator(*args, **kwargs)
        else:
            yield

    return checkpoint_context
