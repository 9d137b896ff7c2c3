PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
LAUNCH := $(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(shell nproc)
QUICKSTART := runs/quickstart
SPACE := build/space

.DEFAULT_GOAL := help
.PHONY: help install quickstart demo space test test-slow lint

help:  ## these lines
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## into .venv, with everything that tests and checks need

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --editable '.[dev]'
	touch $@

quickstart: $(INSTALLED)  ## train on 5,000 digits and write those asked for (2 cores: four minutes)
	$(LAUNCH) train_vae.py --config configs/quickstart/vae.yaml
	$(LAUNCH) train_ldm.py --config configs/quickstart/ldm.yaml
	$(VENV)/bin/python examples/quickstart_report.py $(QUICKSTART)

demo: $(INSTALLED)  ## a page to try the shipped pipeline on, at http://127.0.0.1:7860
	$(VENV)/bin/python app.py

space:  ## the same page as a Hugging Face Space, in build/space
	rm -rf $(addprefix $(SPACE)/,demo fq_ldm checkpoints)
	mkdir -p $(SPACE)/checkpoints
	cp -r spaces/. app.py demo fq_ldm $(SPACE)
	cp -r pipelines configs $(SPACE)/fq_ldm
	cp -r checkpoints/celeba64 $(SPACE)/checkpoints

# Most tests are too small for several threads: a process for each core, of one thread each, is twice as fast.
test: $(INSTALLED)  ## the fast tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests -m "not slow" --numprocesses auto --dist loadfile

test-slow: $(INSTALLED)  ## the long ones
	$(VENV)/bin/python -m pytest tests -m slow

# The layers are those of what is installed: two of its packages lie beside fq_ldm/.
lint: $(INSTALLED)  ## style, types of the science, and the layers that imports must keep
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	rm -rf build/lint
	$(VENV)/bin/python -c 'import setuptools; setuptools.setup()' --quiet build_py --build-lib build/lint
	cd build/lint && ../../$(VENV)/bin/lint-imports ../../pyproject.toml
