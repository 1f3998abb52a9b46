# The newest Python that runs here; PYTHON=... names another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.10 python3 python; do \
	$$p -c 'import sys, ensurepip, sqlite3, ssl; sys.exit(sys.version_info < (3, 10))' \
	>/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
PIP = -m pip --quiet --disable-pip-version-check
# Arguments for pytest: make pytest ARGS="tests/test_message.py -x"
ARGS ?= tests integration
# Twice as many as cores: the tests wait as long as they compute. Each has servers of its own.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(8, 2 * (os.cpu_count() or 1)))')
# The tests start hundreds of processes: each compiles anew what is not kept compiled.
unexport PYTHONDONTWRITEBYTECODE
export MYPY_CACHE_DIR ?= .mypy_cache
export NO_MKDOCS_2_WARNING = true

.DEFAULT_GOAL := help
.PHONY: help env test test-all lint types pytest coverage format docs demo bench bench-redis bench-kafka \
	constraints chaos clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(VENV)/.stamp ## make the virtual environment (.venv)

$(VENV)/.stamp: setup.cfg constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python >= 3.10 with ensurepip and sqlite3 on PATH: install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python $(PIP) install --editable '.[dev,docs]'
	@touch $@

test: lint types pytest docs ## everything that CI runs

# An interpreter that pyenv has but has not selected is a shim that fails: add the real ones.
test-all: $(VENV)/.stamp ## the tests on every Python from 3.10 to 3.13 found here (tox)
	$(BIN)/python $(PIP) install --constraint constraints.txt tox
	PATH="$$PATH:$$(printf '%s:' "$$(pyenv root 2>/dev/null)"/versions/*/bin)" $(BIN)/tox run

lint: $(VENV)/.stamp ## ruff (rules and format) and import-linter (floors)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.stamp ## mypy --strict
	$(BIN)/mypy

# Tests marked `serial` measure, signal or count things of the whole machine: they run alone.
pytest: $(VENV)/.stamp ## the tests; ARGS="tests/x.py -k y" picks some
	$(BIN)/python -m pytest -m serial $(ARGS) || test $$? -eq 5
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m "not serial" $(ARGS)

STORES ?= sqlite redis mongodb kafka rabbitmq
chaos: $(VENV)/.stamp ## break a running system on each of STORES for TASKLINE_CHAOS_SECONDS (600)
	status=0; for store in $(STORES); do $(BIN)/python -m integration.chaos --store $$store || status=1; done; exit $$status

coverage: $(VENV)/.stamp ## the tests, and the lines they did not run
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

format: $(VENV)/.stamp ## rewrite the code as ruff formats it
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp ## build the documentation into site/
	$(BIN)/mkdocs --quiet build --strict

demo: .venv-demo/.stamp ## count the standard library while a worker process is killed
	.venv-demo/bin/python examples/demo/run.py

.venv-demo/.stamp: setup.cfg constraints.txt $(shell find taskline -name '*.py')
	$(PYTHON) -m venv --clear .venv-demo
	PIP_CONSTRAINT=constraints.txt .venv-demo/bin/python $(PIP) install .
	@touch $@

bench: $(VENV)/.stamp ## measure Taskline beside its peers; BENCH="--only drain --rounds 1" picks
	$(BIN)/python -m benchmarks $(BENCH)

bench-redis: $(VENV)/.stamp ## the same on Redis alone
	$(BIN)/python -m benchmarks --store redis $(BENCH)

bench-kafka: $(VENV)/.stamp ## the same on Apache Kafka
	$(BIN)/python -m benchmarks --store kafka $(BENCH)

constraints: ## pin the newest versions of everything (uv must be installed)
	printf 'setuptools\ntox\n' | uv pip compile --quiet --universal --python-version 3.10 --all-extras \
		--no-header --no-annotate --no-emit-package taskline --upgrade setup.cfg - --output-file constraints.txt
	sed -i '1i # The versions that CI runs with. Re-made by `make constraints`.' constraints.txt

clean: ## delete everything that was made here
	rm -rf $(VENV) .venv-* .tox build dist site htmlcov *.egg-info .coverage* .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
