"""The same weights in other inference engines, ONNX Runtime and OpenVINO, from an ONNX graph."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

__all__ = ["Engine", "exported", "graph", "onnxruntime_engine", "openvino_engine"]

Engine = Callable[[np.ndarray], np.ndarray]
"""float32 (N, 3, H, W), preprocessed -> logits (N, K)."""

IR, OPSET = 10, 21  # of 2024: recent releases of both engines read them


def graph(model: nn.Sequential, batch: int, side: int) -> bytes:
    """Return an ONNX file of a sequence of convolutions, ReLUs, max-pools and a global mean, for one input shape."""
    nodes, weights, value = [], [], "images"
    for number, layer in enumerate(model):
        output = f"value{number}"
        if isinstance(layer, nn.Conv2d):
            names = [f"weight{number}", f"bias{number}"]
            arrays = [parameter.detach().numpy() for parameter in layer.parameters()]  # weight, then bias
            weights += [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)]
            pads = [*layer.padding, *layer.padding]
            nodes.append(helper.make_node("Conv", [value, *names], [output], pads=pads, strides=layer.stride))
        elif isinstance(layer, nn.ReLU):
            nodes.append(helper.make_node("Relu", [value], [output]))
        elif isinstance(layer, nn.MaxPool2d):
            size, strides = [layer.kernel_size] * 2, [layer.stride] * 2
            pool = helper.make_node("MaxPool", [value], [output], kernel_shape=size, strides=strides, ceil_mode=1)
            nodes.append(pool)
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            nodes.append(helper.make_node("GlobalAveragePool", [value], [output]))
        elif isinstance(layer, nn.Flatten):
            nodes.append(helper.make_node("Flatten", [value], [output]))
        else:
            continue  # dropout does nothing at inference
        value = output
    classes = [layer for layer in model if isinstance(layer, nn.Conv2d)][-1].out_channels
    inputs = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, side, side])
    outputs = helper.make_tensor_value_info(value, TensorProto.FLOAT, [batch, classes])
    network = helper.make_graph(nodes, "nin_cifar10", [inputs], [outputs], weights)
    proto = helper.make_model(network, ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def exported(model: nn.Module, batch: int, side: int) -> bytes:
    """Return an ONNX file of any network, by PyTorch's exporter, for one input shape."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = (torch.zeros(batch, 3, side, side),)
    program: Any = torch.onnx.export(
        model, example, dynamo=True, external_data=False, input_names=["images"], opset_version=OPSET, verbose=False
    )
    stream = io.BytesIO()
    program.save(stream, external_data=False)
    return stream.getvalue()


def onnxruntime_engine(model: bytes, threads: int) -> Engine:
    """Return ONNX Runtime on the CPU with all graph optimisations, in float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def openvino_engine(model: bytes, threads: int, precision: str) -> Engine:
    """Return OpenVINO on the CPU with all threads on one batch; `precision` is "f32" or "bf16", not its own choice."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(openvino.Core().read_model(model), "CPU", settings).create_infer_request()

    def run(images: np.ndarray) -> np.ndarray:
        return next(iter(request.infer([images], share_inputs=True, share_outputs=True).values()))

    return run
