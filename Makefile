# make demo | lab | test | check | setup | readme | constraints     (see CONTRIBUTING.md)
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
CODE := tests scripts setup.py
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo lab test check setup readme constraints lint browser

demo: setup
	$(BIN)/vdmini_demo --out out/demo

lab: setup
	$(BIN)/jupyter lab nbs

test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --durations 10

check: setup
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python scripts/readme.py
	$(BIN)/pytest -q -m "not slow and not browser"

readme: setup
	$(BIN)/python scripts/readme.py

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

setup: .venv/.ready

.venv/.ready: settings.ini constraints.txt setup.py
	@[ -n "$(PYTHON)" ] || { echo "vdmini needs Python 3.11 or newer, and found no python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vdmini needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt setuptools
	$(BIN)/pip install --no-build-isolation -c constraints.txt -e ".[dev]"
	@touch $@

# The browser test asks for Chromium; where it cannot be had the test is skipped by name.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -yqq chromium >/dev/null; } || \
	  echo "no chromium here, and none could be installed: the browser test will be skipped"

# From the ranges in settings.ini to the newest versions that fit them, torch held where it is: it is large, and each
# machine has its own build of it. To move it: make constraints KEEP=torch==2.14.0. The packages that a GPU build brings
# with it stay out of the file, so that any machine resolves it.
KEEP ?= $(shell grep '^torch==' constraints.txt)
constraints:
	$(PYTHON) scripts/constraints.py $(KEEP)
