# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
HOOKED := .venv-hooked/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test check figures test-hooked clean

demo: .venv/.installed  ## the main job on the bundled reasoner, into outputs/demo
	$(BIN)/stepflow-tl demo --out outputs/demo

test: .venv/.installed  ## the tests
	$(BIN)/pytest

check: .venv/.installed  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

figures: demo  ## the pictures that the README shows
	mkdir -p figures
	cp outputs/demo/step_flow.png outputs/demo/failure_curves.png figures/

test-hooked: .venv-hooked/.installed  ## the core on HookedTransformer (transformer-lens 3.9)
	$(HOOKED)/pytest tests/test_models.py tests/test_tracking.py tests/test_generation.py \
		tests/saliency tests/interventions

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
