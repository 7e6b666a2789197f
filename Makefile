# Everything from nothing but python3 (3.11 or newer, with venv): `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install demo demo-smol smol test test-slow study evidence evidence-smol style format clean

help:
	@echo "make demo       run SparseMM, SnapKV and FullKV on the embedded reader (one to four minutes after installation)"
	@echo "make smol       build smol-reader, which has a pretrained language model (some minutes, once)"
	@echo "make demo-smol  the demo on it (one to five minutes after that)"
	@echo "make test       run the tests"
	@echo "make test-slow  run the tests that take a minute or more each"
	@echo "make study      every method over budgets on the embedded reader, as docs/tiny-reader.md shows it"
	@echo "make evidence   the paper's evidence on the embedded reader: docs/evidence.md again"
	@echo "make evidence-smol  the same on smol-reader: docs/smol-evidence.md again"
	@echo "make style      check style (ruff)"
	@echo "make format     apply the formatter"

install: $(READY)

$(READY): setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/sparsemm demo

smol: $(READY)
	$(BIN)/sparsemm readers build smol-reader
	$(BIN)/sparsemm readers build smol-reader-aligned

demo-smol: smol
	$(BIN)/sparsemm demo --reader smol-reader --budget 64 --limit 4 --output runs/demo-smol

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n 2

study: $(READY)
	$(BIN)/sparsemm study run studies/tiny.yaml --workers 2
	$(BIN)/sparsemm study show runs/tiny
	$(BIN)/sparsemm report runs/tiny
	$(BIN)/sparsemm study figures runs/tiny --out docs/figures

evidence: $(READY)
	$(BIN)/sparsemm study run studies/evidence.yaml --workers 2
	$(BIN)/sparsemm study figures runs/evidence --out docs/figures/evidence
	$(BIN)/python -m sparsemm_eval.evidence --out docs/evidence.md

evidence-smol: smol
	$(BIN)/sparsemm study run smol/evidence --workers 2
	$(BIN)/sparsemm study figures runs/smol-evidence --out docs/figures/smol-reader/evidence
	$(BIN)/python -m sparsemm_eval.evidence --reader smol-reader --study runs/smol-evidence --effort half --out docs/smol-evidence.md

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis runs
