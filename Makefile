# make demo    train on embedded real data, and look at what comes out
# make test    the tests
# make check   format, lint, types, tests: what CI runs
# make docs    the pages in docs/ as a site, in docs/_build/html
# make format  let ruff rewrite what it can
# make clean   remove the environment and everything that was made
#
# Each makes its environment first, in .venv: with uv where it is there, else with venv and pip.

PYTHON ?= python3
# uv finds (or fetches) a Python by itself, unless one is named.
UV_PYTHON := $(if $(filter file,$(origin PYTHON)),>=3.11,$(PYTHON))
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUNS   ?= runs

.PHONY: demo test check docs format clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(BIN)/vidi demo --out $(RUNS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than both files exactly when the environment is what they ask for.
$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	    set -e; \
	    test -x $(BIN)/python || uv venv --python '$(UV_PYTHON)' $(VENV); \
	    uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	    set -e; \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	        echo "vidi needs Python 3.11 or newer, and '$(PYTHON)' is not. Install one and say which:" \
	             "make PYTHON=python3.12" >&2; exit 2; }; \
	    test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	    $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@
