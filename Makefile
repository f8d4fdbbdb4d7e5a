# `make demo`, `make annotate` and `make test`. Everything lives in .venv; remove that folder to start afresh.
PYTHON ?= python3
PARAMS ?= params/quickstart.yaml
SWEEP ?= params/sweeps/smoke.yaml
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ANNOTATE ?= params/annotate.yaml
EXTRA ?=
SECONDS_EACH ?= 60
TOOL := $(PYTHON) -m venv build/tools && build/tools/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo annotate test sweep results fresh claims bench env lab format check api lock pythons test-lowest hashed-lock hashed-env audit fuzz faults soak labelstudio-check plan-check gpu-check clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(STAMP)  ## find and repair a biased reward model; PARAMS=params/quickstart_safety.yaml does the other task
	$(BIN)/python -m shfcas_lib run $(PARAMS)

annotate: $(STAMP)  ## label in JupyterLab, on the screen of notebook 03; ANNOTATE=params/mine.yaml labels a run of yours
	$(BIN)/python -m shfcas_lib annotate $(ANNOTATE)

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest

sweep: $(STAMP)  ## a sweep and its report; SWEEP=params/sweeps/label_efficiency.yaml; type it again to resume
	$(BIN)/python -m shfcas_lib sweep $(SWEEP)

results: $(STAMP)  ## the sweeps behind docs/results.md
	$(BIN)/python -m shfcas_lib sweep params/sweeps/results_safety.yaml --release docs/results
	$(BIN)/python -m shfcas_lib sweep params/sweeps/results_helpfulness.yaml --release docs/results

fresh: $(STAMP)  ## does `trust` hold on prompts that no development used? About two hours on two cores; goes on where it was killed
	$(BIN)/python docs/results/fresh.py pools
	$(BIN)/python docs/results/fresh.py units
	$(BIN)/python docs/results/fresh.py release

claims: $(STAMP)  ## fill the tables of docs/results.md and docs/trust.md from the released rows
	$(BIN)/python docs/results/tables.py
	$(BIN)/python docs/results/fresh.py tables

bench: $(STAMP)  ## speed and memory, as ratios against what one would otherwise run: about half an hour on two quiet cores
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: xllamacpp==2026.10.11549
	for script in conflict_metrics start memory reward_probe sweep_point pool_building; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/tables.py

env: $(STAMP)  ## create the environment only

lab: $(STAMP)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --notebook-dir=. notebooks/01_proxy_bias_injection.ipynb

format: $(STAMP)  ## lay the code out, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(STAMP)  ## layout, lint, types, and which room may import which, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

api: $(STAMP)  ## write docs/api.md from the docstrings
	$(BIN)/python tools/api_page.py

test-lowest:  ## the lowest versions that pyproject.toml allows, in build/lowest, under tests of the core; EXTRA=sweep with everything
	$(TOOL) uv==0.13.8
	$(PYTHON) tools/lowest.py $(EXTRA)

pythons:  ## is there a wheel of every locked package for Python 3.11 to 3.13, on Linux and macOS?
	@$(TOOL) uv==0.13.8
	@$(PYTHON) tools/pythons.py

lock: $(STAMP)  ## write the lock from what is installed
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(nvidia|triton|cuda|atheris|xllamacpp)' | sed 's/+cpu$$//' > requirements.lock

hashed-lock:  ## write requirements-hashed.lock: the same versions with the sha256 of every file, for Linux and macOS
	$(TOOL) uv==0.13.8
	build/tools/bin/uv pip compile --quiet --universal --python-version 3.11.5 --generate-hashes --no-header --no-annotate \
	    --constraint requirements.lock --extra test --extra sweep pyproject.toml --output-file requirements-hashed.lock

hashed-env:  ## the environment from requirements-hashed.lock: every package is checked by sha256 before it is installed
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --requirement requirements-hashed.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@touch $(STAMP)

audit:  ## ask a public service for known vulnerabilities of the pinned packages
	@$(TOOL) pip-audit==2.10.1
	@build/tools/bin/python tools/audit.py requirements-hashed.lock

fuzz: $(STAMP)  ## fuzz the readers, guided by coverage (atheris, Linux x86-64); SECONDS_EACH=600 for longer
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: atheris==3.0.0
	$(BIN)/python tools/fuzz.py $(SECONDS_EACH)

faults: $(STAMP)  ## over 200 kills, full disks and the like; about ten minutes of CPU
	SHFCAS_KILLS=200 SHFCAS_FAULTS_LOG=runs/faults.md $(BIN)/python -m pytest tests/whole/test_faults.py

soak: $(STAMP)  ## a sweep of 1,000 points (over an hour) and a label store of 100,000 answers: memory, open files, nothing lost
	$(BIN)/python tools/soak.py

labelstudio-check: $(STAMP)  ## the round trip through a real Label Studio, installed into a temporary folder (1 GB)
	SHFCAS_LABEL_STUDIO=1 $(BIN)/python -m pytest tests/annotators/test_label_studio.py

plan-check: $(STAMP)  ## measured against planned memory, on the CPU
	$(BIN)/python -W ignore benchmarks/memory_check.py

gpu-check: $(STAMP)  ## the recipes at their sizes on a CUDA GPU: memory, speed, agreement with the CPU; skips without one
	$(BIN)/python -W ignore benchmarks/gpu_check.py

clean:  ## remove caches of tools; runs (they may hold people's answers), environment and assets stay
	rm -rf .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A half-made environment must not look finished: the stamp is written last.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11.5 or newer is needed, found " + sys.version.split()[0]) if sys.version_info < (3, 11, 5) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock --editable '.[test,sweep]'
	@touch $(STAMP)
