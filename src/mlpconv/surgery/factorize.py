"""Layers computed at a lower rank, through fewer channels between two 1x1s: another network, cheaper and measured.

By weights a layer keeps the directions in which its weight is largest. By activations it keeps those in which its
responses vary on data, which at the same rank loses far less (Zhang et al., arXiv 1505.06798); each layer is then
fitted, in order, to what it should have made, given what the changed layers before it make. The ranks of all layers
together are those that lose least for the budget.
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
from mlpconv.surgery.proof.accept import check_model, deep_copy
from mlpconv.surgery.proof.compare import compare
from mlpconv.surgery.report import Surgery, make_report

__all__ = ["factorize"]

WAYS = ("activations", "weights")
BUDGETS = ("macs", "error", "classes")
ENOUGH = 4
"""Places to have seen a layer at, for each of its output channels."""
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
    """The network with layers of lower rank, within a budget: cheaper, and by how much worse is in the report.

    `data` is images (N, C, H, W) as the network takes them, a pair of images and labels (N,), or an iterable of either,
    which is read once; hundreds do. Errors are measured on `held_out`, data of the same kind, or on every fourth image
    of `data`, which then is not fitted. `budget` is the share of all multiply-adds to keep (up to 1), or how many
    (of="macs"); the largest share of the outputs' variance that may be lost (of="error"); or by how much the
    classification error may rise (of="classes", with labels; 0.01 is a point). by="weights" needs no data for its
    factors, and is much worse. `layers` names those that may be changed; all convolutions and linear layers without
    groups, if None. `fine_tune` is a number of steps of Adam towards what the original says of the data, or a function
    that trains the network that it is given, in place.

    A Network In Network of ours stays one, which a model file can hold. In the report's details: the rank of each
    layer, `error` (share of variance lost; classification error with labels), `curve` (both ways at several budgets,
    before fitting), and `left_alone` with the reasons.
    Raises UsageError for settings and data that make no sense, SurgeryError for layers that cannot be changed and
    budgets that cannot be met.
    """
    model = check_model(model)
    _check(budget, of, by, fine_tune)
    work = RankSearch(model, as_batches(data), None if held_out is None else as_batches(held_out), by, layers)
    if of == "classes" and work.labels is None:
        raise UsageError("of='classes' needs labels: give pairs of images and labels, or use of='error'.")
    choice = work.within(budget) if of == "macs" else work.losing(budget, LOSSES[of])
    modules = work.factors(choice)
    changed = replace_layers(deep_copy(model), modules)
    set_ranks(changed, {name: (o.rank_in or 0, o.rank_out or 0) for name, o in work.picked(choice).items()})
    errors = {"before": work.errors(work.original), "after": work.errors(changed)}
    if fine_tune is not None:
        _tune(changed, work, fine_tune)
        errors = errors | {"before_tuning": errors["after"], "after": work.errors(changed)}
    proof = compare(model, changed, work.shape, work.held[0].images)
    names, notes = tuple(modules), _notes(work, choice, errors)
    details = {
        "by": by,
        "budget": {of: budget},
        "error": errors,
        "layers": work.describe(choice),
        "curve": work.curve() if curve else [],
        "left_alone": work.left,
    }
    made = (model, changed, work.shape, proof)
    return Surgery(changed, make_report("factorize", *made, names=names, exact=False, notes=notes, details=details))


def _check(budget: object, of: str, by: str, fine_tune: object) -> None:
    """UsageError for settings that make no sense."""
    for what, given, accepted_words in (("of", of, BUDGETS), ("by", by, WAYS)):
        if given not in accepted_words:
            raise UsageError(f"{what} is {given!r}; {did_you_mean(str(given), accepted_words)}")
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not number or not float(budget) > 0 or (of != "macs" and not float(budget) < 1):  # type: ignore[arg-type]
        limits = "a share between 0 and 1" if of != "macs" else "a share between 0 and 1, or a number of multiply-adds"
        raise UsageError(f"budget is {budget!r}; {limits} is accepted.")
    if not (fine_tune is None or callable(fine_tune) or (type(fine_tune) is int and fine_tune > 0)):
        raise UsageError(f"fine_tune is {fine_tune!r}; None, a number of steps, or a function of the network.")


def _tune(changed: nn.Module, work: RankSearch, fine_tune: Callable[[nn.Module], object] | int) -> None:
    if isinstance(fine_tune, int):
        distill(changed, work.original, work.fit, fine_tune)
        return
    modes = {module: module.training for module in changed.modules()}
    fine_tune(changed)
    for module, training in modes.items():
        module.training = training


def _notes(work: RankSearch, choice: Choice, errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What became of the error and the cost, in words."""
    kept = (work.fixed + choice.cost) / work.total
    lost = errors["after"]["output"]
    much = (
        f"{lost:.2%} of the outputs' variance lost"
        if lost <= 1
        else f"the outputs off by {lost:,.3g} times their variance"
    )
    notes = [f"{kept:.1%} of the multiply-adds, {much}."]
    few = [name for name in work.picked(choice) if work.rows(name) < ENOUGH * work.candidates[name].sizes[1]]
    if few and work.by == "activations":
        notes.append(
            f"{len(few)} layers were seen at too few places to know them well, {few[0]} first: give more images."
        )
    if not work.picked(choice):
        notes.append("No lower ranks keep to this budget of error: the network is as it was.")
    if "classes" in errors["after"]:
        distill = f"{errors['before_tuning']['classes']:.2%} after, " if "before_tuning" in errors else ""
        before, after = (f"{errors[when]['classes']:.2%}" for when in ("before", "after"))
        after = f"{distill}{after} after fine-tuning" if distill else f"{after} after"
        notes.append(f"Classification error on {len(work.wanted)} held-out images: {before} before, {after}.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in work.original.modules()):
        notes.append("Batch norms hide how much a response counts: fold them first, and the ranks will be better ones.")
    return notes
