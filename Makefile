# Every command needs Python 3.10 or newer and make, and nothing else: what is missing is installed into $(VENV).
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.10,$(shell $(name) -c 'import sys; sys.version_info >= (3, 10) and print("$(name)")' 2>/dev/null)))
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
SEED ?= 0
N ?= 200
SOURCES := localdask benchmarks tests
CENSUS := examples/census
VERSIONS := 3.10 3.11 3.12 3.13

.PHONY: all help run test check test-all test-dask bench sim soak clean
.DEFAULT_GOAL := all

all: check test ## check and test

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

run: $(VENV)/.ready ## count this Python's standard library on a cluster of four workers
	$(BIN)/localdask run -n 4 --preload $(CENSUS)/visitors.py --preload-nanny $(CENSUS)/pin.py $(CENSUS)/census.py

test: $(VENV)/.ready-to-test ## the tests; ARGS='-k words' chooses
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.ready-to-test ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict localdask benchmarks

test-all: ## the tests on each Python from 3.10 to 3.13 that is here
	@$(MAKE) --no-print-directory --keep-going $(VERSIONS:%=test-%)

test-3.%:
	@found=; for python in python3.$* $$(ls -d $(HOME)/.pyenv/versions/3.$*.*/bin/python 2>/dev/null); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, $*))' 2>/dev/null; then found=$$python; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Python 3.$* is not here: skipped"; \
	else echo "Python 3.$*: $$found"; $(MAKE) --no-print-directory test VENV=.venvs/3.$* PYTHON="$$found"; fi

test-dask: .venvs/dask/.ready-to-test-dask ## the examples on a real Dask cluster, in an environment of its own
	.venvs/dask/bin/python -m pytest tests/live/test_real_dask.py $(ARGS)

bench: $(VENV)/.ready-to-bench ## localdask beside its peers; ARGS='--quick latency' chooses
	$(BIN)/python -m benchmarks $(ARGS)

sim: $(VENV)/.ready-to-test ## simulated clusters: SEED=… is the first, N=… how many
	$(BIN)/python -m tests.sim --seed $(SEED) --n $(N)

soak: $(VENV)/.ready-to-test ## hours of random work, deaths and saves; ARGS='--reloads 1000' only saves
	$(BIN)/python -m tests.soak $(ARGS)

clean: ## remove what was made here, the environments too
	rm -rf .venv .venvs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment may have been made by a tool that leaves pip out.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed; name one with PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(BIN)/python
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(BIN)/python -m ensurepip --upgrade >/dev/null
	$(PIP) install --editable .
	@touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready
	$(PIP) install --editable '.[test]'
	@touch $@

# Apart, because a process that finds distributed imports it, and the other tests are of those that do without.
.venvs/dask/.ready-to-test-dask: pyproject.toml
	@$(MAKE) --no-print-directory .venvs/dask/.ready-to-test VENV=.venvs/dask
	.venvs/dask/bin/python -m pip -qq --disable-pip-version-check install --editable '.[distributed]'
	@touch $@

# ray has no wheel for some platforms; the other peers do without it.
$(VENV)/.ready-to-bench: $(VENV)/.ready
	$(PIP) install --editable '.[peers]' || $(PIP) install distributed joblib loky uvicorn
	@touch $@
