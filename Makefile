# The README's commands. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: calibrate-gpu help demo test check bench test-slow profiles validation docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/plan: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@echo "compiling the simulator, once"
	@$(BIN)/python -m simulator.warm
	@touch $@

$(VENV)/.tests: $(BIN)/plan
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,web]"
	@touch $@

demo: $(BIN)/plan ## set up, then run the main job on bundled data
	@$(BIN)/plan demo

test: $(VENV)/.tests check ## set up, then run every check and test
	$(BIN)/pytest

check: $(VENV)/.tests ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.tests ## speed and memory, printed
	$(BIN)/pytest -m bench -s

test-browser: $(VENV)/.tests ## the web app in a real Chromium
	$(BIN)/pytest -m browser tests/web

test-exports: $(VENV)/.tests ## exports read by SkyPilot, Karpenter, KEDA and the engines, fetched first
	$(BIN)/pytest -m exports tests/exports

test-slow: $(VENV)/.tests ## the long studies
	$(BIN)/pytest -m slow -s

DATA ?= ../shared/data
validation: $(VENV)/.tests ## docs/validation.md from published measurements (DATA=folder)
	$(BIN)/python -m app.validation --data $(DATA)

# Everything that wants a GPU, in one command; DEVICE=cpu SHAPE=tiny RUN_FLAGS=--quick tries it without one.
DEVICE ?= cuda
SHAPE ?= 8b
SERVE_PYTHON ?= $(BIN)/python
RUN_FLAGS ?=
LOOP_FLAGS ?= --max-num-batched-tokens 2048 --num-gpu-blocks 8192 --concurrency 1,4,16,64 --check-concurrency 8,32
calibrate-gpu: $(VENV)/.tests ## measure this GPU, fit it, check it against a real engine; results in out/
	mkdir -p out
	$(BIN)/plan calibrate run --device $(DEVICE) $(RUN_FLAGS) -o out/measured-$(DEVICE).jsonl
	$(BIN)/plan calibrate fit out/measured-$(DEVICE).jsonl -o out/kernels-$(DEVICE).json
	$(BIN)/plan calibrate loop --serve auto --python $(SERVE_PYTHON) --device $(DEVICE) --shape $(SHAPE) $(LOOP_FLAGS) \
	    --against out/kernels-$(DEVICE).json -o out/server-$(DEVICE).json

docs: $(VENV)/.tests ## the command reference, and the output that the pages show
	$(BIN)/python -m app.cli.reference > docs/reference.md
	$(BIN)/python -m tests.docs_blocks --write

profiles: $(BIN)/plan ## rebuild the shipped profiles from published tables (DATA=folder)
	$(BIN)/python -m calibrate.shipping $(DATA)

clean: ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
