# The commands of this project; each one first makes what it needs, and a second call costs nothing.
#   make demo        train, judge, predict and draw on the embedded digits, in one run folder
#   make test        the suite without the slow tests        make test-slow   the slow ones
#   make lint        ruff and mypy                           make bench       the measurements behind the README
#   make clean       remove the environment and all caches (never your runs/)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Every pip below this line, also the ones that pip itself starts, keeps to the pinned versions.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/.ready
	@$(BIN)/python examples/demo.py

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.ready-dev
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

bench: $(VENV)/.ready-bench
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/memory.py digits

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks .coverage
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mlpconv needs Python 3.11 or newer, and $(PYTHON) is not: name one that is, like make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing mlpconv into $(VENV) (once; torch is large)"
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-dev
	@$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
