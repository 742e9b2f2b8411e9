# `make conform` and `make test` are all that a newcomer needs; both make .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS := reports/results
OTHERS := native_module,nll,remapped,masked_mean,filtered,nan_guard

.PHONY: conform test lint clean

# Runs the suite, then the implementations that the reports compare beside the first two, and writes reports/.
# The reports are written even where something fails; the exit status still says that it did.
conform: $(VENV)/.installed
	@status=0; \
	$(BIN)/python -m pytest suite/ -q --impl native,maskedce --results $(RESULTS) || status=$$?; \
	$(BIN)/python -m pytest suite/ -q --impl $(OTHERS) --results $(RESULTS)/others || status=$$?; \
	$(BIN)/xentcheck report $(RESULTS) $(RESULTS)/others --to reports --excerpt README.md || status=$$?; \
	exit $$status

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests/ -q -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/xentcheck lint

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(RESULTS)
