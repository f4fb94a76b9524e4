# `make help` lists the targets. Packages are installed into .venv. A stamp file for each extra records the installation, so
# that make installs an extra only once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Options that are appended to the command of `make train` and of the tests: make train ARGS="--steps 300"
ARGS ?=
# This command checks files against a schema that the package contains.
SCHEMA := $(BIN)/check-jsonschema --builtin-schema
# Two processes run the tests. All tests of a file run in one process, so that they share its fixtures.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
# `make test-services` runs these tests in another environment, so `make test-slow` leaves them out.
SERVICES := tests/loggers/test_services.py tests/corpus/test_object_storage.py
# All long tests of a class run in one process. If all tests of a file did, one process would be idle at the end. The tests
# run in the order of the files, because the order of xdist puts single tests last, which take longest.
PYTEST_SLOW := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m slow $(SERVICES:%=--deselect %)

# Tests that use each required package (a trained model, checkpoints, SavedModel, ONNX, a fresh export, image files, TFDS and
# Parquet) and each private part of TensorFlow, and of products that TF32 must not round.
# They also show that pytest can collect modules whose packages the extra `test` does not install.
SHORT := export tests/test_golden.py tests/data/test_image_files.py tests/test_untrusted.py::TestDataSet \
	tests/corpus/test_encode.py::TestCodes tests/test_tensorflow_internals.py \
	tests/storage/test_checkpoints.py::TestCheckpointFolder \
	tests/training/test_step.py::TestPrecision::test_tf32_steps_keep_inversions_and_bounds_in_full_precision

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test test-slow test-all test-versions test-lowest test-newest test-nightly test-wheel test-services test-container
.PHONY: test-machines results tools docs lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

train: $(VENV)/.stamp-base ## train the quickstart preset, or on other images: make train ARGS="--data folder:DIR"
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.stamp-test ## run the quick tests: five minutes on two cores
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/.stamp-test-all tools ## run the long tests alone: kills, full disks, Slurm, browser, Node, C, Beam
	$(PYTEST_SLOW) -o strict_skips=true $(ARGS)

test-all: $(VENV)/.stamp-test-all tools ## run all tests; a skip fails unless tests/expected_skips.txt has it
	export TFDECOUPLE_MADE_ONCE=$$(mktemp -d) && trap 'rm -rf "$$TFDECOUPLE_MADE_ONCE"' EXIT && \
	$(PYTEST) -o strict_skips=true $(ARGS) && \
	$(PYTEST_SLOW) -o strict_skips=true $(ARGS)

test-versions: test-lowest test-newest ## run the short suite with the lowest and with the newest versions

test-lowest: $(VENV)/lowest/.stamp ## run a short suite with the lowest versions that setup.cfg admits
	$(VENV)/lowest/bin/python -m pytest $(SHORT) $(ARGS)

# The versions are newer than those of test-all, where Apache Beam requires older ones of some packages.
test-newest: $(VENV)/newest/.stamp ## run a short suite with the newest versions of constraints/newest.txt
	$(VENV)/newest/bin/python -m pytest $(SHORT) $(ARGS)

# The nightly builds change daily, so CI does not run this target. Delete .venv/nightly to install newer builds.
test-nightly: $(VENV)/nightly/.stamp ## run a short suite with the nightly builds of TensorFlow, Keras and TFP
	$(VENV)/nightly/bin/python -m pytest $(SHORT) $(ARGS)

test-wheel: ## install the wheel without extras, with another Python where there is one, and draw a picture with it
	@PYTHON="$(PYTHON)" .ci/test-wheel

test-services: $(VENV)/services/.stamp $(VENV)/openwandb/.stamp ## run the tests with servers: Weights & Biases, MLflow, S3, Google Cloud Storage
	$(VENV)/services/bin/python -m pytest -m slow -o strict_skips=true $(SERVICES) $(ARGS)

# CI does not run this target, because the image's packages would take too long to install.
test-container: ## build the image for training, on a stand-in for its base, and train and export in it; needs root on Debian
	@.ci/test-container

test-machines: $(VENV)/.stamp-test ## run the quick tests four times: with the kernels of other processors, and on one core
	@.ci/test-machines $(ARGS)

results: $(VENV)/.stamp-all ## measure docs/results again and make the tables of docs/RESULTS.md of it
	$(BIN)/python benchmarks/results.py --measure $(ARGS)

tools: | $(VENV)/.stamp-venv ## install what the long tests need: compilers, ONNX Runtime for C++, Node.js, browsers, Graphviz, Slurm, npm packages
	@.ci/install-tools

docs: $(VENV)/.stamp-docs ## build the documentation as a site, in build/site; a broken link ends it
	$(BIN)/mkdocs build

lint: $(VENV)/.stamp-lint ## check style (ruff), types (mypy), Dockerfiles (hadolint), files of GitHub and CITATION.cff
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/*.Dockerfile
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff

clean: ## remove .venv, build outputs and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp-venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# A first training needs no extra; those of `all` would double the time of the installation.
$(VENV)/.stamp-base: setup.cfg pyproject.toml | $(VENV)/.stamp-venv
	@echo "Installing tfdecouple into $(VENV): about a minute the first time"
	$(PIP) install -e .
	@touch $@

$(VENV)/.stamp-%: setup.cfg pyproject.toml | $(VENV)/.stamp-venv
	@echo "Installing tfdecouple[$*] into $(VENV): about a minute the first time"
	$(PIP) install -e '.[$*]'
	@touch $@

# The servers have an environment of their own, because wandb would load pandas in every process of the other tests. The
# file shared.pth makes the packages of test-all visible in it.
$(VENV)/services/.stamp: $(VENV)/.stamp-test-all
	@echo "Installing the extra services into $(VENV)/services"
	$(BIN)/python -m venv $(VENV)/services
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(ls -d $(VENV)/services/lib/python3*/site-packages)/shared.pth"
	$(VENV)/services/bin/python -m pip --disable-pip-version-check --quiet install 'tfdecouple[services]'
	@touch $@

# This server of the protocol of Weights & Biases needs other versions of some packages than MLflow.
$(VENV)/openwandb/.stamp: | $(VENV)/.stamp-venv
	@echo "Installing openwandb into $(VENV)/openwandb"
	$(PYTHON) -m venv $(VENV)/openwandb
	$(VENV)/openwandb/bin/python -m pip --disable-pip-version-check --quiet install 'openwandb>=0.5,<0.6'
	@touch $@

# The nightly builds are packages with names of their own, so pip would install them beside the releases. Here they replace
# the releases, which fulfil the requirements of setup.cfg until then.
$(VENV)/nightly/.stamp: setup.cfg pyproject.toml
	@echo "Installing tfdecouple[test] with nightly builds into $(VENV)/nightly"
	$(PYTHON) -m venv --clear $(VENV)/nightly
	$(VENV)/nightly/bin/python -m pip --disable-pip-version-check --quiet install -e '.[test]'
	$(VENV)/nightly/bin/python -m pip --quiet uninstall --yes tensorflow keras tf-keras tensorflow-probability
	$(VENV)/nightly/bin/python -m pip --disable-pip-version-check --quiet install --pre \
		tf-nightly keras-nightly tf-keras-nightly tfp-nightly
	@touch $@

$(VENV)/%/.stamp: setup.cfg pyproject.toml constraints/%.txt
	@echo "Installing tfdecouple[test] with constraints/$*.txt into $(VENV)/$*"
	$(PYTHON) -m venv $(VENV)/$*
	$(VENV)/$*/bin/python -m pip --disable-pip-version-check --quiet install -e '.[test]' -c constraints/$*.txt
	@touch $@
