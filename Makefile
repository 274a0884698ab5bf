# `make demo` and `make test` work on a fresh machine with Python >= 3.11 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-long doctest lint docs docs-full wheel-test matrix-test bench clean

demo: $(INSTALLED)
	$(BIN)/python examples/compare_inference.py --backend both --output results/demo

# Two workers with one thread each: more threads than cores would slow them down. One worker runs all
# tests of a file, so that JAX compiles their functions once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test: $(INSTALLED)
	$(PYTEST) --dist loadfile
	$(MAKE) -j 2 doctest lint

# The tests that `make test` leaves out. Trainings, and a second run of the tests of numbers, use JAX's
# ordinary optimizations, as for a user.
AS_USED := JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS=
TRAININGS := tests/test_programs_trained.py
NUMBERS := $(patsubst %,tests/test_%.py,densities dtypes own_samples sampling)
test-long: $(INSTALLED)
	$(PYTEST) --dist loadfile --long $(addprefix --ignore=,$(TRAININGS))
	$(AS_USED) $(PYTEST) --long $(TRAININGS)
	$(AS_USED) $(PYTEST) --dist loadfile --backend numpyro $(NUMBERS)

doctest: $(INSTALLED)
	$(PYTEST) --dist loadfile --doctest-modules --doctest-glob=README.md gs_ppl models README.md

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# Executes tutorials in their short form, where compiling takes most of the time; docs/_build caches them.
# `make docs-full PAGES=mixture` writes the record of one long form; without PAGES, all records.
docs: $(INSTALLED)
	JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

docs-full: $(INSTALLED)
	JAX_PLATFORMS=cpu $(BIN)/python docs/tutorials/_record.py $(PAGES)
	$(MAKE) docs

wheel-test: $(INSTALLED)
	tests/wheel/run.sh $(BIN)/python

# Tests another Python and other versions: make matrix-test PYTHON=python3.13
# CONSTRAINTS=constraints-lowest.txt SIDE=numpyro TESTS=tests/test_densities.py
CONSTRAINTS ?= constraints.txt
SIDE ?= both
matrix-test:
	tests/matrix/run.sh $(PYTHON) $(CONSTRAINTS) $(SIDE) $(TESTS)

# Use a machine that does nothing else. Each program writes one section of the same record.
bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/speed.py --output tests/benchmarks
	$(BIN)/python tests/benchmarks/steps.py --output tests/benchmarks
	$(BIN)/python tests/benchmarks/memory.py --output tests/benchmarks
	$(BIN)/python tests/benchmarks/soft_index.py --output tests/benchmarks
	$(BIN)/python tests/benchmarks/compare_calls.py --output tests/benchmarks
	$(BIN)/python tests/readme_tables.py

$(VENV)/.bench: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build dist results docs/_build docs/reference/api *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find gs_ppl models tests examples docs -name __pycache__ -prune -exec rm -rf {} +

# Exact versions, because an open range can install gigabytes of CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev,docs]'
	touch $@
