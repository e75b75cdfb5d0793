"""Names of operations that several tables share: rules of receptive fields, costs, and kinds of nodes in a graph."""

from __future__ import annotations

__all__ = ["ACTIVATIONS", "ARITHMETIC", "COPIES"]

ACTIVATIONS = frozenset({
    "celu", "clamp", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6",
    "selu", "sigmoid", "silu", "softplus", "tanh", "threshold",
})  # fmt: skip
"""Elementwise activations with the same name in ATen, torch.nn.functional and (in lower case) torch.nn."""
ARITHMETIC = frozenset({"add", "maximum", "minimum", "mul", "sub"})
"""Elementwise operations on two tensors."""
COPIES = frozenset({
    "_reshape_alias", "_unsafe_view", "clone", "constant_pad_nd", "flip", "index", "native_channel_shuffle",
    "pixel_shuffle", "pixel_unshuffle", "repeat", "roll",
})  # fmt: skip
"""ATen operations besides views that rearrange elements and cost no arithmetic."""
