# `make demo` and `make test` work on a fresh machine with Python >= 3.11, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.DEFAULT_GOAL := check
.PHONY: check demo test quick lint fmt type oldest soak bench bench-fastai schema docs lock results clean

check: lint type quick

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'kbench needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: $(STAMP)  ## the whole job on the embedded competition
	$(BIN)/kbench demo

test: $(STAMP) lint type  ## all checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

quick: $(STAMP)  ## the fast tier
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP)
	$(BIN)/mypy

oldest:  ## the fast tier on the oldest versions pyproject.toml admits
	$(PYTHON) tools/oldest.py

soak: $(STAMP)  ## 30 runs killed at random moments, every resumed result identical
	$(BIN)/python benchmarks/soak.py --runs 30

bench: $(STAMP)
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_loader.py
	$(BIN)/python benchmarks/bench_startup.py
	$(BIN)/python benchmarks/bench_folds.py
	$(BIN)/python benchmarks/bench_ensemble.py

bench-fastai: $(STAMP)  ## against fastai, in an environment of its own
	test -x .venv-fastai/bin/python || $(BIN)/python benchmarks/bench_fastai.py --make-env
	$(BIN)/python benchmarks/bench_fastai.py

results: $(STAMP)  ## the scores of the README
	$(BIN)/python benchmarks/results.py

schema: $(STAMP)  ## competitions/schema.json, for editors
	$(BIN)/python -c "from kbench.commands.workspace import write_schema; from kbench.workspace import find_workspace; write_schema(find_workspace())"

docs: $(STAMP)  ## the notebook, executed
	$(BIN)/python docs/make_notebook.py

lock: $(STAMP)  ## requirements.lock from what is installed
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

clean:
	rm -rf $(VENV) .venv-oldest .venv-fastai build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
