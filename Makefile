# The README's commands. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: calibrate-gpu help demo test check bench fuzz test-browser test-exports test-lowest test-slow profiles validation docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(BIN)/plan: pyproject.toml
	@echo "setting up $(VENV), once: 0.8 GB with numpy, scipy, pandas, pyarrow and numba"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@echo "compiling the simulator, once: about a minute"
	@$(BIN)/python -m simulator.warm
	@$(BIN)/python -m compileall -q catalogs calibrate simulator planner app
	@touch $@

$(VENV)/.tests: $(BIN)/plan
	@echo "adding what the tests need, once: 2 GB and more, most of it torch"
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev,web]"
	@touch $@

demo: $(BIN)/plan ## set up, then run the main job on bundled data
	@$(BIN)/plan demo

# Three processes keep two cores busy: some tests wait for servers and schedules.
WORKERS ?= 3
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist worksteal
test: $(VENV)/.tests check ## set up, then run every check and test
	$(PYTEST)

check: $(VENV)/.tests ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The runtime dependencies at the lowest versions that pyproject.toml allows; the test tools at today's.
LOWEST := $(VENV)-lowest
QUICK := tests/catalogs tests/app/test_cli.py tests/app/test_estimate.py tests/app/test_runs.py tests/simulator/test_run.py \
    tests/simulator/test_sweep.py tests/simulator/test_traces.py tests/simulator/test_engine_against_theory.py \
    tests/planner/test_bill.py tests/planner/test_export.py tests/planner/test_milp_against_brute_force.py tests/report \
    tests/test_readers_survive.py tests/web/test_views.py
test-lowest: $(VENV)/.tests ## the quick tests with the lowest allowed version of every dependency
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --extra web --extra onnx --extra ray pyproject.toml -o $(LOWEST)/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python -r $(LOWEST)/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python -e ".[dev]" -c $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pytest -p no:cacheprovider $(QUICK)
	$(LOWEST)/bin/python -m pytest -p no:cacheprovider -m slow tests/simulator/test_ray_sweep.py

bench: $(VENV)/.tests ## speed and memory, printed
	$(BIN)/pytest -m bench -s

test-browser: $(VENV)/.tests ## the web app in a real Chromium
	$(BIN)/pytest -m "browser and not slow and not bench" tests/web

test-exports: $(VENV)/.tests ## exports read by SkyPilot, Karpenter, KEDA and the engines, fetched first
	$(BIN)/pytest -m exports tests/exports

SECONDS ?= 600
READERS ?=
fuzz: $(VENV)/.tests ## every reader under a coverage-guided fuzzer (SECONDS=600 for all together, READERS=...)
	$(BIN)/pip install --quiet --disable-pip-version-check "atheris>=3"
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(READERS)

PROPERTIES := tests/simulator/test_engine_equals_reference.py tests/simulator/test_engine_invariants.py \
    tests/simulator/test_disaggregation.py
test-slow: $(VENV)/.tests ## the long studies, and the engine's properties searched with many examples
	$(PYTEST) --hypothesis-profile=thorough $(PROPERTIES)
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
	$(BIN)/python -m calibrate.fitting.shipping $(DATA)

clean: ## remove what the targets made
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache
