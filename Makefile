# `make conform` and `make test` are all that a newcomer needs; both make .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDER_VENV := .venv-older
RESULTS := reports/results
# Whose costs the reports compare, and what else to hand to pytest, such as ARGS=--resume.
MEASURED := native,maskedce,maskedce_inplace,nan_guard,filtered
PROFILES := quick,lm,segmentation,tagging,classification,sweeps,cuda
MEASURED_LINEAR := native,maskedce,linear_maskedce,linear_cross_entropy,linear_cross_entropy_chunked
ARGS :=
OTHERS := native_module,nll,remapped,masked_mean,filtered,nan_guard,maskedce_inplace,linear_maskedce,linear_cross_entropy,linear_cross_entropy_chunked

# How many libraries `make field` runs at the same time, and which; all, if left out.
JOBS := 2
LIBRARIES :=

.PHONY: conform test test-all mutants older-torch speed field baseline gate gate-trials lint clean

# Runs the suite, then the implementations that the reports compare beside the first two, and writes reports/.
# The reports are written even where something fails; the exit status still says that it did.
conform: $(VENV)/.installed
	@status=0; \
	$(BIN)/python -m pytest suite/ -q -n 2 --impl native,maskedce --benchmark-skip --results $(RESULTS) || status=$$?; \
	$(BIN)/python -m pytest suite/ -q -n 2 --impl $(OTHERS) --benchmark-skip --results $(RESULTS)/others || status=$$?; \
	$(BIN)/xentcheck report $(RESULTS) $(RESULTS)/others --to reports --excerpt README.md || status=$$?; \
	exit $$status

# Time and memory over all profiles, and their pages: the better part of an hour on a quiet machine.
speed: $(VENV)/.installed
	@status=0; \
	$(BIN)/python -m pytest suite/test_speed.py suite/test_memory.py -q --impl $(MEASURED) --profile $(PROFILES) --results $(RESULTS)/speed $(ARGS) || status=$$?; \
	$(BIN)/python -m pytest suite/test_speed.py suite/test_memory.py -q --impl $(MEASURED_LINEAR) --profile linear --results $(RESULTS)/speed-linear $(ARGS) || status=$$?; \
	$(BIN)/xentcheck report $(RESULTS)/speed $(RESULTS)/speed-linear --to reports || status=$$?; \
	exit $$status

# Installs the losses of other libraries and measures those that are not measured with this edition and these cases; can be interrupted and called again.
field: $(VENV)/.installed
	$(BIN)/xentcheck field $(LIBRARIES) --jobs $(JOBS)

# What `make gate` holds later runs to: one whole run, and the quick speed cases in two more processes.
baseline: $(VENV)/.installed
	$(BIN)/python -m pytest suite/ -q --impl native,maskedce --results $(RESULTS)/baseline-1
	$(BIN)/python -m pytest suite/test_speed.py -q --impl native,maskedce --results $(RESULTS)/baseline-2
	$(BIN)/python -m pytest suite/test_speed.py -q --impl native,maskedce --results $(RESULTS)/baseline-3
	$(BIN)/xentcheck baseline $(RESULTS)/baseline-1 $(RESULTS)/baseline-2 $(RESULTS)/baseline-3 --to reports/baseline.json

gate: $(VENV)/.installed
	$(BIN)/python -m pytest suite/ -q --impl native,maskedce --gate reports/baseline.json $(ARGS)

# How often the gate is right. Some 110 runs of it, resumable; needs a machine that does nothing else.
gate-trials: $(VENV)/.installed
	$(BIN)/python tests/studies/gate_trials.py --folder $(RESULTS)/gate-trials
	$(BIN)/python tests/studies/gate_trials.py --folder $(RESULTS)/gate-trials --report reports/gate.md

# What takes seconds alone is left to test-all. Two workers share two cores, so a thread that waits for another is not to keep one busy.
test: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/ -q -n 2 -m "not slow"

test-all: $(VENV)/.installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/ -q -n 2 --durations=10

# Puts every case to every mutant and writes reports/mutants.md; takes a while, and goes on where it was interrupted.
mutants: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/studies/kill_matrix.py

# The shipped implementations and tests/lookalikes/ on an older torch, in an environment of its own; writes reports/older-torch.md.
older-torch: $(VENV)/.installed $(OLDER_VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/studies/older_torch.py ask $(RESULTS)-torch/pinned
	OMP_NUM_THREADS=1 $(OLDER_VENV)/bin/python tests/studies/older_torch.py ask $(RESULTS)-torch/older
	$(BIN)/python tests/studies/older_torch.py page $(RESULTS)-torch/pinned $(RESULTS)-torch/older reports/older-torch.md

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/xentcheck lint --answers
	$(BIN)/python -m mypy

$(VENV)/.installed: pyproject.toml suite/maskedce/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e suite/maskedce -e ".[dev]"
	touch $@

$(OLDER_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDER_VENV)
	$(OLDER_VENV)/bin/python -m pip install --quiet torch==2.6.0 -e suite/maskedce -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDER_VENV) $(RESULTS) $(RESULTS)-mutants $(RESULTS)-torch
