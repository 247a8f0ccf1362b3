# `make demo` and `make test` need Python 3.11+, venv and make, nothing else; so do the others.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The quick tests: pure functions and everything that runs in seconds. `make test` runs the rest too.
FAST := bench benchmarks calibration core correct method permute project recipe refine report score select sparse tune update

.PHONY: demo test fast slow lint docs bench compat clean

demo: $(VENV)/.demo
	$(BIN)/eggs demo

test: lint
	$(BIN)/python -m pytest -n auto

# While developing: lint and the quick tests, under two minutes on two cores.
fast: lint
	$(BIN)/python -m pytest -n auto $(addprefix tests/,$(FAST))

slow: $(VENV)/.ready
	$(BIN)/python -m pytest -n auto -m "slow and not gpu"

lint: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site in build/site; every warning, such as a broken link, is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/prune_speed.py

# Both ends of the ranges in pyproject.toml; some ends download gigabytes of torch.
compat:
	$(PYTHON) compat/check.py --record docs/results/compatibility.json
	$(BIN)/python tools/docs/make_pages.py

# What the demo needs: no tools of development, and of the extras only the processor's kernels.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]' -c constraints.txt
	touch $@

# constraints.txt pins what the project is tested with; pyproject.toml keeps the ranges that users may have.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $(VENV)/.demo $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist out
