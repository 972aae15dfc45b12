# make demo   build the demo model, benchmark it, show the table
# make test   everything that is checked before a change goes in
# make fuzz   feed mutated files to all that reads them, for FUZZ_SECONDS (600)
# make docs   write the pages, tables and pictures that are made from the code
# make site   build the documentation as a site, into site/
# make bench  measure speed beside mergekit, write docs/performance.md (an hour, 60 GB of disk)
VENV := .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
CORES ?= all
FUZZ_SECONDS ?= 600
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help env env-test demo test test-all fuzz lint format demo-models bench docs site clean

help:
	@grep -E '^# make' Makefile | cut -c3-

env: $(VENV)/.installed
env-test: $(VENV)/.installed-test

$(VENV)/.installed: requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is not Python 3.11, the one version that the pinned packages are tested with."; \
	  echo "  Install it, or name it: make $(or $(MAKECMDGOALS),env) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing the environment into $(VENV) (once, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first: an index that has a CPU build is then not asked for another.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt
	@echo "Installing what the tests need ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

LOGGER := PYTHONPATH=plugins snakemake --logger shardmerge

demo: env
	@echo "Merging the demo models (three tiny Llamas) and benchmarking them ..."
	@$(LOGGER) --cores $(CORES) --quiet host
	@snakemake --cores 1 --quiet all --report results/report.html
	@echo
	@cat results/miquplus-midnight-tiny/benchmarks/table.md
	@echo
	@echo "model:  results/miquplus-midnight-tiny/model"
	@echo "report: results/report.html"

lint: env-test
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	PYTHONPATH=scripts lint-imports --no-cache --no-logo
	snakemake --lint

format: env-test
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

test: lint
	pytest -m "not slow and not browser and not gpu and not slurm" -n 2 --dist worksteal tests

test-all: lint
	pytest -m "not gpu and not slurm" -n 2 --dist worksteal tests
	pytest -m slurm tests

fuzz: env-test
	PYTHONPATH=scripts:tests python -m fuzz --seconds $(FUZZ_SECONDS)

demo-models: env
	python -m tools.demo --output $(or $(OUTPUT),demo-models)

docs: env
	python -m tools.docs

site: env-test
	NO_MKDOCS_2_WARNING=1 mkdocs build

bench: env-test
	python -m tools.bench

clean:
	rm -rf results logs benchmarks site .shardmerge .snakemake
