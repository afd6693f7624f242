# make train    train a small PaLM on the text that comes with Python, then look at runs/palm-tiny/report.html
# make test     lint, types and tests
#
# DEVICE=cpu|cuda|tpu   which JAX is installed          RUN=runs/NAME   another run folder
# CONFIG=configs/…      another experiment              ARGS='--set …'  more arguments

DEVICE ?= cpu
CONFIG ?= configs/palm/tiny.py
RUN ?= runs/palm-tiny
ARGS ?=
ifndef PYTHON
PYTHON := $(shell requirements/find-python 3.11 3.12 3.13 2>/dev/null)
endif
VENV := .venv
# Which lock file belongs to the interpreter, and a mark that is renewed only when that file changes.
VERSION = $(if $(PYTHON),$(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])'))
INSTALLED = $(VENV)/installed-$(VERSION)-$(DEVICE)

.PHONY: train test test-slow test-latest lint types format install harness peers compilers plans bench

train: install
	$(VENV)/bin/pathways-lm train $(CONFIG) --run $(RUN) $(ARGS)

test: lint types compilers
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	$(VENV)/bin/python -m pytest -m slow

# The quick part of the suite on the newest JAX, which needs Python 3.12.
test-latest:
	@latest=$$(requirements/find-python 3.12) && \
	$(MAKE) install VENV=.venv-latest PYTHON="$$latest" && \
	.venv-latest/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: install
	$(VENV)/bin/mypy pathways_lm

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# EleutherAI's lm-evaluation-harness, for `pathways-lm harness`. Beside the lock files: it brings some forty packages
# that nothing else needs, pandas and datasets among them.
harness: install
	$(VENV)/bin/python -c 'import lm_eval' 2>/dev/null || \
	$(VENV)/bin/pip install --quiet -c requirements/$(VERSION)-$(DEVICE).txt lm-eval==0.4.13

# Other implementations, which some tests and benchmarks compare with and nothing else needs.
peers: harness
	$(VENV)/bin/python -c 'import torch, transformers, accelerate' 2>/dev/null || \
	$(VENV)/bin/pip install --quiet -c requirements/$(VERSION)-$(DEVICE).txt torch transformers accelerate

# The compilers of TPUs and GPUs, which `pathways-lm plan` runs without such a device. Beside the environment, as on a
# machine without their devices they would complain at every start; the versions are those of the lock files. There are
# some for Linux on x86 only, elsewhere tests of plans are skipped.
compilers: install
	@test -e $(VENV)/compilers/installed || test "$$(uname -sm)" != "Linux x86_64" || { \
	grep '^libtpu==' requirements/$(VERSION)-tpu.txt > $(VENV)/tpu.txt && \
	grep -E '^jax-cuda12-(plugin|pjrt)==' requirements/$(VERSION)-cuda.txt > $(VENV)/cuda.txt && \
	$(VENV)/bin/pip install --quiet --no-deps --target $(VENV)/compilers/tpu -r $(VENV)/tpu.txt && \
	$(VENV)/bin/pip install --quiet --no-deps --target $(VENV)/compilers/cuda -r $(VENV)/cuda.txt && \
	touch $(VENV)/compilers/installed; }

# The table of docs/plans.md, about half an hour.
plans: compilers
	$(VENV)/bin/python -m benchmarks.plans

# Against PyTorch and transformers on the CPU; writes docs/performance.md's tables.
bench: peers
	$(VENV)/bin/python -m benchmarks.run

install:
	@test -n "$(PYTHON)" || { requirements/find-python 3.11 3.12 3.13; exit 2; }
	@test -e $(INSTALLED) || $(MAKE) --no-print-directory $(INSTALLED)

$(INSTALLED): requirements/$(VERSION)-$(DEVICE).txt setup.py
	@echo "installing into $(VENV) for $(DEVICE), about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-deps -r requirements/$(VERSION)-$(DEVICE).txt
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/installed-*
	@touch $@
