# `make demo` and `make test` do all the set-up themselves: a virtual environment in .venv, made again when
# pyproject.toml or constraints.txt is newer. PIP_ARGS is handed to pip, for example to choose a CPU build of torch:
#   make test PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'

PYTHON ?= python3
VENV ?= .venv
BASE_VENV ?= .venv-base
WORKERS ?= 2
PIP_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := $(VENV)/bin
BASE_BIN := $(BASE_VENV)/bin
READY := $(VENV)/.ready
BASE_READY := $(BASE_VENV)/.ready
TYPED := src/sottovoce/errors.py src/sottovoce/bits src/sottovoce/audio src/sottovoce/scores src/sottovoce/runtime \
         src/sottovoce/cli src/sottovoce/lab/lists.py src/sottovoce/lab/evaluate.py
BASE_TESTS := tests/bits tests/audio tests/scores tests/runtime
SOURCES := $(shell find src -type f -not -name '*.pyc')
PAIR := demo/corpus/synthetic01/01.ogg demo/corpus/synthetic01/02.ogg

.PHONY: demo test lint types architecture base tables report corpus clean

demo: $(READY)
	$(BIN)/sotto demo

# One thread a worker: workers that each take every core wait for one another.
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --durations 8

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy $(TYPED)

architecture: $(READY)
	$(BIN)/python -m pytest tests/test_architecture.py

tables: $(READY)
	$(BIN)/python scripts/tables.py

# One page of every result that is in the repository. scores_*.npz are written by `sotto evaluate --scores` on the five
# development lists, for the shipped model and for `sotto export models/ecapa256.safetensors`; inspect.json is
# `sotto inspect --json` of the shipped model.
report: $(READY)
	$(BIN)/sotto report $(wildcard results/*.json results/*.npz) --out docs/report.html

# The base install alone: nothing of torch or onnx may be there, and everything that verifies must work.
base: $(BASE_READY)
	$(BASE_BIN)/python -c "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, ('torch', 'onnx', 'safetensors'))))"
	$(BASE_BIN)/python -c "import sottovoce; print('sottovoce', sottovoce.__version__, 'without torch')"
	$(BASE_BIN)/sotto --help > /dev/null
	$(BASE_BIN)/sotto verify $(PAIR); test $$? -le 1
	$(BASE_BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt pytest hypothesis
	$(BASE_BIN)/python -m pytest $(BASE_TESTS)

# espeak-ng must be installed.
corpus: $(READY)
	$(BIN)/python scripts/make_demo_corpus.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_ARGS) -c constraints.txt -e '.[lab,dev]'
	touch $@

$(BASE_READY): pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(BASE_VENV)
	$(BASE_BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt .
	touch $@

clean:
	rm -rf $(VENV) $(BASE_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis demo/out
