# `make demo` and `make test` work in a fresh clone with nothing but python3 (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
SETUP := $(VENV)/.installed
SETUP_DOCS := $(VENV)/.installed-docs
EXAMPLES := $(filter-out %/phase_study.py,$(wildcard examples/*.py))
BENCHMARKS := $(filter-out %/common.py %/published_cells.py,$(wildcard examples/benchmarks/*.py))

.PHONY: demo test test-slow docs lint format examples benchmarks setup clean

demo: $(SETUP)
	$(BIN)/clease-nn demo

# one thread a process: the work is small, and threads only wait for one another
test: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# every script in its short mode
examples: $(SETUP)
	@set -e; for script in $(EXAMPLES) $(BENCHMARKS); do \
	    echo "== $$script --short"; $(BIN)/python $$script --short; done

# every figure of docs/benchmarks.md but those of the published models, about an hour and a half on
# one core; `python examples/benchmarks/published.py all` makes those, in two hours. The long ones
# of thermodynamics.py and phase_map.py take half an hour each
TRAININGS := ising10:150 ising10:480 ising5:75 cuau16:60 cuau64:180 ternary32:180
benchmarks: $(SETUP)
	@set -e; mkdir -p out; export OMP_NUM_THREADS=1; \
	for script in $(filter-out %/training.py %/published.py,$(BENCHMARKS)); do \
	    echo "== $$script"; \
	    $(BIN)/python $$script --out out/$$(basename $$script .py).json; done; \
	for run in $(TRAININGS); do \
	    echo "== training $$run"; \
	    $(BIN)/python examples/benchmarks/training.py $${run%%:*} --seconds $${run##*:} \
	        --out out/training-$${run%%:*}-$${run##*:}.json; done

docs: $(SETUP_DOCS)
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

setup: $(SETUP)

# torch first and alone, so that nothing else can pull another build of it
$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	$(PIP) torch==2.13.0
	$(PIP) -e '.[dev]'
	@touch $@

$(SETUP_DOCS): $(SETUP)
	$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) docs/_build docs/api build dist *.egg-info
