# Two commands on a fresh machine: `make demo` and `make test`. Each first creates its own environment in .venv.
# requirements.lock pins torch exactly, so that pip installs the CPU build where the package index offers one.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-all lint env clean

demo: env
	$(RUN) -m ptycho_torch.demo --output_dir demo_output

test: env
	$(RUN) -m pytest -n 2 --ignore tests/integration
	$(RUN) -m pytest tests/integration  # alone, because it measures its own runtime

test-all: env
	$(RUN) -m pytest -n 2 -m "" --ignore tests/integration
	$(RUN) -m pytest -m "" tests/integration

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

env: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"$(PYTHON) is Python {sys.version.split()[0]}; expected 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.lock
	$(RUN) -m pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) demo_output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
