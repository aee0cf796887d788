# Everything that a checkout needs is made in .venv; a second run of any target installs nothing.

PYTHON ?= python3
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALL := $(VENV_PYTHON) -m pip --disable-pip-version-check install --quiet --editable

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint soak bench docs clean mpi slurm prometheus receiver

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## run the main job: an ensemble of Ising simulations (DEMO_ARGS="--size 64")
	$(VENV_PYTHON) examples/demo.py $(DEMO_ARGS)

test: $(VENV)/.test ## run the tests, then some of them against the built wheel (PYTEST_ARGS="-k blocks")
	$(VENV_PYTHON) -m pytest $(PYTEST_ARGS)
	.ci/test-wheel $(VENV_PYTHON)

lint: $(VENV)/.test ## ruff and mypy
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

soak: $(VENV)/.test ## the long runs
	$(VENV_PYTHON) -m pytest -m soak --timeout=0 $(PYTEST_ARGS)

bench: $(VENV)/.test ## measure against raw pools, minutes long, and plot (BENCH_ARGS="--quick --only threads")
	$(VENV_PYTHON) -m tests.bench $(BENCH_ARGS)

docs: $(VENV)/.docs ## build the documentation in build/docs
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict
	@echo 'open build/docs/index.html'

clean: ## remove all that the other targets made
	rm -rf $(VENV) build dist demo-output bench-output .asyncflow .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo 'asyncflow needs Python 3.10 or newer as $(PYTHON); name another: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	    { .ci/debian-packages python3-venv && $(PYTHON) -c 'import ensurepip' 2>/dev/null; } || \
	    { echo '$(PYTHON) cannot make virtual environments: its module ensurepip is missing' >&2; exit 1; }
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.created
	@echo 'installing asyncflow and what the demo needs in $(VENV)'
	@$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.created
	@echo 'installing what the documentation needs in $(VENV)'
	@$(INSTALL) '.[docs]'
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.created | mpi slurm prometheus receiver browser
	@echo 'installing asyncflow and what the tests need in $(VENV)'
	@$(INSTALL) '.[test]'
	@touch $@

# Without MPI its tests are skipped, which CI does not accept.
mpi:
	@command -v mpirun >/dev/null || .ci/debian-packages openmpi-bin libopenmpi-dev || [ -z "$$CI" ]

# The same holds for SLURM, whose clusters root alone can start.
slurm:
	@PATH=$$PATH:/usr/sbin; command -v slurmd >/dev/null && command -v slurmctld >/dev/null || \
	    .ci/debian-packages munge slurmctld slurmd slurm-client || [ -z "$$CI" ]

# Reports are opened in it.
browser:
	@command -v chromium >/dev/null || .ci/debian-packages chromium || [ -z "$$CI" ]

prometheus:
	@command -v prometheus >/dev/null || .ci/debian-packages prometheus || [ -z "$$CI" ]

# What the tests send spans to. In an environment of its own: it wants other versions than the library does.
receiver: $(VENV)/.receiver

$(VENV)/.receiver: $(VENV)/.created
	@echo 'installing a receiver of OpenTelemetry in $(VENV)/receiver'
	@$(PYTHON) -m venv $(VENV)/receiver
	@$(VENV)/receiver/bin/python -m pip --disable-pip-version-check install --quiet 'ddapm-test-agent>=1.69'
	@touch $@
