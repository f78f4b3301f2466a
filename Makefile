# One command for each thing one does here; CI calls the same (.ci/run). Everything lives in .venv.

PYTHON ?= $(shell python3.11 -V >/dev/null 2>&1 && echo python3.11 || echo python3)
# Where plain pip does not find the build of PyTorch you want, name its index:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# More words for the command itself: make demo ARGS='--devices 4', make test ARGS='-k digits'.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS)
DEMO_READY := $(VENV)/.demo-ready
DEV_READY := $(VENV)/.dev-ready
BENCH_READY := $(VENV)/.bench-ready

# Tests and benchmarks start hundreds of processes: each would compile the whole package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO_READY)  ## serve real images from 8 devices, two of them bad (about a minute)
	$(BIN)/owl demo $(ARGS)

test: $(DEV_READY)  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

check: $(DEV_READY)  ## lint, format, types, layers, dependencies, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/codespell

bench: $(BENCH_READY)  ## run every benchmark in its quick form
	set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python -m "benchmarks.$$(basename "$$file" .py)" --quick $(ARGS); done

docs: $(DEV_READY)  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove what these targets made, the environment too
	rm -rf $(VENV) site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamps: a second `make` installs nothing unless a requirement changed. PyTorch comes first and alone, so
# that nothing else decides which build it is.
$(DEMO_READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AwfulOwl needs Python 3.11: make PYTHON=/path/to/it")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(INSTALL) --quiet --editable '.[demo,data,jobs,lab,fast]'
	touch $@

$(DEV_READY): $(DEMO_READY)
	$(INSTALL) --quiet --editable '.[demo,data,jobs,lab,fast,trainer,websocket,dev,docs]'
	touch $@

$(BENCH_READY): $(DEV_READY)
	$(INSTALL) --quiet --editable '.[demo,data,jobs,lab,fast,trainer,websocket,dev,docs,bench]'
	touch $@
