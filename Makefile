# make help lists the targets. Everything is installed into .venv; a stamp per extra keeps it from being installed again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Appended to the command of `make train` and of the tests, for example: make train ARGS="--preset cifar10_small"
ARGS ?=
# Two processes; a file's tests, and so its fixtures, stay in one.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
# By `make test-loggers`.
LOGGERS := tests/loggers/test_loggers_real.py
# Of the long tests a class stays in one process: whole files would leave the other process without work at the end. In
# the order of the files: xdist's own begins with the classes of many tests and ends with the single ones, the longest.
PYTEST_SLOW := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m slow --deselect $(LOGGERS)

# What uses each of the packages: a trained model, SavedModel, ONNX and a fresh export; images; TFDS; Parquet. And that
# pytest collects what needs packages that the extra `test` does not bring.
SHORT := export tests/test_golden.py tests/data/test_image_files.py tests/test_untrusted.py::TestDataSet \
	tests/corpus/test_encode.py::TestCodes

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test test-slow test-all test-versions test-lowest test-newest test-wheel test-loggers results tools docs lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

train: $(VENV)/.stamp-base ## train the quickstart preset, or another: make train ARGS="--preset NAME"
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.stamp-test ## run the quick tests: six minutes on two cores
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/.stamp-test-all tools ## run the long tests alone: kills, full disks, browser, Node, C, Beam
	$(PYTEST_SLOW) -o strict_skips=true $(ARGS)

test-all: $(VENV)/.stamp-test-all tools ## run all tests; a skip fails unless tests/expected_skips.txt has it
	export TFDECOUPLE_MADE_ONCE=$$(mktemp -d) && trap 'rm -rf "$$TFDECOUPLE_MADE_ONCE"' EXIT && \
	$(PYTEST) -o strict_skips=true $(ARGS) && \
	$(PYTEST_SLOW) -o strict_skips=true $(ARGS)

test-versions: test-lowest test-newest ## run the short suite with both

test-lowest: $(VENV)/lowest/.stamp ## run a short suite with the lowest versions that setup.cfg admits
	$(VENV)/lowest/bin/python -m pytest $(SHORT) $(ARGS)

# Newer ones than those of test-all, where Apache Beam holds some back.
test-newest: $(VENV)/newest/.stamp ## run a short suite with the newest versions of constraints/newest.txt
	$(VENV)/newest/bin/python -m pytest $(SHORT) $(ARGS)

test-wheel: ## install the wheel without extras, with another Python where there is one, and draw a picture with it
	@PYTHON="$(PYTHON)" .ci/test-wheel

test-loggers: $(VENV)/loggers/.stamp ## run the tests with the client of Weights & Biases, on local files
	$(VENV)/loggers/bin/python -m pytest -m slow -o strict_skips=true $(LOGGERS) $(ARGS)

results: $(VENV)/.stamp-all ## measure docs/results again and make the tables of docs/RESULTS.md of it
	$(BIN)/python benchmarks/results.py --measure $(ARGS)

tools: | $(VENV)/.stamp-venv ## install what the long tests need: compilers, ONNX Runtime for C++, Node.js, Chromium, Graphviz, npm packages
	@.ci/install-tools

docs: $(VENV)/.stamp-docs ## build the documentation as a site, in build/site; a broken link ends it
	$(BIN)/mkdocs build

lint: $(VENV)/.stamp-lint ## check style (ruff), types (mypy) and Dockerfiles (hadolint)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/*.Dockerfile

clean: ## remove .venv, build outputs and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp-venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-base: setup.cfg pyproject.toml | $(VENV)/.stamp-venv
	@echo "Installing tfdecouple into $(VENV): about a minute the first time"
	$(PIP) install -e '.[all]'
	@touch $@

$(VENV)/.stamp-%: setup.cfg pyproject.toml | $(VENV)/.stamp-venv
	@echo "Installing tfdecouple[$*] into $(VENV): about a minute the first time"
	$(PIP) install -e '.[$*]'
	@touch $@

# Beside the packages of test-all, which it sees: these would bring pandas into every process of the other tests.
$(VENV)/loggers/.stamp: $(VENV)/.stamp-test-all
	@echo "Installing the extra loggers into $(VENV)/loggers"
	$(BIN)/python -m venv $(VENV)/loggers
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(ls -d $(VENV)/loggers/lib/python3*/site-packages)/shared.pth"
	$(VENV)/loggers/bin/python -m pip --disable-pip-version-check --quiet install 'tfdecouple[loggers]'
	@touch $@

$(VENV)/%/.stamp: setup.cfg pyproject.toml constraints/%.txt
	@echo "Installing tfdecouple[test] with constraints/$*.txt into $(VENV)/$*"
	$(PYTHON) -m venv $(VENV)/$*
	$(VENV)/$*/bin/python -m pip --disable-pip-version-check --quiet install -e '.[test]' -c constraints/$*.txt
	@touch $@
