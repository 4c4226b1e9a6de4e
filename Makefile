# make quickstart   set up, train the small toy world on the CPU, print the score board
# make test         set up, lint, types, import rules, every test (WORKERS=2 of them side by side; docs/testing.md)
# make selftest     plant the known bugs, see which gate catches each
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10 --durations-min=5
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test lint fast bench selftest gates clean

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet torch==2.13.0 -e '.[speech]'
	touch $@

.venv/.ready-dev: .venv/.ready
	$(BIN)/pip install --quiet torch==2.13.0 -e '.[speech,hf,track,dev]'
	touch $@

quickstart: .venv/.ready
	$(BIN)/muomni quickstart
	@echo "try: $(BIN)/muomni chat runs/quickstart --image runs/quickstart/data/world/images/question-valid-00003.png --text 'what colour is the star?'"

lint: .venv/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(SIDE_BY_SIDE)

fast: .venv/.ready-dev
	$(SIDE_BY_SIDE) -m "not slow"

bench: .venv/.ready-dev
	$(BIN)/python -m benchmarks.spine

selftest: .venv/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/muomni selftest --jobs $(WORKERS)

gates: .venv/.ready-dev
	mkdir -p build
	$(BIN)/muomni selftest --json > build/selftest.json
	$(BIN)/python -m muomni.selftest.page build/selftest.json > docs/gates.md

clean:
	rm -rf .venv build dist src/*.egg-info
