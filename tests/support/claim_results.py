"""Write results of claims with planted effects, as the runner writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mlpconv.claims.claim_files import ClaimFile
from mlpconv.claims.results import result_path

__all__ = ["write_result"]


def write_result(folder: Path, file: ClaimFile, data: str, effect: float, seeds: int = 12, spread: float = 0.2) -> None:
    """Write a result in which every treatment differs from its control by `effect`, with noise of `spread`."""
    rng = np.random.default_rng(5)
    claim = file.claim
    control = rng.normal(20, 1, seeds)
    treated = {comparison.treatment for comparison in claim.comparisons}
    factors = {comparison.treatment: comparison.factor for comparison in claim.comparisons}
    arms = {}
    for name in claim.arms:
        values = control * factors.get(name, 1.0) + (effect + rng.normal(0, spread, seeds) if name in treated else 0)
        metrics = {c.metric for c in claim.comparisons} | {c.control_metric for c in claim.comparisons} | {"error"}
        arms[name] = {
            "words": "3x3:8 1x1:K gap", "parameters": 100, "macs": 1000, "learning_rate": 0.06, "tuning": {},
            "values": {metric: values.tolist() for metric in metrics if metric},
        }  # fmt: skip
    path = result_path(folder, data, claim.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        "claim": claim.name, "hypothesis": file.hypothesis, "data": data, "budget": "a few images", "seeds": seeds,
        "measured_at": "2026-01-01T00:00:00Z", "environment": {}, "arms": arms, "cpu_seconds": 1.0,
    }))  # fmt: skip
