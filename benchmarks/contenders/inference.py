"""Inference with the same weights: plain and compiled torch, mlpconv as users call it, and other engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mlpconv
from contenders import PAPERS, Settings
from contenders.images import images
from contenders.port import network
from contenders.rounds import Rounds
from mlpconv.inference.dispatch import trim_memory
from mlpconv.inference.engine import Engine
from mlpconv.inference.layer_chain import chain_of
from mlpconv.models.base import Network
from mlpconv.preprocessing import Preprocessing

__all__ = ["compiled", "eager", "engine", "model", "onnx", "openvino", "predict"]

Predict = Callable[[], Any]
"""Compute one batch, from images in memory to logits or predictions."""
Make = Callable[[int], Predict]


def eager(rounds: Rounds, settings: Settings, *, memory: bool) -> None:
    """Run NCHW in fp32, as ports do; `memory` applies our malloc settings."""
    floats, plain = begin(rounds, settings, memory=memory), port(settings.network)
    measure(rounds, settings, lambda batch: torched(plain, floats(batch)))


def compiled(rounds: Rounds, settings: Settings, *, precision: str) -> None:
    """Run torch.compile, channels-last."""
    floats, plain = begin(rounds, settings), channels_last(port(settings.network))
    whole = torch.compile(plain, dynamic=False)
    measure(
        rounds,
        settings,
        lambda batch: torched(whole, floats(batch).contiguous(memory_format=torch.channels_last), precision),
    )


def model(rounds: Rounds, settings: Settings, *, precision: str) -> None:
    """Run our network module alone, channels-last."""
    floats, own = begin(rounds, settings), channels_last(ours(settings.network))
    measure(
        rounds,
        settings,
        lambda batch: torched(own, floats(batch).contiguous(memory_format=torch.channels_last), precision),
    )


def engine(rounds: Rounds, settings: Settings, *, precision: str) -> None:
    """Run the engine of `Classifier.predict` from preprocessed floats to logits, as the other engines do."""
    floats, own = begin(rounds, settings), ours(settings.network)
    chain = chain_of(own, (settings.side, settings.side))
    assert chain is not None, "the networks of this benchmark have an engine"
    whole = Engine(chain, torch.bfloat16 if precision == "bf16" else torch.float32)
    measure(rounds, settings, lambda batch: torched(whole, floats(batch)))


def predict(rounds: Rounds, settings: Settings, *, memory: bool) -> None:
    """Run `Classifier.predict`, from raw pixels to class names and probabilities."""
    begin(rounds, settings, memory=memory)
    own, size = ours(settings.network), (3, settings.side, settings.side)
    classes = [str(k) for k in range(own.num_classes)]
    classifier = mlpconv.Classifier(own, preprocessing(settings), classes, size)

    def make(batch: int) -> Predict:
        pixels = raw(settings.side, batch)
        image = pixels if batch > 1 else pixels[0].transpose(1, 2, 0)
        return lambda: classifier.predict(image, batch_size=batch).probabilities

    measure(rounds, settings, make, probabilities=True)


def onnx(rounds: Rounds, settings: Settings) -> None:
    """Run ONNX Runtime in fp32."""
    from contenders.engines import onnxruntime_engine

    floats, threads = begin(rounds, settings), torch.get_num_threads()

    def make(batch: int) -> Predict:
        engine, batch_array = onnxruntime_engine(onnx_file(settings, batch), threads), floats(batch).numpy()
        return lambda: engine(batch_array)

    measure(rounds, settings, make)


def openvino(rounds: Rounds, settings: Settings, *, precision: str) -> None:
    """Run OpenVINO in fp32 or bf16."""
    from contenders.engines import openvino_engine

    floats = begin(rounds, settings)
    threads, kind = torch.get_num_threads(), {"fp32": "f32"}.get(precision, precision)

    def make(batch: int) -> Predict:
        engine, batch_array = openvino_engine(onnx_file(settings, batch), threads, kind), floats(batch).numpy()
        return lambda: engine(batch_array)

    measure(rounds, settings, make)


def begin(rounds: Rounds, settings: Settings, *, memory: bool = True) -> Callable[[int], Tensor]:
    """Apply the common memory and thread settings; return a function from a batch size to a preprocessed batch."""
    if memory:
        from mlpconv.training.memory import keep_freed_memory

        rounds.facts["memory"] = keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.network != PAPERS:
        rounds.rest = trim_memory  # a batch of large images takes gigabytes, in each of the processes
    rounds.facts["threads"] = torch.get_num_threads()
    chain = preprocessing(settings)
    return lambda batch: chain(raw(settings.side, batch)).contiguous()


def raw(side: int, batch: int) -> np.ndarray:
    return images(batch, side)[0]


def preprocessing(settings: Settings) -> Preprocessing:
    """Return the preprocessing of the paper's network for these images, or that of another network."""
    size = (settings.side, settings.side)
    if settings.network == PAPERS:
        return Preprocessing.create(["standardize"], 3, size).fit(raw(settings.side, 256))
    own = mlpconv.load(settings.network).preprocessing
    chain = Preprocessing.create(own.names, 3, size)
    chain.load_state_dict(own.state_dict())
    return chain.eval()


def ours(name: str = PAPERS) -> Network:
    """Return the network of all contenders: the paper's with fixed weights, or a shipped one."""
    if name != PAPERS:
        return mlpconv.load(name).model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]
    torch.manual_seed(0)
    return mlpconv.create_model("nin_cifar10", init="he").eval()


def channels_last(network: nn.Module) -> nn.Module:
    """Return the network with its weights in the channels-last memory format."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def port(name: str = PAPERS) -> nn.Module:
    """Return the network of the ports with the same weights; of other networks, ours in NCHW."""
    if name != PAPERS:
        return ours(name)
    plain = network().eval()
    own_layers = [layer for layer in ours().modules() if isinstance(layer, nn.Conv2d)]
    port_layers = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
    for target, source in zip(port_layers, own_layers, strict=True):
        target.load_state_dict(source.state_dict())
    return plain


def onnx_file(settings: Settings, batch: int) -> bytes:
    """Return the network as an ONNX file: handwritten for the paper's, exported for others."""
    from contenders.engines import exported, graph

    plain = port(settings.network)
    if isinstance(plain, nn.Sequential):
        return graph(plain, batch, settings.side)
    return exported(plain, batch, settings.side)


def torched(function: Callable[[Tensor], Tensor], images: Tensor, precision: str = "fp32") -> Predict:
    """Return a function that runs a torch module on a batch, without gradients."""

    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return function(images)

    return run


def measure(rounds: Rounds, settings: Settings, make: Make, *, probabilities: bool = False) -> None:
    """Run the requested batch sizes forever, after comparing the outputs with plain torch."""
    predict: dict[int, Predict] = {}
    for batch in settings.batches:
        predict[batch] = make(batch)
        output = torch.as_tensor(predict[batch]()).float()
        with torch.inference_mode():
            expected = port(settings.network)(preprocessing(settings)(raw(settings.side, batch)))
            expected = expected.softmax(1) if probabilities else expected
        difference = float((output - expected).abs().max() / expected.abs().max())
        rounds.facts["difference"] = max(difference, rounds.facts.get("difference", 0.0))
    while True:
        batch = rounds.asked.get("batch", settings.batches[0])
        predict[batch]()
        rounds.lap(batch)
