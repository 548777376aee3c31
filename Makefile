# make train   trains a small ViT on scikit-learn's digits, evaluates and saves it (runs/digits)
# make test    runs the tests, on up to four processors (under 10 minutes on two)
# make demo    opens the app on the model just trained, or on MODEL=...
# make bench   measures speed beside transformers, timm, vit-pytorch and ONNX Runtime (under 10 minutes on 2 cores)
# make check   lint, format and types
#
# Everything is installed into VENV on first use, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= runs/digits
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install train test demo bench check

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

train: $(STAMP)
	$(BIN)/vitrail train --dataset digits --output_dir runs/digits
	@echo "  make demo"

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

demo: $(STAMP)
	$(BIN)/vitrail demo --model $(MODEL)

bench: $(STAMP)
	$(BIN)/python benchmarks/forward.py --variants S/16 --batches 1 --rounds 9 --name forward-s16-1
	$(BIN)/python benchmarks/forward.py --variants S/16 --batches 16 --ways fp32 fp32-switched bf16 --rounds 4 --name forward-s16-16
	$(BIN)/python benchmarks/forward.py --variants B/16 --batches 1 --ways fp32 bf16 --rounds 5 --name forward-b16-1
	$(BIN)/python benchmarks/train_step.py --rounds 2 --no-memory
	$(BIN)/python benchmarks/input_pipeline.py --rounds 15
	$(BIN)/python benchmarks/rollout.py --rounds 2
	$(BIN)/python benchmarks/startup.py --rounds 2
	$(BIN)/python benchmarks/scaling.py --batches 1 16 --images 64 --rounds 2
	$(BIN)/python benchmarks/trainer.py --images 4000 --epochs 1

# Type checkers cannot see through an editable installation, so they get an ordinary one.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/installed .
	$(BIN)/pyright --pythonpath $(BIN)/python
