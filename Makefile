# What developers run; `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help setup test test-fast ptx-fuzz lint format docs bench carried

help:  ## List the targets
	@grep -E '^[a-z-]+: *##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+): *## */\1\t/' | expand -t 12

setup:  ## Install everything that developers need, and build the kernels
	pip install -e '.[test]'

test:  ## Run all tests, as CI does
	pytest

test-fast:  ## Run the tests that take under three minutes together
	pytest -m "not slow"

ptx-fuzz:  ## Run random calls on the compiled CUDA kernels in the PTX interpreter: SEED=0 SECONDS=600
	python scripts/ptx_fuzz.py --seed $(or $(SEED),0) --seconds $(or $(SECONDS),600)

lint:  ## Check style, spelling and types
	ruff check .
	ruff format --check .
	codespell
	mypy

format:  ## Format the code, and mend what ruff can mend
	ruff check --fix .
	ruff format .

docs:  ## Build the site into build/site; a warning is an error
	mkdocs build --strict

bench:  ## Time every suite on this CPU, and write the tables of the docs
	for suite in blur similarity features training; do \
		python -m benchmarks --suite $$suite --device cpu --json benchmarks/results/$${suite}_cpu.json || exit 1; \
	done
	python scripts/update_docs.py

PYTHON_VERSION ?= 3.12
WHEELS = kornia kornia_rs open_clip_torch ftfy wcwidth jsonargparse docstring-parser typeshed-client
carried:  ## Gather what benchmarks/gpu.sh may lack on a machine without network
	rm -rf carried
	pip download -d carried/wheels --no-deps --only-binary=:all: --implementation cp --python-version $(PYTHON_VERSION) \
		$(foreach n,17 27 28,--platform manylinux_2_$(n)_x86_64) --platform manylinux2014_x86_64 $(WHEELS)
	bvsa data synthetic carried/eeg --subjects 1 --train_concepts 150 --images_per_concept 4 --train_repetitions 1 \
		--test_concepts 100 --test_repetitions 10
