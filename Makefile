# `make conform` and `make test` are all that a newcomer needs; both make .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDER_VENV := .venv-older
RESULTS := reports/results
OTHERS := native_module,nll,remapped,masked_mean,filtered,nan_guard

.PHONY: conform test mutants older-torch lint clean

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

# Puts every case to every mutant and writes reports/mutants.md; takes a while, and goes on where it was interrupted.
mutants: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_matrix.py

# The shipped implementations and tests/lookalikes/ on an older torch, in an environment of its own; writes reports/older-torch.md.
older-torch: $(VENV)/.installed $(OLDER_VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/older_torch.py ask $(RESULTS)-torch/pinned
	OMP_NUM_THREADS=1 $(OLDER_VENV)/bin/python tests/older_torch.py ask $(RESULTS)-torch/older
	$(BIN)/python tests/older_torch.py page $(RESULTS)-torch/pinned $(RESULTS)-torch/older reports/older-torch.md

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/xentcheck lint

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(OLDER_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDER_VENV)
	$(OLDER_VENV)/bin/python -m pip install --quiet torch==2.6.0 -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDER_VENV) $(RESULTS) $(RESULTS)-mutants $(RESULTS)-torch
