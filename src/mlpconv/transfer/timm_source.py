"""Networks of timm as sources, with weights from a file or from the hub."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from torch import Tensor

from mlpconv.errors import DownloadError, ModelFileError, UsageError, first_line
from mlpconv.inference import Classifier
from mlpconv.models.external import create_external
from mlpconv.models.timm_network import TimmConfig, TimmNetwork, check_linear_head
from mlpconv.preprocessing import Preprocessing
from mlpconv.text import option
from mlpconv.transfer.lineage import timm_info

__all__ = ["open_timm"]

HUB, FILE = "huggingface.co", "model.safetensors"
MAX_BYTES = 4 << 30
TIMEOUT = 10.0  # seconds
PICKLES = (".pth", ".pt", ".bin", ".pkl", ".ckpt")


def open_timm(name: str, weights: str | None) -> Classifier:
    """Return a network of timm, named timm:NAME or timm:NAME.TAG, with the weights of a file or those of the hub.

    It has timm's normalisation and input size; its classes are numbered. Raises UsageError for an unknown name or a
    network without a linear head, ModelFileError for unusable weights, DownloadError if the hub cannot be reached.
    """
    described: dict[str, Any] = cast("Any", create_external(name)[0]).pretrained_cfg  # the name is known from here on
    architecture = name.partition(":")[2].partition(".")[0]
    tensors = _read(Path(weights)) if weights is not None else _from_hub(name, described.get("hf_hub_id"))
    channels, rows, columns = described.get("input_size", (3, 224, 224))
    classifier = f"{described.get('classifier')}.weight"
    classes = len(tensors[classifier]) if classifier in tensors else 0
    if not classes:
        raise ModelFileError(f"The weights have no tensor {classifier!r}: they are not those of {name}.")
    network = TimmNetwork(TimmConfig(f"timm:{architecture}", classes, channels, (rows, columns)))
    _fill(network, tensors, name)
    check_linear_head(network)
    preprocessing = Preprocessing.create(("standardize",), channels, (rows, columns))
    state = preprocessing.state_dict()
    for key, values in (("steps.0.mean", described.get("mean")), ("steps.0.deviation", described.get("std"))):
        state[key] = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).expand(channels, 1, 1).clone()
    preprocessing.load_state_dict(state)
    names, info = [str(number) for number in range(classes)], {} if weights is not None else timm_info(described)
    return Classifier(network, preprocessing, names, (channels, rows, columns), info)


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    if path.suffix in PICKLES:
        raise UsageError(
            f"{path} looks like a pickle, which can run any program when it is read. If you trust it, open it with "
            "timm.create_model(NAME, checkpoint_path=...), and write the network's state_dict() with "
            "safetensors.torch.save_file."
        )
    try:
        if not path.is_file():
            raise UsageError(f"There is no file {str(path)!r}: give the safetensors file of the weights.")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES >> 30} GiB: give the safetensors file of the weights.")
        return parse_tensors(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged, or not a safetensors file ({first_line(error)}).") from error


def _from_hub(name: str, hub_id: str | None) -> dict[str, Tensor]:
    """Return the tensors of a network of the hub, from its cache on this machine if they are there."""
    advice = f"connect to {HUB}, or download {FILE} of {hub_id} elsewhere and pass it, {option('weights', 'FILE')}"
    if hub_id is None:
        raise UsageError(f"timm publishes no weights of {name} on the hub: pass a file, {option('weights', 'FILE')}.")
    hub = import_module("huggingface_hub")  # a dependency of timm
    cached = hub.try_to_load_from_cache(hub_id, FILE)
    try:
        if not isinstance(cached, str):
            hub.model_info(hub_id, timeout=TIMEOUT)  # fails at once offline, where a download is tried for a minute
            cached = hub.hf_hub_download(hub_id, FILE)
    except Exception as error:  # of any of the libraries below the hub's client
        raise DownloadError(f"The weights of {name} cannot be downloaded ({first_line(error)}): {advice}.") from error
    return _read(Path(cached))


def _fill(network: TimmNetwork, tensors: dict[str, Tensor], name: str) -> None:
    """Copy the tensors into a network; raise ModelFileError for other names or shapes."""
    own = network.network.state_dict()
    odd = sorted({*own} ^ {*tensors}) or sorted(key for key in own if own[key].shape != tensors[key].shape)
    if odd:
        raise ModelFileError(
            f"The weights are not those of {name}: {odd[0]!r} and {len(odd) - 1} other tensors differ."
        )
    network.network.load_state_dict(tensors)
