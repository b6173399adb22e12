# make demo   everything from nothing to a report, on a CPU
# make test   all tests (make check is the quick part of it)
# make gpu    tests and short benchmarks of the CUDA code, with $(PYTHON) and the torch it has; installs nothing

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RUN    := runs/demo
SLURM  := $(PYTHON) -m tests.slurm.cluster
# Tests share cores, so a thread that has nothing to do must sleep and not spin.
SHARED := OMP_WAIT_POLICY=passive
ONE    := $(SHARED) OMP_NUM_THREADS=1
# Where containers forbid bytecode, every process that a test starts would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo check test gpu site paper format golden clean chromium slurm-up slurm-down

help:
	@grep -E '^# make' Makefile | cut -c3- | sed 's/$$(PYTHON)/PYTHON/'
	@echo 'make check  ruff, types, import rules, fast tests'
	@echo 'make site   the documentation, in build/site'
	@echo 'make paper  the paper of a finished run, RUN=runs/demo, in build/paper'
	@echo 'make format ruff format and its safe fixes'
	@echo 'make slurm-up, make slurm-down  a Slurm cluster of one node for tests (docs/how-to/slurm-testing.md)'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'mechstudy needs Python 3.11 or newer; say which: make demo PYTHON=python3.12'; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/mechstudy run examples/demo.yaml --out $(RUN)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(ONE) $(BIN)/pytest -q -n auto -m 'not real and not browser and not slow and not process and not peers and not slurm'

test: $(READY) chromium
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(ONE) $(BIN)/pytest -q -n auto -m 'not real and not browser and not peers and not slurm'
	$(SHARED) $(BIN)/pytest -q -m 'real or browser'
	$(ONE) $(BIN)/pytest -q -m peers tests/peers
	$(SLURM) run -- env $(ONE) $(BIN)/pytest -q -n 5 --dist loadfile -m slurm tests/slurm

gpu:
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || \
		{ echo 'this needs a CUDA device, and a Python with a torch that knows it; say which: make gpu PYTHON=python3.12'; exit 2; }
	PYTHONPATH=src $(PYTHON) -m pytest -q -m cuda tests
	PYTHONPATH=src $(PYTHON) -m benchmarks.cuda_kernels --repeats 10

# The report's tests need a browser. Where it is absent and cannot be installed they are skipped, and say so.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
		echo 'no Chromium: the browser tests will be skipped (apt-get install chromium)'

slurm-up:
	$(SLURM) up

slurm-down:
	$(SLURM) down

site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

paper: $(READY)
	$(BIN)/python -m paper.make $(RUN)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: $(READY)
	$(BIN)/python -m tests.golden.dictionary_curves
	git diff --stat tests/golden

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
