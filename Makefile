# The two commands of the README: `make demo` and `make test`. Both need Python 3.11+, venv and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench compat clean

demo: $(VENV)/.ready
	$(BIN)/eggs demo

test: lint
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/prune_speed.py

# Both ends of the ranges in pyproject.toml; some ends download gigabytes of torch.
compat:
	$(PYTHON) compat/check.py --record docs/results/compatibility.json
	$(BIN)/python docs/make_pages.py

# constraints.txt pins what the project is tested with; pyproject.toml keeps the ranges that users may have.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist out
