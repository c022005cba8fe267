# `make setup` installs everything into .venv, once; the other targets call it.
#
#   make setup PYTHON=python3.12        another Python, 3.11 or later
#   make setup TORCH_INDEX=URL          torch from this index: how to choose between CPU and CUDA
#   make quality QUALITY=--quick        few users, to see that all runs
#   make scale SCALE=--quick            small sizes
#   make bench BENCH=--quick            small sizes: about two minutes; --full for ten thousand users

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

.PHONY: setup demo test test-dask scale format docs bench quality

setup: .venv/.ready

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'morpheus needs Python 3.11 or later: make setup PYTHON=python3.12' >&2; exit 1; }
	@echo 'Installing into .venv; torch is large, so the first time takes a few minutes.'
	@$(PYTHON) -m venv .venv
	@$(if $(TORCH_INDEX),$(PIP) --index-url '$(TORCH_INDEX)' '$(TORCH)')
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py

test: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 --ignore=tests/cluster

test-dask: setup
	$(BIN)/pytest -q tests/cluster

format: setup
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: setup
	@$(BIN)/morpheus tools reference > docs/cli.md.new
	@mv docs/cli.md.new docs/cli.md
	@$(BIN)/morpheus tools compatibility > docs/compatibility.md.new
	@mv docs/compatibility.md.new docs/compatibility.md

bench: setup
	@$(BIN)/python benchmarks/speed $(BENCH)
	@$(BIN)/pytest -q benchmarks/test_hot.py

scale: setup
	@$(BIN)/python benchmarks/scale $(SCALE)

quality: setup
	@$(BIN)/python benchmarks/quality $(QUALITY)
