# Two commands on a fresh machine: `make demo` and `make test`. Each first creates its own environment in .venv.
# requirements.lock pins torch exactly, so that pip installs the CPU build where the package index offers one.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

# Other programs of the field have an environment of their own, beside the packages of .venv, for `make interop`.
# Programs without a package (ptypy, NX-cxi-ptycho, the adapters of PtychoPINN) are found in checkouts on
# PTYCHO_TORCH_PEER_PATH; measured files of public repositories in the folder PTYCHO_TORCH_INTEROP.
PEERS := .venv_peers
PEER_PACKAGES := cdtools-py ptychodus xptycho ptylab emdfile ptydy ptyrad phaserem
PEER_DEPENDENCIES := colorcet httpx joblib lxml narwhals pint psutil "py-pane==0.11.7" "pydantic-ai-slim[openai]" \
    python-dateutil scikit-learn threadpoolctl frozendict optree ipywidgets tqdm watchdog

.PHONY: demo test test-all interop peers lint env clean

demo: env
	$(RUN) -m ptycho_torch.demo --output_dir demo_output

test: env
	$(RUN) -m pytest -n 2 --ignore tests/integration
	$(RUN) -m pytest tests/integration  # alone, because it measures its own runtime

test-all: env
	$(RUN) -m pytest -n 2 -m "" --ignore tests/integration
	$(RUN) -m pytest -m "" tests/integration

interop: env peers
	PTYCHO_TORCH_PEER_PYTHON=$(PEERS)/bin/python $(RUN) -m pytest -m interop tests/interop

peers: $(PEERS)/.installed

$(PEERS)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -c 'import site; open(site.getsitepackages()[0] + "/packages.pth", "w").write("$(abspath $(VENV))/lib/python$(shell $(PYTHON) -c "import sys; print(*sys.version_info[:2], sep=chr(46))")/site-packages")'
	$(PEERS)/bin/python -m pip install --quiet --no-deps $(PEER_PACKAGES)
	$(PEERS)/bin/python -m pip install --quiet $(PEER_DEPENDENCIES)
	@touch $@

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
	rm -rf $(VENV) $(PEERS) demo_output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
