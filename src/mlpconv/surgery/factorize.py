"""Low-rank factorization: replace convolutions and linear layers by cheaper ones, and measure the error.

With by="weights" a layer keeps the directions in which its weight is largest; with by="activations" those in which its
outputs vary on calibration data, which at the same rank loses far less (Zhang et al., arXiv 1505.06798). Each layer is
then fitted, in order, to the original layer's output, given the outputs of the factorized layers before it. The ranks
of all layers are chosen together, for the least error within the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from mlpconv.errors import UsageError, did_you_mean
from mlpconv.models.reconfigure import set_ranks
from mlpconv.surgery.lowrank.allocate import Choice
from mlpconv.surgery.lowrank.batches import as_batches
from mlpconv.surgery.lowrank.distill import distill
from mlpconv.surgery.lowrank.rank_search import RankSearch, replace_layers
from mlpconv.surgery.proof.compare import compare
from mlpconv.surgery.report import Surgery, make_report
from mlpconv.surgery.tracing.accept import check_model, deep_copy

__all__ = ["factorize"]

WAYS = ("activations", "weights")
BUDGETS = ("macs", "error", "classes")
MIN_SAMPLES = 4
"""Sampled positions per output channel that activation statistics need."""
LOSSES = {"error": "output", "classes": "classes"}


def factorize(
    model: nn.Module,
    data: Any,
    budget: float = 0.5,
    *,
    of: str = "macs",
    by: str = "activations",
    held_out: Any = None,
    layers: Sequence[str] | None = None,
    fine_tune: Callable[[nn.Module], object] | int | None = None,
    curve: bool = True,
) -> Surgery:
    """Factorize layers at lower ranks within a budget of multiply-adds or error.

    `data` is the calibration data: preprocessed images (N, C, H, W), a pair of images and labels (N,), or an iterable
    of either, which is read once; a few hundred images suffice. Errors are measured on `held_out`, data of the same
    kind; by default on every fourth image of `data`, which is then held out of calibration.

    `budget` is the fraction (up to 1) or number of multiply-adds to keep (of="macs"), the largest fraction of the
    outputs' variance that may be lost (of="error"), or the largest increase of the classification error rate
    (of="classes", needs labels; 0.01 is one percentage point). by="activations" chooses directions by activation
    statistics; by="weights" uses the weights alone and is much worse. `layers` names the layers that may change; by
    default all convolutions without groups and all linear layers. `fine_tune` is a number of Adam steps of distillation
    from the original, or a function that trains the network in place. `curve` measures both kinds of directions at
    several budgets, before fitting.

    A Network In Network of this package keeps its class, and a model file can hold it. The report's details are the
    ranks of each layer (`layers`), `error` (fraction of the variance lost; error rate with labels), `curve`, and
    `left_alone`: the layers that cannot be factorized, with the reason.
    Raises UsageError for invalid settings and data, SurgeryError for layers that cannot be factorized and budgets that
    cannot be met.
    """
    model = check_model(model)
    _check(budget, of, by, fine_tune)
    search = RankSearch(model, as_batches(data), None if held_out is None else as_batches(held_out), by, layers)
    if of == "classes" and search.labels is None:
        raise UsageError("of='classes' needs labels: give pairs of images and labels, or use of='error'.")
    choice = search.within_macs(budget) if of == "macs" else search.within_error(budget, LOSSES[of])
    modules = search.factors(choice)
    factorized = replace_layers(deep_copy(model), modules)
    set_ranks(factorized, {name: (o.rank_in or 0, o.rank_out or 0) for name, o in search.changed(choice).items()})
    errors = {"before": search.errors(search.original), "after": search.errors(factorized)}
    if fine_tune is not None:
        _fine_tune(factorized, search, fine_tune)
        errors = errors | {"before_tuning": errors["after"], "after": search.errors(factorized)}
    proof = compare(model, factorized, search.shape, search.held_out[0].images)
    names, notes = tuple(modules), _notes(search, choice, errors)
    details = {
        "by": by,
        "budget": {of: budget},
        "error": errors,
        "layers": search.describe(choice),
        "curve": search.curve() if curve else [],
        "left_alone": search.left_alone,
    }
    measured = (model, factorized, search.shape, proof)
    report = make_report("factorize", *measured, names=names, exact=False, notes=notes, details=details)
    return Surgery(factorized, report)


def _check(budget: object, of: str, by: str, fine_tune: object) -> None:
    """Raise UsageError for invalid settings."""
    for option, value, accepted in (("of", of, BUDGETS), ("by", by, WAYS)):
        if value not in accepted:
            raise UsageError(f"{option} is {value!r}; {did_you_mean(str(value), accepted)}")
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not number or not float(budget) > 0 or (of != "macs" and not float(budget) < 1):  # type: ignore[arg-type]
        limits = "a fraction between 0 and 1" + (", or a number of multiply-adds" if of == "macs" else "")
        raise UsageError(f"budget is {budget!r}; {limits} is accepted.")
    if not (fine_tune is None or callable(fine_tune) or (type(fine_tune) is int and fine_tune > 0)):
        raise UsageError(
            f"fine_tune is {fine_tune!r}; None, a number of steps, or a function of the network is accepted."
        )


def _fine_tune(factorized: nn.Module, search: RankSearch, fine_tune: Callable[[nn.Module], object] | int) -> None:
    if isinstance(fine_tune, int):
        distill(factorized, search.original, search.calibration, fine_tune)
        return
    modes = {module: module.training for module in factorized.modules()}
    fine_tune(factorized)
    for module, training in modes.items():
        module.training = training


def _notes(search: RankSearch, choice: Choice, errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Say what became of the cost and the error."""
    kept = (search.fixed + choice.cost) / search.total
    lost = errors["after"]["output"]
    loss = f"{lost:.2%} of" if lost <= 1 else f"{lost:,.3g} times"
    notes = [f"{kept:.1%} of the multiply-adds kept, {loss} the outputs' variance lost."]
    names = search.changed(choice)
    few = [name for name in names if search.samples(name) < MIN_SAMPLES * search.candidates[name].sizes[1]]
    if few and search.by == "activations":
        notes.append(f"Too few images for reliable activation statistics of {len(few)} layers ({few[0]} first).")
    if not names:
        notes.append("No lower ranks are within this error budget: the network is unchanged.")
    if "classes" in errors["after"]:
        untuned = f"{errors['before_tuning']['classes']:.2%} after, " if "before_tuning" in errors else ""
        before, after = (f"{errors[when]['classes']:.2%}" for when in ("before", "after"))
        after = f"{untuned}{after} after fine-tuning" if untuned else f"{after} after"
        notes.append(f"Classification error on {len(search.outputs)} held-out images: {before} before, {after}.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in search.original.modules()):
        notes.append("Batch norm hides the scale of the channels: fold it first for better ranks.")
    return notes
