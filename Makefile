# The commands of this project. Each one first installs what it needs into .venv; later calls reuse it.
#   make demo        train, evaluate, predict and draw category maps on the embedded digits, in one run folder
#   make test        the tests, without the slow ones        make test-slow   the slow tests
#   make coverage    the tests, with their line and branch coverage; fails below the floor in pyproject.toml
#   make lint        ruff and mypy                           make bench       the measurements behind the README
#   make attacks     hostile traffic against the server, at length, and against uvicorn and granian without our guard
#   make clean       remove the environment and all caches (never runs/)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Every pip below, including those that pip itself starts, installs the pinned versions.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow coverage lint bench attacks clean

demo: $(VENV)/.ready
	@$(BIN)/python examples/demo.py

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow

coverage: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term:skip-covered

lint: $(VENV)/.ready-dev
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

bench: $(VENV)/.ready-bench
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/memory.py digits

attacks: $(VENV)/.ready-dev
	$(BIN)/python -m pytest tests/attacks/test_http.py
	$(BIN)/python benchmarks/attacks.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks .coverage .coverage.*
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mlpconv needs Python 3.11 or newer; $(PYTHON) is older or missing. Name another: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing mlpconv into $(VENV) (once; torch is large)"
	@$(BIN)/python -m pip install --quiet --editable '.[train]'
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-dev
	@$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --editable '.[train,export,openvino,serve,dev]'
	@touch $@
