# Two commands on a fresh Debian 12 or Ubuntu 24.04, as root: `make demo` and `make test`.
# What they install and build is kept in $(PROFINFER_CACHE), outside the checkout.

SHELL := /bin/bash
export PROFINFER_CACHE ?= $(HOME)/.cache/profinfer
PY := $(PROFINFER_CACHE)/python/bin/python
# This checkout's code, also in child processes, whatever the environment points at.
export PYTHONPATH := $(CURDIR)
PYTEST := $(PY) -m pytest
# On all cores, each file on one of them, so that what its tests share is made once; the other
# tiers need the machine for themselves. Exit status 5: ARGS chose no test of a tier.
UNIT := $(PYTEST) -m "not bpf and not e2e" -n auto --dist loadfile
SETUP := @tools/setup.sh
ARGS ?=
FUZZ ?= 100000
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo examples test lint format types unit golden-check golden test-bpf e2e test-arm64 setup python models \
	matrix bench fuzz diff-trial clean clean-cache

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  Cache: $(PROFINFER_CACHE) (set PROFINFER_CACHE to move it); ARGS=... goes to pytest"

demo: setup ## record a real SmolLM2 run, print its report, write its Perfetto timeline
	@tools/demo.sh

define LINT
$(PY) -m ruff check .
$(PY) -m ruff format --check .
@for script in tools/*.sh tools/arm64/* examples/*.sh .ci/run; do bash -n $$script || exit 1; done
endef
TYPES := $(PY) -m mypy

test: setup ## lint, types and every tier of tests; here a skipped bpf or e2e test is a failure
	$(LINT)
	$(TYPES)
	$(UNIT) --require-all $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -m "bpf or e2e" --require-all $(ARGS) || [ $$? -eq 5 ]
lint: python ## ruff, format check, shell syntax
	$(LINT)
format: python ## rewrite the sources in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
types: python ## mypy --strict on profinfer/
	$(TYPES)
unit: python ## tests without root, BCC or the engine
	$(UNIT) $(ARGS)
golden-check: python ## compare the golden outputs
	$(PYTEST) tests/golden $(ARGS)
golden: python ## rewrite the golden outputs; read the diff before you commit it
	$(PYTEST) tests/golden --update-golden $(ARGS)
test-bpf: python ## root: record the C test program
	$(PYTEST) -m bpf --require-all $(ARGS)
e2e: setup ## root: record the real llama.cpp
	$(PYTEST) -m e2e --require-all $(ARGS)

test-arm64: ## root, Debian 12: record inside an emulated arm64 machine with a PMU; 10 min the first time
	$(SETUP) apt python arm64 arm64_llama
	$(PYTEST) tests/arm64 --require-all $(ARGS)

setup: ## packages, virtual environment, llama.cpp, model; seconds when already there
	$(SETUP) apt python llama backends model
python:
	$(SETUP) apt python
examples: setup ## run the examples again and keep their output in examples/*.txt
	@tools/make_examples.sh
matrix: setup ## root, clang: build llama.cpp in many ways (20 min), record each, write docs/matrix.md
	@$(PY) tools/matrix.py
diff-trial: setup ## root: does diff cry wolf, does it find 5 % of one operator on the real engine (10 min)
	$(PY) -m tools.difftrial same
	$(PY) -m tools.difftrial planted
fuzz: python ## read FUZZ=100000 mutated traces, report on a hundredth as many; SEED=1
	$(PY) tests/fuzz_reader.py $(FUZZ) $(SEED)
	$(PY) tests/fuzz_report.py $$(( $(FUZZ) / 100 + 1 )) $(SEED)
bench: setup ## what tracing costs here, with other tracers beside it; ARGS=--quick for a short one
	$(PY) -m tools.bench $(ARGS)
models: python ## write the tiny test models to ./models
	$(PY) tools/make_models.py models

clean: ## remove what tools leave in the checkout
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist models *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
clean-cache: ## remove what setup installed and built
	cd "$(PROFINFER_CACHE)" && rm -rf python stamps logs demo models download-* llama.cpp-* arm64
