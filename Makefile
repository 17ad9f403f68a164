# Every command sets up what it needs and is quick when all is there.
# CIFAR10_ARCHIVE=/path/or/url replaces the download of the data.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
PORT ?= 5000
HOST := 127.0.0.1
MODELS ?=
PARTS ?=
TESTS ?= tests

.PHONY: help demo test test-long repro bench scale gpu-check ui plots tour lock check format requirements estimate

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: .venv/ready ## the whole pipeline on small nets and bundled data, in minutes
	@resnet-repro demo

test: .venv/ready ## the tests
	@pytest -q -n 2 --dist loadgroup -m "not slow and not gpu" $(TESTS)

test-long: .venv/ready ## the tests with their full counts -> reports/reliability.md
	@pytest -q -n 2 --dist loadgroup -m "not gpu" --full --reliability reports/reliability.md tests

# --allow-missing keeps rows whose weights are not here, and takes missing data for present as well: so the data
# comes first where something has to train.
repro: .venv/ready ## keep the committed rows, run what is missing or changed
	@dvc repro --quiet --single-item plan
	@if [ -n "$$(resnet-repro stale)" ]; then dvc repro prepare; fi
	@dvc repro --allow-missing

estimate: .venv/ready ## what `make repro` would train, and how long that takes here
	@resnet-repro estimate

bench: .venv/ready ## the engine against the plain loop and its own ceiling -> reports/speed.md
	@dvc repro --quiet prepare plan
	@python benchmarks/speed.py $(MODELS)

scale: .venv/ready ## what many runs cost and gain here (PARTS="packing farm noop publish simulate") -> reports/scale.md
	@dvc repro --quiet prepare plan
	@python benchmarks/scale.py $(PARTS)

gpu-check: .venv/ready ## the tests that need a CUDA device, then the bench
	@pytest -q -m gpu tests
	@$(MAKE) --no-print-directory bench

ui: .venv/ready ## MLflow's UI with every run in it (DEMO=1: the demo's; PORT=5000; HOST=0.0.0.0 lets others in)
	@cd $(if $(DEMO),.demo,.) && resnet-repro ui --host $(HOST) --port $(PORT)

plots: .venv/ready ## DVC's plots as a page that needs no network -> dvc_plots/index.html
	@resnet-repro plots

tour: .venv/ready ## run notebooks/tour.ipynb -> .cache/tour.ipynb, with its pictures, for any notebook viewer
	@mkdir -p .cache
	@jupyter execute --output=../.cache/tour notebooks/tour.ipynb
	@echo "It is in .cache/tour.ipynb: open it in VS Code or Jupyter, or notebooks/tour.ipynb to run it yourself"

lock: .venv/ready ## bring plans/, reports/ and dvc.lock up to date after an edit, without training
	@dvc repro --quiet --single-item plan
	@dvc repro --quiet --single-item report
	@dvc repro --quiet --single-item --force ablations/dvc.yaml:ablations # its baselines are no dependency
	@resnet-repro readme
	@git status --short README.md plans reports dvc.lock ablations

check: .venv/ready ## format, lint, types, tests, and that `make lock` would change nothing
	@ruff format --check .
	@ruff check .
	@mypy
	@dvc status --quiet plan report || { dvc status plan report; echo "run: make lock"; exit 1; }
	@$(MAKE) --no-print-directory test

format: .venv/ready ## format the code
	@ruff format . && ruff check --fix .

requirements: .venv/ready ## resolve requirements.lock anew
	@python -m pip install --quiet uv
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra dev pyproject.toml --output-file requirements.lock

# Its scripts name the Python that they were made for: where that is gone, as in a moved folder, all is made anew.
ifeq ($(wildcard $(shell sed -n '1s/^\#!//p' .venv/bin/resnet-repro 2>/dev/null)),)
.PHONY: .venv/ready
endif

# The first Python that is new enough, but not too new for the pinned packages.
.venv/ready: requirements.lock pyproject.toml
	@python=; for name in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
	  then python=$$name; break; fi; done; \
	if [ -z "$$python" ]; then echo "Python 3.11, 3.12 or 3.13 is needed and none was found"; exit 1; fi; \
	echo "Setting up .venv with $$($$python --version): a few minutes, once"; \
	$$python -m venv --clear .venv
	@# setuptools first, from the lock as well: it builds the one package that comes as source
	@sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > .venv/setuptools.lock
	@python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/setuptools.lock
	@python -m pip install --quiet --disable-pip-version-check --require-hashes --no-build-isolation -r requirements.lock
	@python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
