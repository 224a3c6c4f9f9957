# Two commands on a fresh machine: `make demo` and `make test`. Each makes its own environment in .venv first.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-all lint env clean

demo: env
	$(RUN) -m ptycho_torch.demo --output_dir demo_output

test: env
	$(RUN) -m pytest -n 2 --ignore tests/integration
	$(RUN) -m pytest tests/integration  # alone, because it tells how long it takes

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
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, and $(PYTHON) is {sys.version.split()[0]}: set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.lock
	$(RUN) -m pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) demo_output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
