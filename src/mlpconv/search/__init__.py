"""Search over recipe settings: an Optuna study that any number of processes share, and its Pareto front."""

from __future__ import annotations

from mlpconv.search.studies import Definition
from mlpconv.search.trials import Limits
from mlpconv.search.worker import SearchResult, run_search

__all__ = ["Definition", "Limits", "SearchResult", "run_search"]
