"""Fixtures for all tests: small scans without symmetry, models trained on them, and commands."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # arrays are small, and tests may run side by side

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    Arrays,
    CommandOutcome,
    Complex,
    SimulatedCase,
    evaluate_object,
    make_canonical_arrays,
    make_legacy_arrays,
    make_scan,
    make_simulated_case,
)

from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import save_scan


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest test first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.name != "test_every_command_of_the_pages_runs")


@pytest.fixture(scope="session")
def scan_factory() -> Callable[..., Scan]:
    """Makes a scan: see :func:`make_scan`."""
    return make_scan


@pytest.fixture(scope="session")
def scan() -> Scan:
    """36 patterns of 24 × 24 pixels."""
    return make_scan()


@pytest.fixture(scope="session")
def scan_file(tmp_path_factory: pytest.TempPathFactory, scan: Scan) -> Path:
    """The file of ``scan``, canonical."""
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    save_scan(path, scan)
    return path


@pytest.fixture(scope="session")
def legacy_file(tmp_path_factory: pytest.TempPathFactory, scan: Scan) -> Path:
    """The file of ``scan`` in the legacy layout: (N, N, n), float64, no metadata."""
    path = tmp_path_factory.mktemp("legacy") / "legacy.npz"
    save_scan(path, scan, "legacy")
    return path


@pytest.fixture(scope="session")
def train_model(scan_file: Path) -> Callable[..., Path]:
    """Trains a narrow network on ``scan_file`` for one epoch into a folder; settings may be changed by name."""
    from ptycho_torch.config.train import TrainConfig
    from ptycho_torch.train import train

    def train_to_folder(folder: Path, **settings: Any) -> Path:
        chosen: dict[str, Any] = {"max_epochs": 1, "batch_size": 6, "width": 4}
        chosen |= {"device": "cpu", "precision": "fp32", "logger": "none"}
        paths = {"train_data_file": scan_file, "output_dir": folder}
        train(TrainConfig(**(paths | chosen | settings)))
        return folder

    return train_to_folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, train_model: Callable[..., Path]) -> Path:
    """A bundle trained for ten epochs. Not to be written to."""
    return train_model(tmp_path_factory.mktemp("model") / "model", max_epochs=10)


@pytest.fixture
def restore_logging() -> Iterator[None]:
    """Commands set up the package's log; put it back as it was."""
    logger = logging.getLogger("ptycho_torch")
    kept = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = kept[:2]
    logger.setLevel(kept[2])


@pytest.fixture
def run_main(capsys: pytest.CaptureFixture[str], restore_logging: None) -> Callable[..., CommandOutcome]:
    """Call ``main`` of a command in this process: faster than a separate one."""

    def call_main(command: str, *words: str | Path) -> CommandOutcome:
        capsys.readouterr()
        code = import_module(f"ptycho_torch.{command}").main([str(word) for word in words])
        return CommandOutcome(code, *capsys.readouterr())

    return call_main


@pytest.fixture(scope="session")
def run_process() -> Callable[..., CommandOutcome]:
    """Runs a command line of python in a process of its own: ``command("-m", "ptycho_torch.train", …)``."""

    def run_command(*words: str | Path, cwd: Path | None = None, **environment: str) -> CommandOutcome:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return CommandOutcome(done.returncode, done.stdout, done.stderr)

    return run_command


@pytest.fixture(scope="session")
def simulated_case() -> SimulatedCase:
    """Without noise."""
    return make_simulated_case()


@pytest.fixture(scope="session")
def case_factory() -> Callable[..., SimulatedCase]:
    """Makes a known scan from ``size``, ``modes``, ``photons`` and ``noise``."""
    return make_simulated_case


@pytest.fixture(scope="session")
def sample_object() -> Callable[..., Complex]:
    """Samples the object's formula at any rows and columns."""
    return evaluate_object


@pytest.fixture
def canonical_arrays() -> Callable[..., Arrays]:
    """Makes the arrays of a valid canonical file from ``n``, ``size`` and ``seed``."""
    return make_canonical_arrays


@pytest.fixture
def legacy_arrays() -> Callable[..., Arrays]:
    """Makes the arrays of the same scan in the legacy layout."""
    return make_legacy_arrays


@pytest.fixture
def write_npz(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays to an NPZ file and return its path."""

    def write_arrays(arrays: Arrays, name: str = "scan.npz") -> Path:
        path = tmp_path / name
        np.savez(path, **arrays)
        return path

    return write_arrays
