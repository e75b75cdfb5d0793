"""What an exported file says about itself: classes, input size, decoding, and how the export was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mlpconv.decode_options import DecodeOptions
from mlpconv.errors import ExportError, UsageError

__all__ = ["KEY", "VARIANTS", "Metadata"]

KEY = "mlpconv"
FORMAT, VERSION = "mlpconv export", 1
VARIANTS = ("onnx", "onnx-int8", "openvino", "openvino-int8")
MAX_JSON = 8 << 20
MAX_SIDE, MAX_CLASSES = 4096, 16384
NEWER = "has format version {}; this mlpconv reads up to {}: install a newer mlpconv."


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported file. Raises ExportError for values of the wrong kind."""

    name: str
    """The network's name."""
    variant: str
    """onnx, onnx-int8, openvino or openvino-int8."""
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    """(C, H, W) of the images that the network was trained on; images are resized to it."""
    outputs: tuple[str, ...]
    """The outputs of the graph: probabilities, logits, and maps unless the head is fully connected."""
    min_size: int
    """Smallest height and width that the graph accepts."""
    any_size: bool
    """Whether the graph accepts images larger or smaller than `input_size`."""
    decode_options: DecodeOptions = field(default_factory=DecodeOptions)
    preprocessing: tuple[str, ...] = ()
    """The steps that the graph applies to the pixels."""
    checks: dict[str, Any] = field(default_factory=dict)
    """How the outputs compare with those of torch."""
    info: dict[str, Any] = field(default_factory=dict)
    """How the network was trained."""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ExportError(f"names the variant {self.variant!r:.40}; known: {', '.join(VARIANTS)}.")
        if not 0 < len(self.classes) <= MAX_CLASSES or not all(isinstance(name, str) for name in self.classes):
            raise ExportError("has no valid list of class names.")
        sides = (*self.input_size, self.min_size)
        if len(self.input_size) != 3 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
            raise ExportError("has no valid input size.")
        if self.input_size[0] not in (1, 3):
            raise ExportError(f"expects images of {self.input_size[0]} channels; 1 (grey) and 3 (RGB) can be decoded.")
        if not {"probabilities", "logits"} <= set(self.outputs):
            raise ExportError("does not output probabilities and logits.")

    @property
    def has_maps(self) -> bool:
        """Return whether the graph outputs category maps."""
        return "maps" in self.outputs

    def to_json(self, digest: str) -> str:
        """Return the metadata and a digest of the rest of the file as JSON."""
        values = asdict(self) | {"decode_options": self.decode_options.to_dict()}
        document = {"format": FORMAT, "version": VERSION, "sha256": digest, **values}
        return json.dumps(document, allow_nan=False, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> tuple[Metadata, str]:
        """Return the metadata and the digest; raise ExportError for anything else."""
        if len(text) > MAX_JSON:
            raise ExportError(f"has {len(text):,} bytes of metadata; accepted: {MAX_JSON:,}.")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise ExportError("has metadata that are not JSON.") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ExportError("has metadata of another program.")
        if document.get("version") != VERSION:
            raise ExportError(NEWER.format(str(document.get("version"))[:20], VERSION))
        try:
            return cls._from_document(document), str(document["sha256"])
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise ExportError(f"has incomplete metadata ({type(error).__name__}: {error!s:.80}).") from None

    @classmethod
    def _from_document(cls, document: Mapping[str, Any]) -> Metadata:
        values = {name: document[name] for name in cls.__dataclass_fields__}
        for name in ("classes", "input_size", "outputs", "preprocessing"):
            values[name] = tuple(values[name])
        values["decode_options"] = DecodeOptions.from_dict(values["decode_options"])
        return cls(**values)
