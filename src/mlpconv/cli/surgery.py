"""`mlpconv surgery`: another network that computes the same, and the proof; or a cheaper one, and what it loses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mlpconv.cli.factorize import FactorizeOptions
from mlpconv.cli.options import Switch, check_can_be_written, image_size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mlpconv.inference import Classifier
    from mlpconv.surgery import Surgery

__all__ = ["surgery"]

OPERATIONS = ("convolutionalize", "deepen", "factorize", "fold", "pool_head")
OURS = ("deepen", "factorize", "fold")
"""Those that make one of our networks of one of our networks, so that a model file can hold it."""
OWNERS = {
    "--where": ("deepen", "factorize"),
    "--init": ("deepen",),
    "--input": ("convolutionalize", "deepen", "fold", "pool_head"),
    "--output": ("convolutionalize", "pool_head"),
}
"""The operations that an option is for, where it is not for factorize alone."""
MOST_IMAGES = 64


def surgery(
    operation: str,
    model: str,
    data: str | None = None,
    /,
    *,
    input: Annotated[str | None, Parameter(name=["--input", "-i", "--shape"])] = None,  # noqa: A002
    images: tuple[str, ...] = (),
    where: tuple[str, ...] = (),
    init: str | None = None,
    output: str | None = None,
    slim: FactorizeOptions | None = None,
    out: Path | None = None,
    json: Switch = False,
) -> None:
    """Change a network without changing what it computes, and show the proof and what it costs before and after.

    convolutionalize: fully connected heads become convolutions, and larger images give maps of logits. pool_head: pool
    and linear layer become 1x1 and pool, which gives exact category maps. fold: batch norms become a part of
    convolutions. deepen: one more 1x1 at --where, ready for training. factorize: another, cheaper network of lower
    ranks, and how much worse it is.

    Parameters
    ----------
    operation
        convolutionalize, deepen, factorize, fold or pool_head.
    model
        A model file, a run folder, an architecture such as nin_cifar10, or another library's: torchvision:resnet50,
        timm:convnext_tiny (with random weights). For factorize a model file, a run folder or shipped weights.
    data
        For factorize: digits, mnist, cifar10 or another named data set, or a folder, as for `mlpconv evaluate`.
    input
        Channels, rows and columns of an image, as in 3x32x32; the model's own size if not given.
    images
        Image files or folders to compare on, beside random images; the first 64. For model files. For factorize:
        in the place of DATA, without labels.
    where
        Modules behind which `deepen` adds a 1x1, such as blocks.0; layers that `factorize` may change (all, if not
        given), such as blocks.1.convs.0. May be given several times.
    init
        How `deepen` starts its 1x1: identity (the default) or he.
    output
        The logits of a network that returns several tensors, for `convolutionalize` and `pool_head`: a key, a name or
        a place, such as logits or 1. Without it they are inferred, and the report names them.
    out
        Write the new network to this model file; for `factorize`, `fold` and `deepen` of model files.
    json
        Print the report as one JSON object, for machines.
    """
    size = image_size(input) if input is not None else None
    asked = slim or FactorizeOptions()
    own = {"--input": input, "DATA": data, "--where": where, "--init": init, "--output": output}
    given = own | dict.fromkeys(asked.given(), True)
    _check(operation, [name for name, value in given.items() if value])
    if operation == "factorize":
        _slim(model, asked, data, images, where, out, json=json)
    else:
        options = _options(where, init, output)
        _rewrite(operation, model, size, images, options[operation], out, json=json)


def _slim(
    model: str,
    asked: FactorizeOptions,
    data: str | None,
    images: tuple[str, ...],
    where: tuple[str, ...],
    out: Path | None,
    *,
    json: bool,
) -> None:
    """`factorize`, which needs trained weights and images."""
    from mlpconv.cli.factorize import check_factorizable, describe, factorize_model
    from mlpconv.files import json_bytes

    classifier = check_factorizable(model, asked, data, images, out)
    result, about = factorize_model(classifier, asked, data, images, where)
    if out is not None:
        _save(result, classifier, out)
    if json:
        sys.stdout.write(json_bytes(result.report.to_dict() | {"images": about}).decode())
    else:
        describe(result, about, [asked.plot, out])


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
    """An operation after which the network computes the same."""
    from mlpconv.files import json_bytes
    from mlpconv.inference.open_network import open_with_classifier

    if out is not None:
        _check_out(operation, model, out)
    network, usual, classifier = open_with_classifier(model)
    if out is not None and classifier is None:
        raise _no_file(f"{model} has random weights and no classes")
    shape = size or usual
    result = _operate(operation, network, shape, _read(images, classifier), options)
    if out is not None and classifier is not None:
        _save(result, classifier, out)
    if json:
        sys.stdout.write(json_bytes(result.report.to_dict()).decode())
        return
    print(result.report)
    if out is not None:
        print(f"Written: {out}")


def _check(operation: str, given: list[str]) -> None:
    """Refuse an unknown operation, and options of another one."""
    from mlpconv.errors import UsageError, did_you_mean

    if operation not in OPERATIONS:
        raise UsageError(f"There is no operation {operation!r}; {did_you_mean(operation, OPERATIONS)}")
    if operation == "deepen" and "--where" not in given:
        raise UsageError("deepen needs --where: the module behind which the 1x1 stands, such as blocks.0.")
    for name in given:
        owners = OWNERS.get(name, ("factorize",))
        if operation not in owners:
            raise UsageError(f"{name} belongs to {' and '.join(owners)}; {operation} has no such option.")


def _check_out(operation: str, model: str, out: Path) -> None:
    from mlpconv.errors import UsageError

    check_can_be_written(out=out)
    if operation not in OURS:
        raise UsageError(
            f"A model file cannot hold what {operation} makes, a network of no architecture of ours. In Python: "
            f"mlpconv.surgery.{operation}(mlpconv.load({model!r}).model, input_shape).model"
        )


def _no_file(why: str) -> Exception:
    from mlpconv.errors import UsageError

    return UsageError(f"--out writes a model file, and {why}: give a model file, or use mlpconv.surgery in Python.")


def _read(images: tuple[str, ...], classifier: Classifier | None) -> Tensor | None:
    """The images as the network takes them; UsageError where it does not say how that is."""
    from mlpconv.cli.paths import expand
    from mlpconv.errors import UsageError

    if not images:
        return None
    if classifier is None:
        raise UsageError("--images needs a model file: other networks do not say how pixels are prepared for them.")
    files = expand(images)[:MOST_IMAGES]
    prepared: Tensor = classifier.preprocessing(classifier.pixels([str(file) for file in files]))
    return prepared


def _options(where: tuple[str, ...], init: str | None, output: str | None) -> dict[str, dict[str, Any]]:
    """The keyword arguments of each operation that have an option of their own."""
    head = {} if output is None else {"output": output}
    deepening = {"where": where} | ({} if init is None else {"init": init})
    return {"fold": {}, "deepen": deepening, "convolutionalize": head, "pool_head": head}


def _operate(
    operation: str,
    network: nn.Module,
    shape: tuple[int, int, int],
    images: Tensor | None,
    options: dict[str, Any],
) -> Surgery:
    from mlpconv import surgery

    function: Any = getattr(surgery, operation)
    made: Surgery = function(network, input_shape=shape, images=images, **options)
    return made


def _save(result: Surgery, classifier: Classifier, out: Path) -> None:
    """A model file with the classes and the preprocessing of the old one, and what was done in its info."""
    from mlpconv import modelfile
    from mlpconv.models.base import Network

    if not isinstance(result.model, Network):
        raise _no_file("this network is no architecture of ours any more")
    report = result.report.to_dict()
    done = {key: report[key] for key in ("operation", "exact", "changed", "differences")}
    if not result.report.exact:
        done["details"] = {key: value for key, value in report["details"].items() if key != "curve"}
    info = classifier.info | {"surgery": [*classifier.info.get("surgery", ()), done]}
    info.pop("versions", None)  # those of this writing are put there
    modelfile.save(
        out,
        result.model,
        classifier.preprocessing,
        classes=classifier.classes,
        input_size=classifier.input_size,
        info=info,
    )
