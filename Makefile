# `make setup` installs what users need into .venv. `make dev` adds what the checks and benchmarks need.
# The other targets call one of them.
#
#   make setup PYTHON=python3.12        use another Python, 3.11 or later
#   make test TORCH_INDEX=URL           install torch from this index, to choose between CPU and CUDA
#   make quality QUALITY=--quick        few users, for a quick check
#   make scale SCALE=--quick            small sizes
#   make bench BENCH=--quick            small sizes, about two minutes; --full: the largest, hours
#   make profile PROFILE='--users 10'  flame graphs of a smaller company
#   make engineer ENGINEER='--seeds 7'  another generated bucket
#   make verdicts VERDICTS='--seeds 7'  another generated company
#   make kills KILLS=200 SEED=7         more moments at which processes are killed, or other ones
#   make soak SOAK='--kills 200'        more kills; see docs/soak.md
#   make stream STREAM=--quick          small sizes, about two minutes
#   make fuzz N=10000 SEED=7            more hostile inputs, or other ones

# Without compiled modules, each of the many commands that tests start takes a second longer.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported: most of those that are installed never are.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
WORKERS ?= 2
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

.PHONY: setup dev demo test lint types unit-tests test-dask kills fuzz soak stream scale format docs site bench profile quality engineer verdicts

setup: .venv/.ready

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'morpheus needs Python 3.11 or later. Use: make setup PYTHON=python3.12' >&2; exit 1; }
	@echo 'Installing into .venv.'
	@$(PYTHON) -m venv .venv
	@$(PIP) --editable .
	@touch $@

dev: .venv/.dev-ready

.venv/.dev-ready: .venv/.ready
	@echo 'Installing development tools and torch. The first time takes a few minutes.'
	@$(if $(TORCH_INDEX),$(PIP) --index-url '$(TORCH_INDEX)' '$(TORCH)')
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py

test: dev
	@$(MAKE) --no-print-directory -j3 lint types unit-tests

lint: dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports

types: dev
	$(BIN)/mypy

unit-tests: dev
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal --ignore=tests/cluster

test-dask: dev
	$(BIN)/pytest -q tests/cluster

kills: dev
	@KILLS=$(or $(KILLS),50) SEED=$(or $(SEED),1) $(BIN)/pytest -q -p no:xdist tests/test_kills.py

fuzz: dev
	@N=$(or $(N),2000) SEED=$(or $(SEED),1) $(BIN)/pytest -q -p no:xdist tests/fuzz tests/sources/test_cut_records.py

soak: dev
	@$(BIN)/python benchmarks/soak $(SOAK)

stream: dev
	@$(BIN)/python benchmarks/stream $(STREAM)

format: dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: dev
	@$(BIN)/morpheus tools reference > docs/cli.md.new
	@mv docs/cli.md.new docs/cli.md
	@$(BIN)/morpheus tools compatibility > docs/compatibility.md.new
	@mv docs/compatibility.md.new docs/compatibility.md

site: dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'The site is in site/. To read it with its search: $(BIN)/python -m http.server --directory site'

bench: dev
	@$(BIN)/python benchmarks/speed $(BENCH)
	@$(BIN)/pytest -q benchmarks/test_hot.py

profile: dev
	@$(BIN)/python benchmarks/flames $(PROFILE)

scale: dev
	@$(BIN)/python benchmarks/scale $(SCALE)

quality: dev
	@$(BIN)/python benchmarks/quality $(QUALITY)

engineer: dev
	@$(BIN)/python benchmarks/engineer $(ENGINEER)

verdicts: dev
	@$(BIN)/python benchmarks/verdicts $(VERDICTS)
