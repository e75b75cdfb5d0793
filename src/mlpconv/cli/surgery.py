"""The command `mlpconv surgery`: rewrite a network exactly, or factorize it and report the loss."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.factorize import FactorizeOptions
from mlpconv.cli.options import Switch, check_model_file, image_size, shipped_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mlpconv.inference import Classifier
    from mlpconv.surgery import Surgery

__all__ = ["surgery"]

OPERATIONS = ("convolutionalize", "deepen", "factorize", "fold", "pool_head")
OURS = ("deepen", "factorize", "fold")
"""Operations whose result is an architecture of this package, so that a model file can store it."""
OWNERS = {
    "--where": ("deepen", "factorize"),
    "--init": ("deepen",),
    "--input": ("convolutionalize", "deepen", "fold", "pool_head"),
    "--output": ("convolutionalize", "pool_head"),
}
"""The operations that accept an option; every other option belongs to factorize."""
MOST_IMAGES = 64


def surgery(
    operation: str,
    model: str,
    data: str | None = None,
    /,
    *,
    input: Annotated[str | None, Parameter(name=["--input", "-i", "--shape"])] = None,  # noqa: A002
    images: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    where: tuple[str, ...] = (),
    init: str | None = None,
    output: str | None = None,
    slim: FactorizeOptions | None = None,
    out: Path | None = None,
    json: Switch = False,
) -> None:
    """Rewrite a network without changing its outputs, and report the comparison and the cost before and after.

    - convolutionalize: replace a fully connected head by convolutions; larger images give a map of logits.
    - pool_head: move the classifier before the global average pool, which gives exact class activation maps (CAM).
    - fold: fold batch norm into convolutions and linear layers.
    - deepen: insert a 1x1 convolution after --where that starts as the identity.
    - factorize: replace layers by low-rank factors for fewer multiply-adds, which changes the outputs; report the loss.

    Parameters
    ----------
    operation
        convolutionalize, deepen, factorize, fold or pool_head.
    model
        A model file, a run folder, an architecture such as nin_cifar10, or a network of another library with random
        weights, such as torchvision:resnet50 or timm:convnext_tiny. factorize, --out and --images need a model file, a
        run folder or a shipped network.
    data
        For factorize: a data set such as digits, mnist or cifar10, or a folder, as for `mlpconv evaluate`.
    input
        Input shape as channels x rows x columns, such as 3x32x32. Default: the model's own.
    images
        Image files or folders to compare on in addition to random images (the first 64). Needs a model file. For
        factorize: unlabelled images instead of DATA.
    where
        For deepen: the module after which to insert a 1x1 convolution, such as blocks.0. For factorize: the layers to
        factorize, such as blocks.1.convs.0 (default: all). Can be repeated.
    init
        Initialisation of the 1x1 convolution of deepen: identity (default) or he.
    output
        For convolutionalize and pool_head: the key, attribute name or index of the logits in a network that returns
        several tensors, such as logits or 1. Default: inferred, and named in the report.
    out
        Write the new network to this model file. For factorize, fold and deepen of a model file.
    json
        Print the report as a JSON object.
    """
    size = image_size(input) if input is not None else None
    settings = slim or FactorizeOptions()
    values = {"--input": input, "DATA": data, "--where": where, "--init": init, "--output": output}
    _check_options(operation, [*(name for name, value in values.items() if value), *settings.given()])
    if operation == "factorize":
        _factorize(model, settings, data, images, where, out, json=json)
    else:
        options = _options(where, init, output)
        _rewrite(operation, model, size, images, options[operation], out, json=json)


def _factorize(
    model: str,
    settings: FactorizeOptions,
    data: str | None,
    images: tuple[str, ...],
    where: tuple[str, ...],
    out: Path | None,
    *,
    json: bool,
) -> None:
    """Run `factorize`, which needs trained weights and images."""
    from mlpconv.cli.factorize import check_factorizable, describe, factorize_model
    from mlpconv.files import json_bytes

    classifier = check_factorizable(model, settings, data, images, out)
    result, about = factorize_model(classifier, settings, data, images, where)
    if out is not None:
        _save(result, classifier, out)
    if json:
        sys.stdout.write(json_bytes(result.report.to_dict() | {"images": about}).decode())
    else:
        describe(result, about, [settings.plot, out])


def _rewrite(
    operation: str,
    model: str,
    size: tuple[int, int, int] | None,
    images: tuple[str, ...],
    options: dict[str, Any],
    out: Path | None,
    *,
    json: bool,
) -> None:
    """Run an operation that preserves the outputs."""
    from mlpconv import surgery
    from mlpconv.errors import UsageError
    from mlpconv.files import json_bytes
    from mlpconv.models.timm_network import TimmNetwork

    if out is not None:
        _check_out(operation, model, out)
    network, default_shape, classifier = _open(model, trained=out is not None or bool(images))
    if out is not None and classifier is None:
        raise _no_file(f"{model} has random weights and no classes")
    if out is not None and isinstance(network, TimmNetwork):
        raise UsageError(f"--out: no model file can hold a changed network of timm. {_in_python(operation, model)}")
    batch = _load_images(images, classifier)
    result: Surgery = getattr(surgery, operation)(network, input_shape=size or default_shape, images=batch, **options)
    if out is not None and classifier is not None:
        _save(result, classifier, out)
    if json:
        sys.stdout.write(json_bytes(result.report.to_dict()).decode())
        return
    print(result.report)
    if out is not None:
        print(f"Written: {out}")


def _open(model: str, *, trained: bool) -> tuple[nn.Module, tuple[int, int, int], Classifier | None]:
    """Return a network, (C, H, W) of its images, and the classifier of a model file or None.

    The name of an architecture means random weights unless the weights of the shipped network are needed, `trained`.
    """
    from mlpconv import inference
    from mlpconv.inference.open_network import open_with_classifier

    if not trained or model not in shipped_names():
        return open_with_classifier(model)
    classifier = inference.load(model)
    return classifier.model, classifier.input_size, classifier


def _check_options(operation: str, options: list[str]) -> None:
    """Raise UsageError for an unknown operation or an option of another operation."""
    from mlpconv.errors import UsageError, did_you_mean

    if operation not in OPERATIONS:
        raise UsageError(f"Unknown operation {operation!r}; {did_you_mean(operation, OPERATIONS)}")
    if operation == "deepen" and "--where" not in options:
        raise UsageError("deepen needs --where: the module after which to insert the 1x1, such as blocks.0.")
    for name in options:
        owners = OWNERS.get(name, ("factorize",))
        if operation not in owners:
            raise UsageError(f"{name} belongs to {' and '.join(owners)}; {operation} has no such option.")


def _check_out(operation: str, model: str, out: Path) -> None:
    from mlpconv.errors import UsageError

    check_model_file(model, out=out)
    if operation not in OURS:
        raise UsageError(
            f"--out cannot store the result of {operation}: model files hold built-in architectures only. "
            f"{_in_python(operation, model)}"
        )


def _in_python(operation: str, model: str) -> str:
    return f"In Python: mlpconv.surgery.{operation}(mlpconv.load({model!r}).model, input_shape).model"


def _no_file(why: str) -> Exception:
    from mlpconv.errors import UsageError

    return UsageError(f"--out writes a model file, but {why}. Pass a model file, or use mlpconv.surgery in Python.")


def _load_images(images: tuple[str, ...], classifier: Classifier | None) -> Tensor | None:
    """Return the preprocessed images (N, C, H, W); raise UsageError for a network without preprocessing."""
    from mlpconv.cli.paths import expand
    from mlpconv.errors import UsageError

    if not images:
        return None
    if classifier is None:
        raise UsageError("--images needs a model file: other networks do not store their preprocessing.")
    files = expand(images)[:MOST_IMAGES]
    prepared: Tensor = classifier.preprocessing(classifier.pixels([str(file) for file in files]))
    return prepared


def _options(where: tuple[str, ...], init: str | None, output: str | None) -> dict[str, dict[str, Any]]:
    """Return the keyword arguments of each operation."""
    head = {} if output is None else {"output": output}
    deepen = {"where": where} | ({} if init is None else {"init": init})
    return {"fold": {}, "deepen": deepen, "convolutionalize": head, "pool_head": head}


def _save(result: Surgery, classifier: Classifier, out: Path) -> None:
    """Write a model file with the original's classes and preprocessing, and record the operation in its info."""
    from mlpconv import modelfile
    from mlpconv.models.base import Network

    if not isinstance(result.model, Network):
        raise _no_file("the new network is not a built-in architecture")
    report = result.report.to_dict()
    entry = {key: report[key] for key in ("operation", "exact", "changed", "differences")}
    if not result.report.exact:
        entry["details"] = {key: value for key, value in report["details"].items() if key != "curve"}
    info = classifier.info | {"surgery": [*classifier.info.get("surgery", ()), entry]}
    info.pop("versions", None)  # saving adds the current versions
    modelfile.save(
        out,
        result.model,
        classifier.preprocessing,
        classes=classifier.classes,
        input_size=classifier.input_size,
        info=info,
    )
