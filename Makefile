# make quickstart   train on 5,000 digits and generate new ones (2 cores: under 15 minutes)
# make test         the fast tests
# make test-slow    the long ones
# make lint         style

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
LAUNCH := $(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(shell nproc)
QUICKSTART := runs/quickstart

.PHONY: install quickstart test test-slow lint

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --editable '.[dev]'
	touch $@

quickstart: $(INSTALLED)
	$(LAUNCH) train_vae.py --config configs/quickstart/vae.yaml
	$(LAUNCH) train_ldm.py --config configs/quickstart/ldm.yaml
	$(VENV)/bin/python examples/quickstart_report.py $(QUICKSTART)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest tests -m "not slow"

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest tests -m slow

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
