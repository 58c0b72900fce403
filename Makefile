# Targets install what they need into .venv, with the versions of constraints.txt. `make help` lists them.

PYTHON ?= python3
VENV := .venv
MODEL ?= pbmc3k
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-newest docs tutorials lint pretrained benchmark-quality benchmark-speed benchmark-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.package ## generate blood cells with the shipped model, and judge them beside real ones; MODEL=SCLDM trains one first
	$(PY) -m demo.make_demo --model $(MODEL)

test: $(VENV)/.test ## run the tests, in two processes
	$(PY) -m pytest -n 2 --dist loadfile

test-newest: ## run the tests with the newest libraries, in .venv-newest; with annbatch if PYTHON is 3.12 or later
	$(MAKE) test VENV=.venv-newest INSTALL=".venv-newest/bin/python -m pip install --upgrade 'annbatch; python_version >= \"3.12\"'"

docs: $(VENV)/.doc ## build the site into docs/_build/html; warnings are errors
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

tutorials: $(VENV)/.doc ## run every notebook in place, two at a time on two cores, then build the site; downloads the data sets
	$(PY) docs/run_tutorials.py
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

lint: $(VENV)/.lint ## check style, format, imports between packages, and types of the public interface
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(PY) -m mypy

pretrained: $(VENV)/.test ## make the pretrained models again: train, judge, write their cards; half an hour of one core
	$(PY) -m benchmarks.pretrained
	$(PY) -m benchmarks.pages

benchmark-quality: $(VENV)/.package ## compare all models and simple baselines by all metrics; takes hours
	$(PY) -m benchmarks.quality --picture docs/_static/compare.png
	$(PY) -m benchmarks.pages

benchmark-speed: $(VENV)/.test ## measure speed and memory on this processor, and write the tables of the guide; 15 minutes on two quiet cores
	$(PY) -m benchmarks.speed
	$(PY) -m benchmarks.pages

benchmark-gpu: $(VENV)/.test ## measure speed and memory on a CUDA device, and compare it with the CPU; 10 minutes
	$(PY) -m benchmarks.speed.gpu

clean: ## remove what the other targets made
	rm -rf $(VENV) docs/_build docs/generated docs/api/generated docs/tutorials build dist benchmarks/cells demo/synthetic.h5ad demo/umap.png demo/quality.csv demo/report.html
	rm -rf .venv-newest .pytest_cache .ruff_cache .mypy_cache

# Each stamp file means that an installation is complete and newer than the files that define it.
# Dependency groups need pip 25.1 or newer; Python ships an older one.
$(VENV)/.package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --upgrade "pip>=25.1"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test $(VENV)/.doc $(VENV)/.lint: $(VENV)/.%: $(VENV)/.package
	$(INSTALL) --group $*
	@touch $@
