# make help lists the targets. Everything is installed into .venv; a stamp per extra keeps it from being installed again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Appended to the command of `make train` and `make test`, for example: make train ARGS="--preset cifar10_small"
ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test lint clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

train: $(VENV)/.stamp-base ## train the quickstart preset, or another: make train ARGS="--preset NAME"
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.stamp-test ## run the tests; slow ones too: make test ARGS="-m 'slow or not slow'"
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.stamp-lint ## check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## remove .venv, build outputs and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp-venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-base: setup.cfg pyproject.toml | $(VENV)/.stamp-venv
	@echo "Installing tfdecouple into $(VENV): about a minute the first time"
	$(PIP) install -e .
	@touch $@

$(VENV)/.stamp-%: setup.cfg pyproject.toml | $(VENV)/.stamp-venv
	@echo "Installing tfdecouple[$*] into $(VENV): about a minute the first time"
	$(PIP) install -e '.[$*]'
	@touch $@
