"""Run the chain of a network on a CPU as one oneDNN graph.

PyTorch calls oneDNN for one operator at a time: each call reorders the weights, looks up its kernel, and reads and
writes every activation again for ReLU. A graph of fixed shapes does all that once. It is reached through TorchScript,
which PyTorch has deprecated without a replacement; if that fails, the folded layers run without it. The outputs are
those of the plain network up to rounding.

`torch.jit.trace` and `freeze` store their results, weights included, in a registry of the process and never free them.
Here a graph is a function in its own compilation unit, which is freed with the engine.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mlpconv.inference.layer_chain import Forward, LayerChain

__all__ = ["Engine", "close", "supported"]

WORKING_SET = 30 << 20  # bytes of the largest activation: glibc keeps smaller blocks, and a large cache holds them
BATCH_SIZES = (32, 8, 1)  # of the graphs: every batch is split into these
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # difference of outputs, relative to the largest output
TRACING = threading.Lock()  # enabling oneDNN graphs is a process-wide setting


class Engine:
    """The chain of a network in one dtype: map preprocessed float32 (N, C, H, W) of its size to the head's output."""

    def __init__(self, chain: LayerChain, dtype: torch.dtype) -> None:
        self.chain, self.dtype = chain, dtype
        self.network = copy.deepcopy(chain.layers).to(dtype)
        self.graphs: dict[int, Forward] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output of the head, in batches whose activations stay small; for use without gradients."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)  # faster than a single call of to()
        maps = [self.graph(batch)(batch) for batch in self.split(x)]
        return self.chain.head((maps[0] if len(maps) == 1 else torch.cat(maps)).float())

    def split(self, x: Tensor) -> Iterator[Tensor]:
        """Split a batch into as few batches as possible of the sizes that graphs accept."""
        start, end = 0, x.shape[0]
        while start < end:
            left = end - start
            count = next(count for count in BATCH_SIZES if count == 1 or (count <= left and self.fits(count)))
            yield x if count == end else x[start : start + count]
            start += count

    def fits(self, count: int) -> bool:
        """Return whether the activations of `count` images stay within the working set."""
        return count * self.chain.largest * self.dtype.itemsize <= WORKING_SET

    def graph(self, x: Tensor) -> Forward:
        """Return the graph for the batch size of `x`; it is compiled and compared with the layers once."""
        count = x.shape[0]
        if count not in self.graphs:
            self.graphs[count] = graph_of(self.network, x)
        return self.graphs[count]


def graph_of(network: nn.Module, x: Tensor) -> Forward:
    """Compile a network as one oneDNN graph for the shape of `x`; return the network itself if that fails."""
    with TRACING, torch.no_grad():
        before = torch.jit.onednn_fusion_enabled()
        torch.jit.enable_onednn_fusion(True)
        try:
            traced, _ = torch._C._create_graph_by_tracing(network, (x,), lambda _: "", True, False)
            graph: Forward = torch._C._create_function_from_graph("forward", traced)
            graph(x)  # records the shapes; the next run compiles the kernels
            return graph if close(graph(x), network(x), x.dtype) else network
        except (RuntimeError, AttributeError, TypeError):  # the last two: another signature of the tracer
            return network
        finally:
            torch.jit.enable_onednn_fusion(before)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether two outputs agree within the tolerance of a dtype."""
    largest = expected.abs().max().clamp_min(1e-6)
    return bool((actual - expected).abs().max() <= TOLERANCE[dtype] * largest)


def supported() -> bool:
    """Return whether this build of torch has oneDNN and its graphs."""
    available = bool(torch.backends.mkldnn.is_available())
    return available and hasattr(torch.jit, "enable_onednn_fusion")
