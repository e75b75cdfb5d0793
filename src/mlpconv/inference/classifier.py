"""The classifier: a network with its preprocessing and class names; images in, predictions out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from mlpconv.errors import ImageError, ModelFileError, UsageError, did_you_mean
from mlpconv.inference.dispatch import Dispatcher, device_of, modules_of, state_of
from mlpconv.inference.pixels import as_pixels, batches, items
from mlpconv.modelfile import read
from mlpconv.modelfile.parts import Size, check_parts
from mlpconv.predictions import Predictions
from mlpconv.preprocessing import Preprocessing
from mlpconv.text import printable
from mlpconv.threads import one_thread, survive_fork

__all__ = ["Classifier", "load"]

PRECISIONS = ("auto", "fp32")
ON_ERROR = ("raise", "skip")
VALUES_AT_A_TIME = 1 << 22
"""Pixels of the images that are computed at a time on a CPU: 24 of 3 x 224 x 224, 1,360 of 3 x 32 x 32."""
MANY = 8
"""An engine has a graph for this many images, so parts are multiples of it."""

Precision = Literal["auto", "fp32"]
"""bfloat16 if it is clearly faster on this machine, or always float32."""
OnError = Literal["raise", "skip"]
"""Whether an unreadable image raises ImageError or is skipped."""


class Classifier:
    """A trained network, its fitted preprocessing and its class names: uint8 pixels in, probabilities out.

    The network is put into eval mode and channels-last layout, and always runs in eval mode without gradients. On a CPU
    a Network In Network with ReLUs, a SqueezeNet or an EfficientNet-Lite is compiled at the first call, and again when
    its weights change (changes through `tensor.data` are not detected). A classifier can be pickled and copied, without
    the compiled network. A child of `os.fork` after the first call uses one thread.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        input_size: Size,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Combine the parts; `input_size` is (C, H, W), `info` describes how the network was trained.

        Raises UsageError for incompatible parts.
        """
        self.classes = tuple(classes)
        self.input_size: Size = (input_size[0], input_size[1], input_size[2])
        self.model = check_parts(model, preprocessing, self.classes, self.input_size).eval()
        with one_thread():
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.preprocessing = preprocessing.eval()
        self.info: dict[str, Any] = dict(info or {})
        self.compiled = True
        """Whether the network is compiled at the first prediction, which takes as long as about 30 images."""
        self._dispatcher: Dispatcher | None = None

    @property
    def device(self) -> torch.device:
        """Return the device of the network."""
        return device_of(modules_of(self.model))

    def to(self, device: torch.device | str) -> Classifier:
        """Move the network and its preprocessing to a device; return the classifier."""
        self.model.to(device)
        self.preprocessing.to(device)
        return self

    def predict(
        self,
        images: object,
        batch_size: int = 128,
        *,
        tta_flip: bool = False,
        precision: Precision = "auto",
        on_error: OnError = "raise",
    ) -> Predictions:
        """Classify one or more images; return their classes and probabilities.

        `images` is one image or a sequence of them: paths, bytes of files, Pillow images, uint8 arrays (H, W) or
        (H, W, C); or a uint8 batch (N, C, H, W). Each is resized to `input_size`; `batch_size` are read at a time.
        `tta_flip` averages the logits of each image and its horizontal flip. `precision` "auto" uses bfloat16 if that
        is clearly faster on this machine (the class of nearly every image stays the same), "fp32" always float32. With
        `on_error` "skip", unreadable images have no row, and `.skipped` of the result holds their errors.
        Raises UsageError for an empty sequence or anything that is not an image, ImageError for an unreadable file.
        """
        if on_error not in ON_ERROR:
            raise UsageError(f"on_error is {on_error!r:.40}; {did_you_mean(str(on_error)[:40], ON_ERROR)}")
        if type(batch_size) is not int or batch_size < 1:
            raise UsageError(f"batch_size is {batch_size!r}; expected an integer of at least 1.")
        skipped: list[ImageError] = []
        rows: list[Tensor] = []
        sources: list[str | None] = []
        failed = skipped if on_error == "skip" else None
        for pixels, files in batches(images, self.input_size, batch_size, self.preprocessing.decode_options, failed):
            rows.append(self.probabilities(pixels, tta_flip=tta_flip, precision=precision))
            sources += files
        table = rows[0] if len(rows) == 1 else torch.cat([torch.empty(0, len(self.classes)), *rows])
        return Predictions(table.numpy(), self.classes, sources, skipped)

    def probabilities(self, pixels: Tensor, *, tta_flip: bool = False, precision: Precision = "fp32") -> Tensor:
        """Return probabilities (N, K) on the CPU of uint8 (N, C, H, W); raise ModelFileError for NaN or infinity."""
        logits = self.logits(pixels, tta_flip=tta_flip, precision=precision).float().cpu()
        if not np.isfinite(logits.numpy()).all():
            invalid = (~torch.isfinite(logits)).any(1).nonzero()
            raise ModelFileError(
                f"The network outputs NaN or infinity for {len(invalid)} of {len(logits)} images (the first has index "
                f"{int(invalid[0])}): its weights are too large. Retrain it, with a lower learning rate."
            )
        return logits.softmax(1)

    def pixels(self, images: object) -> Tensor:
        """Decode and resize images, as for `predict`; return uint8 (N, C, H, W) of `input_size`."""
        return as_pixels(items(images), self.input_size, self.preprocessing.decode_options)

    def logits(self, pixels: Tensor, *, tta_flip: bool = False, precision: Precision = "fp32") -> Tensor:
        """Return logits (N, K) of uint8 (N, C, H, W) on the network's device; raise UsageError for other tensors."""
        self._check(pixels)
        if precision not in PRECISIONS:
            raise UsageError(f"precision is {precision!r:.40}; {did_you_mean(str(precision)[:40], PRECISIONS)}")
        with self._inference_mode() as modules:
            parts = pixels.split(_at_a_time(pixels)) if device_of(modules).type == "cpu" else (pixels,)
            logits = [self._forward(self._preprocess(part, modules), precision, modules) for part in parts]
            if tta_flip:
                flipped = [self._forward(self._preprocess(part.flip(3), modules), precision, modules) for part in parts]
                logits = [(one + other) / 2 for one, other in zip(logits, flipped, strict=True)]
            return torch.cat(logits)

    def maps(self, pixels: Tensor) -> Tensor:
        """Return category maps (N, K, h, w), the exact class activation maps, of uint8 (N, C, H, W).

        Their spatial means are the logits. Raises UsageError for other tensors, and for a fully connected head.
        """
        self._check(pixels)
        with self._inference_mode() as modules:
            x = self._preprocess(pixels, modules).contiguous(memory_format=torch.channels_last)
            return self.model.category_maps(x)

    def _preprocess(self, pixels: Tensor, modules: list[nn.Module]) -> Tensor:
        return cast("Tensor", self.preprocessing(pixels.to(device_of(modules))))

    def _plain_forward(self, x: Tensor) -> Tensor:
        """Return the logits of preprocessed images by the plain network."""
        return cast("Tensor", self.model(x.contiguous(memory_format=torch.channels_last)))

    def _forward(self, x: Tensor, precision: Precision, modules: list[nn.Module]) -> Tensor:
        """Return the logits of preprocessed images, by an engine if there is one; `modules` are the network's."""
        supported = self.compiled and x.device.type == "cpu" and x.shape[0] and tuple(x.shape[1:]) == self.input_size
        state = state_of(modules) if supported else None
        if state is None:
            return self._plain_forward(x)
        if self._dispatcher is None or not self._dispatcher.fits(state):
            self._dispatcher = None  # free the old engines before building new ones
            self._dispatcher = Dispatcher.prepare(self.model, state, x)
        engine = self._dispatcher.choose(precision, x)
        return self._plain_forward(x) if engine is None else engine(x)

    @contextmanager
    def _inference_mode(self) -> Iterator[list[nn.Module]]:
        """Yield all modules in eval mode and without gradients; restore the training mode afterwards."""
        survive_fork()
        modules = modules_of(self.model)
        training = [module for module in modules if module.training]
        for module in training:
            module.training = False
        try:
            with torch.inference_mode():
                yield modules
        finally:
            for module in training:
                module.training = True

    def _check(self, pixels: Tensor) -> None:
        if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8 or pixels.dim() != 4:
            actual = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(pixels).__name__
            raise UsageError(f"Expected uint8 pixels (N, C, H, W), got {actual}: use .pixels(images).")
        if pixels.shape[1] != self.input_size[0]:
            channels = self.input_size[0]
            raise UsageError(f"Expected {channels} channels, got {pixels.shape[1]}: use .pixels(images).")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_dispatcher": None}

    def __repr__(self) -> str:
        shown = ", ".join(printable(name) for name in self.classes[:3]) + (", ..." if len(self.classes) > 3 else "")
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        name, size = self.model.config.name, "x".join(str(side) for side in self.input_size)
        return f"<Classifier {name!r}: images {size}, {len(self.classes)} classes ({shown}), {parameters:,} parameters>"


def _at_a_time(pixels: Tensor) -> int:
    """Return how many images (N, C, H, W) to compute at a time: the activations of many large ones are page faults."""
    count = max(1, VALUES_AT_A_TIME // max(1, pixels[:1].numel()))
    return count // MANY * MANY or count


def load(path_or_name: str | os.PathLike[str]) -> Classifier:
    """Load a classifier from a model file or a run folder, or a shipped one by its name, such as "squeezenet".

    The file is validated before memory is allocated or a network is built, and nothing in it can run. Raises
    ModelFileError for a file that is missing, damaged, hostile or not a model file.
    """
    return Classifier(*read(path_or_name))
