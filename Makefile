# Two busy processes on two cores slow each other down a hundredfold unless idle OpenMP threads sleep.
export OMP_WAIT_POLICY = PASSIVE
export NO_MKDOCS_2_WARNING = 1
PYTHON ?= python3
BIN = .venv/bin
INSTALL = start=$$(date +%s); $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
TOLD = && touch $@ && echo "Set-up took $$(($$(date +%s) - start)) s."

.PHONY: demo demo-robust test test-zoo lint bench docs clean

demo: .venv/.demo  ## a teacher, students distilled from it with five losses, a table and pictures
	$(BIN)/limbeck demo

demo-robust: .venv/.robust  ## three methods of adversarial training, judged by AutoAttack
	$(BIN)/limbeck demo --robust

test: .venv/.dev  ## lint, types, documentation, doctests, tests, examples
	$(MAKE) --no-print-directory lint
	$(BIN)/mkdocs build --quiet --strict
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --doctest-modules src tests

test-zoo: .venv-zoo/.zoo  ## networks of timm, torchvision and transformers, beside the full build of torch (5.4 GB)
	OMP_NUM_THREADS=1 .venv-zoo/bin/python -m pytest -n 2 tests/zoo

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev  ## timings and memory, on a GPU if there is one
	$(BIN)/python -m benchmarks

docs: .venv/.dev  ## the site, in site/
	$(BIN)/mkdocs build --strict

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Setting up .venv ..."
	@$(INSTALL) ".[cli,data,viz]" $(TOLD)

.venv/.robust: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Setting up .venv with AutoAttack ..."
	@$(INSTALL) ".[cli,data,viz,autoattack]" $(TOLD) && touch .venv/.demo

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Setting up .venv for development ..."
	@$(INSTALL) ".[dev]" $(TOLD) && touch .venv/.demo .venv/.robust

.venv-zoo/.zoo: pyproject.toml constraints-zoo.txt
	@echo "Setting up .venv-zoo, which takes 5.4 GB ..."
	@$(PYTHON) -m venv .venv-zoo
	@start=$$(date +%s); .venv-zoo/bin/python -m pip install --quiet --constraint constraints-zoo.txt --editable ".[zoo]" $(TOLD)

clean:
	rm -rf .venv .venv-zoo site
