# make demo         build the demo model, benchmark it, show the table
# make demo-sweep   try nine weights of a merge of the demo models, show which is best
# make demo-search  search for a better gradient of the demo merge (40 trials)
# make env          install all that shardmerge runs with into .venv, and the command `shardmerge`
# make env-merge    of that only what most merges need (no torch, no benchmarks)
# make env-torch    the same, and torch for what is not native code
# make env-gguf     what exports to GGUF need besides (docs/howto/export.md)
# make env-compressed   what exports to compressed safetensors need besides (docs/howto/compressed.md)
# make env-sign     what signing models and checking signatures needs (docs/howto/publish.md)
# make env-slurm    what submitting jobs to SLURM needs; the others install it where they find `sbatch`
# make env-test     all, and what the tests need
# make test         everything that is checked before a change goes in
# make test-all     the slow tests too
# make lint         only the linters
# make format       put the code into its form
# make docs         write the pages, tables and pictures that are made from the code
# make site         build the documentation as a site, into site/
# make demo-models  train the demo models again
# make fuzz         feed mutated files to all that reads them, for FUZZ_SECONDS (600)
# make bench        measure speed beside mergekit, write docs/performance.md (an hour, 60 GB of disk)
# make bench METHODS=all    the same for each merge method beside mergekit-yaml, as a table
# make clean        delete results, logs and caches
VENV := .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
CORES ?= all
FUZZ_SECONDS ?= 600
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help env env-merge env-torch env-gguf env-compressed env-sign env-slurm env-test demo demo-sweep demo-search test test-all fuzz lint format demo-models bench docs site clean

help:
	@grep -E '^# make' Makefile | cut -c3-

env: $(VENV)/.installed
env-merge: $(VENV)/.installed-merge
env-torch: $(VENV)/.installed-torch
env-gguf: $(VENV)/.installed-gguf
env-compressed: $(VENV)/.installed-compressed
env-sign: $(VENV)/.installed-sign
env-slurm: $(VENV)/.installed-slurm
env-test: $(VENV)/.installed-test

$(VENV)/.installed-merge: requirements-merge.txt requirements-slurm.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is not Python 3.11, the one version that the pinned packages are tested with."; \
	  echo "  Install it, or name it: make $(or $(MAKECMDGOALS),env) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing what merging needs into $(VENV) (once, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements-merge.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@! command -v sbatch > /dev/null || $(PIP) -r requirements-slurm.txt
	@touch $@

$(VENV)/.installed-torch: $(VENV)/.installed-merge requirements-torch.txt
	@echo "Installing torch, for what is not native code ..."
	@$(PIP) -r requirements-torch.txt
	@touch $@

# After torch: an index that has a CPU build is then not asked for another.
$(VENV)/.installed: $(VENV)/.installed-torch requirements-bench.txt
	@echo "Installing what benchmarks need ..."
	@$(PIP) -r requirements-bench.txt
	@touch $@

$(VENV)/.installed-gguf: $(VENV)/.installed requirements-gguf.txt
	@echo "Installing what exports to GGUF need ..."
	@$(PIP) --no-deps -r requirements-gguf.txt
	@touch $@

$(VENV)/.installed-compressed: $(VENV)/.installed requirements-compressed.txt
	@echo "Installing what exports to compressed safetensors need ..."
	@$(PIP) --no-deps -r requirements-compressed.txt
	@touch $@


$(VENV)/.installed-sign: $(VENV)/.installed-merge requirements-sign.txt
	@echo "Installing what signatures need ..."
	@$(PIP) -r requirements-sign.txt
	@touch $@

$(VENV)/.installed-slurm: $(VENV)/.installed-merge requirements-slurm.txt
	@echo "Installing what submitting jobs to SLURM needs ..."
	@$(PIP) -r requirements-slurm.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt requirements-sign.txt requirements-slurm.txt
	@echo "Installing what the tests need ..."
	@$(PIP) -r requirements-test.txt
	@touch $@

# Targets come first: options with many values would take them for theirs.
LOGGED := --logger shardmerge --quiet host

demo: env
	@echo "Merging the demo models (three tiny Llamas) and benchmarking them ..."
	@PYTHONPATH=plugins snakemake all $(LOGGED) --cores $(CORES)
	@snakemake --cores 1 --quiet all --report results/report.html
	@echo
	@cat results/miquplus-midnight-tiny/benchmarks/table.md
	@echo
	@echo "model:  results/miquplus-midnight-tiny/model"
	@echo "report: results/report.html"

demo-sweep: env
	@echo "Merging the demo models with nine weights, and benchmarking all of them ..."
	@PYTHONPATH=plugins snakemake sweep $(LOGGED) --cores $(CORES) --configfile config/sweep.yaml
	@echo
	@cat results/sweeps/tiny-sweep/table.md
	@echo
	@echo "best recipe: results/sweeps/tiny-sweep/best.yaml"
	@echo "pictures:    results/sweeps/tiny-sweep/plots"

demo-search: env
	@echo "Searching for a better gradient of the demo merge ..."
	@PYTHONPATH=scripts python -m shardmerge search config/search.yaml --cores $(CORES)
	@echo
	@cat results/sweeps/tiny-search/table.md
	@echo
	@echo "best recipe: results/sweeps/tiny-search/best.yaml"
	@echo "pictures:    results/sweeps/tiny-search/plots"

lint: env-test
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules workflow
	PYTHONPATH=scripts lint-imports --no-cache --no-logo
	snakemake --lint

format: env-test
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules workflow

test: lint
	pytest -m "not slow and not browser and not gpu and not slurm and not gguf" -n 2 --dist worksteal tests

test-all: lint
	pytest -m "not gpu and not slurm and not gguf" -n 2 --dist worksteal tests
	pytest -m slurm tests

fuzz: env-test
	PYTHONPATH=scripts:tests python -m fuzz --seconds $(FUZZ_SECONDS) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

demo-models: env
	python -m tools.demo --output $(or $(OUTPUT),demo-models)

docs: env
	python -m tools.docs

site: env-test
	NO_MKDOCS_2_WARNING=1 mkdocs build

bench: env-test
	python -m tools.bench $(if $(METHODS),--methods $(filter-out all,$(METHODS)))

clean:
	rm -rf results logs benchmarks site .shardmerge .snakemake
