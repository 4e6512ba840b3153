# What developers run; `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help setup test test-fast lint format docs bench

help:  ## List the targets
	@grep -E '^[a-z-]+: *##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+): *## */\1\t/' | expand -t 12

setup:  ## Install everything that developers need, and build the kernels
	pip install -e '.[test]'

test:  ## Run all tests, as CI does
	pytest

test-fast:  ## Run the tests that take under three minutes together
	pytest -m "not slow"

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
