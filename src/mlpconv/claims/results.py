"""Read the results of claims, and decide: Holm's correction over all comparisons of a data set, then verdicts."""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mlpconv.claims.claim_files import ClaimFile
from mlpconv.claims.schema import BUDGETS, TITLES, Comparison
from mlpconv.claims.statistics import Evidence, holm, pairs_needed, summarize, verdict
from mlpconv.errors import DataError, UsageError
from mlpconv.text import shell_path
from mlpconv.training.environment import cpu_name, installed

__all__ = [
    "DAMAGES",
    "Finding",
    "Judged",
    "differences_of",
    "judge_all",
    "overall",
    "predictions_csv",
    "read_predictions",
    "read_result",
    "rerun",
    "result_header",
    "result_path",
]

DAMAGES = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged .npz file raises."""
LEAST_RUNS = 2  # a spread needs two
ORDER = ("refuted", "undecided", "indicated", "equivalent", "supported")
"""The verdict on a claim with several comparisons is the first of these that one of them has."""


def result_header(file: ClaimFile) -> dict[str, Any]:
    """Return what every result starts with: the claim, its hypothesis, the time and the environment."""
    return {
        "claim": file.claim.name,
        "hypothesis": file.hypothesis,
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "environment": {"cpu": cpu_name(), "torch": installed("torch"), "numpy": installed("numpy")},
    }


def result_path(folder: Path, data: str, name: str) -> Path:
    """Return the file of a result."""
    return folder / data / f"{name}.json"


@dataclass(frozen=True)
class Finding:
    """One comparison on one data set with its verdict."""

    comparison: Comparison
    data: str
    differences: tuple[float, ...]
    evidence: Evidence
    p_difference: float
    """After Holm's correction."""
    p_equivalence: float
    """After Holm's correction."""
    verdict: str
    needed: int
    """Paired runs that would decide, if mean and spread stay as they are."""

    @property
    def confirms(self) -> bool:
        """Whether the verdict is what the claim says."""
        return self.verdict == ("equivalent" if self.comparison.expect == "same" else "supported")


@dataclass(frozen=True)
class Judged:
    """Everything known about a claim."""

    file: ClaimFile
    exact: dict[str, Any] | None
    """The stored result of the checks."""
    results: dict[str, dict[str, Any]]
    """The stored result by data set."""
    findings: dict[str, tuple[Finding, ...]]
    folder: Path
    """Where the results are."""

    @property
    def proved(self) -> bool | None:
        """Whether every check stayed within its bound; None without a result."""
        if self.exact is None:
            return None
        return all(check["worst"] <= check["bound"] for check in self.exact["checks"])

    def is_stale(self, result: dict[str, Any]) -> bool:
        """Return whether the hypothesis has changed since a result."""
        return bool(result["hypothesis"] != self.file.hypothesis)


def overall(findings: Sequence[Finding]) -> str:
    """Return the verdict on a claim from those on its comparisons."""
    if all(finding.confirms for finding in findings):
        return "equivalent" if all(finding.comparison.expect == "same" for finding in findings) else "supported"
    open_ones = [finding.verdict for finding in findings if not finding.confirms]
    return min(open_ones, key=ORDER.index)


def judge_all(files: Sequence[ClaimFile], folder: Path) -> list[Judged]:
    """Read all results in a folder and return each claim with its verdicts; raise DataError for a damaged file.

    Holm's correction counts every comparison that the claims declare for a data set, measured or not: to look only at
    what has been run would make each verdict easier.
    """
    stored = {(file.claim.name, data): read_result(folder, data, file) for file in files for data in TITLES}
    findings: dict[tuple[str, str], tuple[Finding, ...]] = {}
    for data in BUDGETS:
        findings |= _judge_set(files, data, stored)
    return [
        Judged(
            file,
            stored[file.claim.name, "exact"],
            {data: result for data in BUDGETS if (result := stored[file.claim.name, data]) is not None},
            {data: findings[file.claim.name, data] for data in BUDGETS if (file.claim.name, data) in findings},
            folder,
        )
        for file in files
    ]


def _judge_set(
    files: Iterable[ClaimFile], data: str, stored: dict[tuple[str, str], dict[str, Any] | None]
) -> dict[tuple[str, str], tuple[Finding, ...]]:
    """Return the findings of all claims on one data set."""
    declared = [
        (file, comparison) for file in files if data in file.claim.data for comparison in file.claim.comparisons
    ]
    measured = {}
    for position, (file, comparison) in enumerate(declared):
        result = stored[file.claim.name, data]
        if result is not None:
            differences = differences_of(comparison, result)
            measured[position] = differences, summarize(differences, comparison.margin[data])
    p_difference, p_equivalence = np.ones(len(declared)), np.ones(len(declared))
    for position, (_, evidence) in measured.items():
        p_difference[position], p_equivalence[position] = evidence.p_difference, evidence.p_equivalence
    p_difference, p_equivalence = holm(p_difference), holm(p_equivalence)
    findings: dict[tuple[str, str], tuple[Finding, ...]] = {}
    for position, (differences, evidence) in measured.items():
        file, comparison = declared[position]
        p, q = float(p_difference[position]), float(p_equivalence[position])
        distance = max(abs(evidence.mean), comparison.margin[data] - abs(evidence.mean))
        needed = max(evidence.n + 1, pairs_needed(evidence.deviation, distance, len(declared)))
        finding = Finding(
            comparison, data, tuple(differences), evidence, p, q, verdict(evidence, comparison.expect, p, q), needed
        )
        key = file.claim.name, data
        findings[key] = (*findings.get(key, ()), finding)
    return findings


def differences_of(comparison: Comparison, result: dict[str, Any]) -> list[float]:
    """Return treatment minus factor times control for each seed of a stored result."""
    treatment = result["arms"][comparison.treatment]["values"][comparison.metric]
    control = result["arms"][comparison.control]["values"][comparison.control_metric or comparison.metric]
    return [float(a - comparison.factor * b) for a, b in zip(treatment, control, strict=True)]


def read_result(folder: Path, data: str, file: ClaimFile) -> dict[str, Any] | None:
    """Return the stored result of a claim, None if there is none; raise DataError if it is damaged."""
    path = result_path(folder, data, file.claim.name)
    try:
        result = json.loads(path.read_bytes())
        if data == "exact":
            _check_proof(result)
        else:
            _check_measurement(result, file)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{str(path)!r} is damaged, or of another version of the claim: `{rerun(folder, data, file)}` "
            "writes it again."
        ) from error
    return result if (result["checks"] if data == "exact" else file.claim.arms) else None


def rerun(folder: Path, data: str, file: ClaimFile, verb: str = "run") -> str:
    """Return the command that writes a result again, or, with the verb time, its times."""
    sets = "" if data == "exact" else f" --data {data}"
    return f"mlpconv claims {verb} {file.argument}{sets} --out {shell_path(folder)}"


def _check_proof(result: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless a stored result of checks has all that is read of it."""
    _check_kinds(str, [result["hypothesis"], *(check["statement"] for check in result["checks"])])
    _check_kinds(float, [check[key] for check in result["checks"] for key in ("cases", "worst", "bound")])


def _check_measurement(result: dict[str, Any], file: ClaimFile) -> None:
    """Raise ValueError, KeyError or TypeError unless a stored measurement has all that is read of it."""
    arms = result["arms"]
    used = {(arm, "error") for arm in (*arms, *file.claim.arms)}
    for comparison in file.claim.comparisons:
        used.add((comparison.treatment, comparison.metric))
        used.add((comparison.control, comparison.control_metric or comparison.metric))
    runs = [arms[arm]["values"][metric] for arm, metric in sorted(used)]
    if len({len(values) for values in runs}) > 1 or any(len(values) < LEAST_RUNS for values in runs):
        raise ValueError("the arms have different numbers of runs, or too few")
    _check_kinds(str, [result["hypothesis"], result["budget"], *(arm["words"] for arm in arms.values())])
    sizes = [arm[key] for arm in arms.values() for key in ("parameters", "macs", "learning_rate")]
    _check_kinds(float, [result["cpu_seconds"], *sizes, *(value for values in runs for value in values)])


def _check_kinds(kind: type[str | float], values: Iterable[object]) -> None:
    """Raise TypeError or ValueError unless all values are texts, or finite numbers."""
    for value in values:
        if not isinstance(value, str if kind is str else (int, float)):
            raise TypeError(f"{value!r:.40} is no {kind.__name__}")
        if isinstance(value, int | float) and not math.isfinite(value):
            raise ValueError(f"{value} is not finite")


def read_predictions(folder: Path, data: str, file: ClaimFile) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return labels (N,), arm names, and predicted classes (arms, seeds, N); raise UsageError if there are none."""
    name, command = file.claim.name, rerun(folder, data, file)
    path = result_path(folder, data, name).with_suffix(".npz")
    if not path.is_file():
        raise UsageError(f"There are no predictions of {name} on {data} in {str(folder)!r}: `{command}` makes them.")
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            labels, arms, predictions = stored["labels"], [str(arm) for arm in stored["arms"]], stored["predictions"]
        if predictions.ndim != 3 or (len(arms), *labels.shape) != predictions.shape[::2]:
            raise ValueError("the arrays have different lengths")
    except DAMAGES as error:
        raise DataError(f"{str(path)!r} is damaged: `{command}` writes it again.") from error
    return labels, arms, predictions


def predictions_csv(labels: np.ndarray, arms: Sequence[str], predictions: np.ndarray) -> bytes:
    """Return predictions (arms, seeds, N) as CSV with a row per prediction: arm, seed, image, label, prediction."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("arm", "seed", "image", "label", "prediction"))
    for arm, runs in zip(arms, predictions, strict=True):
        for seed, row in enumerate(runs, 1):
            writer.writerows((arm, seed, image, int(labels[image]), int(value)) for image, value in enumerate(row))
    return text.getvalue().encode()
