# make train   trains a small ViT on scikit-learn's digits, evaluates and saves it (runs/digits)
# make test    runs the tests
# make demo    opens the app on the model just trained, or on MODEL=...
# make check   lint, format and types
#
# Everything is installed into VENV on first use, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= runs/digits
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install train test demo check

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

train: $(STAMP)
	$(BIN)/vitrail train --dataset digits --output_dir runs/digits
	@echo "  make demo"

test: $(STAMP)
	$(BIN)/python -m pytest

demo: $(STAMP)
	$(BIN)/vitrail demo --model $(MODEL)

# Type checkers cannot see through an editable installation, so they get an ordinary one.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/installed .
	$(BIN)/pyright --pythonpath $(BIN)/python
