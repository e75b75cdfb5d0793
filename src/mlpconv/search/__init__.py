"""Search over recipe settings: an Optuna study that any number of processes share, and its Pareto front."""

from __future__ import annotations

from mlpconv.search.searching import SearchResult, run_search
from mlpconv.search.studies import Definition
from mlpconv.search.trials import CostLimits

__all__ = ["CostLimits", "Definition", "SearchResult", "run_search"]
