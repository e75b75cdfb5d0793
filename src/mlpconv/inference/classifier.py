"""A network with everything around it: images in, class names and probabilities out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from mlpconv.errors import ImageError, ModelFileError, UsageError, did_you_mean
from mlpconv.inference.dispatch import Dispatcher, modules_of, state_of
from mlpconv.inference.pixels import as_pixels, batches, items
from mlpconv.inference.predictions import Predictions
from mlpconv.modelfile import read
from mlpconv.modelfile.parts import Size, check_parts
from mlpconv.preprocessing import Preprocessing
from mlpconv.text import printable
from mlpconv.threads import one_thread, survive_fork

__all__ = ["Classifier", "load"]

PRECISIONS = ("auto", "fp32")
ON_ERROR = ("raise", "skip")

Precision = Literal["auto", "fp32"]
"""bfloat16 where that is clearly the faster here, or always float32."""
OnError = Literal["raise", "skip"]
"""Whether an image that cannot be read ends a prediction, or is left out of it."""


class Classifier:
    """A trained network, its fitted preprocessing and its class names: uint8 pixels in, probabilities out.

    It puts the network into eval mode and channels-last layout, and always computes in eval mode, without gradients.
    On a CPU a Network In Network of ReLUs is rearranged for speed at the first call, and again after its weights were
    changed; a change through `tensor.data` is not seen. It can be pickled and copied; what was rearranged stays behind.
    After its first call a child of `os.fork` computes with one thread.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        input_size: Size,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """`input_size` is (C, H, W); `info` says how the network was made.

        Raises UsageError for parts that do not fit.
        """
        self.classes = tuple(classes)
        self.input_size: Size = (input_size[0], input_size[1], input_size[2])
        self.model = check_parts(model, preprocessing, self.classes, self.input_size).eval()
        with one_thread():
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.preprocessing = preprocessing.eval()
        self.info: dict[str, Any] = dict(info or {})
        self._fast: Dispatcher | None = None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def to(self, device: torch.device | str) -> Classifier:
        """Move the network and its preprocessing; returns itself."""
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
        """What is in each image: paths, Pillow images, uint8 arrays (H, W) or (H, W, C), or a batch (N, C, H, W).

        One image or any sequence of them, read `batch_size` at a time; each is resized to `input_size`. `tta_flip`
        averages the logits of the image and its mirror image. With `precision` "auto" it computes in bfloat16 where
        that is clearly faster here (the best class of nearly every image stays the same), with "fp32" never.
        With `on_error` "skip" an image that cannot be read has no row, and `.skipped` of the result has its error.
        Raises UsageError for what is no image and for none, ImageError for a file that cannot be read.
        """
        if on_error not in ON_ERROR:
            raise UsageError(f"on_error is {on_error!r:.40}; {did_you_mean(str(on_error)[:40], ON_ERROR)}")
        if type(batch_size) is not int or batch_size < 1:
            raise UsageError(f"batch_size is {batch_size!r}; a whole number from 1 is accepted.")
        skipped: list[ImageError] = []
        rows, sources = [torch.empty(0, len(self.classes))], []
        failed = skipped if on_error == "skip" else None
        for pixels, files in batches(images, self.input_size, batch_size, self.preprocessing.decode_options, failed):
            rows.append(self.probabilities(pixels, tta_flip=tta_flip, precision=precision))
            sources += files
        return Predictions(torch.cat(rows).numpy(), self.classes, sources, skipped)

    def probabilities(self, pixels: Tensor, *, tta_flip: bool = False, precision: Precision = "fp32") -> Tensor:
        """uint8 (N, C, H, W) -> probabilities (N, K), on the CPU; raises ModelFileError where they are not numbers."""
        logits = self.logits(pixels, tta_flip=tta_flip, precision=precision).float().cpu()
        if not np.isfinite(logits.numpy()).all():
            wrong = (~torch.isfinite(logits)).any(1).nonzero()
            raise ModelFileError(
                f"The network gives NaN or infinity for {len(wrong)} of {len(logits)} images (the first is number "
                f"{int(wrong[0])}): its weights are too large to compute with. Train it anew."
            )
        return logits.softmax(1)

    def pixels(self, images: object) -> Tensor:
        """Images, as for `predict`, decoded and resized: uint8 (N, C, H, W) of `input_size`."""
        return as_pixels(items(images), self.input_size, self.preprocessing.decode_options)

    def logits(self, pixels: Tensor, *, tta_flip: bool = False, precision: Precision = "fp32") -> Tensor:
        """uint8 (N, C, H, W) -> logits (N, K) on the network's device; raises UsageError for other tensors."""
        self._check(pixels)
        if precision not in PRECISIONS:
            raise UsageError(f"precision is {precision!r:.40}; {did_you_mean(str(precision)[:40], PRECISIONS)}")
        with self._computing() as modules:
            logits = self._look(self._prepared(pixels), precision, modules)
            if tta_flip:
                logits = (logits + self._look(self._prepared(pixels.flip(3)), precision, modules)) / 2
            return logits

    def maps(self, pixels: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> category maps (N, K, h, w), whose spatial mean is the logits.

        Raises UsageError for other tensors and for networks with a fully connected head.
        """
        self._check(pixels)
        with self._computing():
            x = self._prepared(pixels).contiguous(memory_format=torch.channels_last)
            return self.model.category_maps(x)

    def _prepared(self, pixels: Tensor) -> Tensor:
        return cast("Tensor", self.preprocessing(pixels.to(self.device)))

    def _plain(self, x: Tensor) -> Tensor:
        """Logits of preprocessed images, by the network as it is."""
        return cast("Tensor", self.model(x.contiguous(memory_format=torch.channels_last)))

    def _look(self, x: Tensor, precision: Precision, modules: list[nn.Module]) -> Tensor:
        """Logits of preprocessed images, by the fastest way there is for a network of these modules."""
        usual = x.device.type == "cpu" and len(x) and tuple(x.shape[1:]) == self.input_size
        state = state_of(modules) if usual else None
        if state is None:
            return self._plain(x)
        if self._fast is None or not self._fast.fits(state):
            self._fast = None  # the old engines go before there are new ones
            self._fast = Dispatcher.prepare(self.model, state, x)
        engine = self._fast.choose(precision, x)
        return self._plain(x) if engine is None else engine(x)

    @contextmanager
    def _computing(self) -> Iterator[list[nn.Module]]:
        """Eval mode and no gradients for all modules; those that were training do so again afterwards."""
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
            given = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(pixels).__name__
            raise UsageError(f"Pixels were given as {given}; uint8 (N, C, H, W) is accepted: use .pixels(images).")
        if pixels.shape[1] != self.input_size[0]:
            given = f"{pixels.shape[1]} channels were given, {self.input_size[0]} are accepted"
            raise UsageError(f"Images of {given}: use .pixels(images).")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fast": None}

    def __repr__(self) -> str:
        shown = ", ".join(printable(name) for name in self.classes[:3]) + (", ..." if len(self.classes) > 3 else "")
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        name, size = self.model.config.name, "x".join(str(side) for side in self.input_size)
        return f"<Classifier {name!r}: images {size}, {len(self.classes)} classes ({shown}), {parameters:,} parameters>"


def load(path_or_name: str | os.PathLike[str]) -> Classifier:
    """Load the classifier in a model file or a run folder, or one that ships with the package, by its name.

    Everything is checked before memory is taken or a network is built, and nothing in the file can run. Raises
    ModelFileError for a file that is missing, damaged, hostile or not ours.
    """
    return Classifier(*read(path_or_name))
