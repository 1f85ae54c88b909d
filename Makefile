# `make help` lists what there is. `make demo` and `make test` set up everything they need; a second call sets nothing up again.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
# a process per core, up to 4; tests are small, so one thread each
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint format bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## make .venv with the tested versions

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 with venv here; on Debian or Ubuntu: apt-get install python3 python3-venv"; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)  ## from this machine's own text to a chat model: pretraining, midtraining, SFT, RL and a conversation, about 5 minutes on two cores
	@$(RUN) -m nanochat.pipeline pipeline=demo
	@echo "go on with: $(RUN) -m nanochat.chat ckpt=demo-rl@latest, or side by side: $(RUN) -m nanochat.chat ckpt=demo-sft@latest ckpt=demo-rl@latest compare=true"

check: lint  ## format, lint, types and the quick tests, 2 minutes on two cores
	@$(PYTEST) -m "not slow and not gpu and not network"

test: lint  ## the same and every test that this machine can run, 12 to 17 minutes on two cores
	@$(PYTEST)

lint: $(READY)
	@$(RUN) -m ruff format --check --quiet . || { echo "error: run 'make format'"; exit 1; }
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m mypy

format: $(READY)  ## format and sort imports
	@$(RUN) -m ruff check --quiet --fix .
	@$(RUN) -m ruff format .

bench: $(READY)  ## speed of training, decoding, data and saving; peer=DIR peer_python=PYTHON: and of the original there, in turn
	@$(RUN) experiments/bench/bench.py $(if $(peer),peer=$(peer)) $(if $(peer_python),peer_python=$(peer_python)) $(bench)

clean:  ## remove .venv and caches; runs and token shards in NANOCHAT_BASE_DIR stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
