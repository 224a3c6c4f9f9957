"""What tests of every room share: small scans without symmetry, models trained on them, and commands."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # arrays are small, and tests may run side by side

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.data.npz import save_scan
from ptycho_torch.data.scan import Scan


class Outcome(NamedTuple):
    """What a command leaves on the terminal."""

    code: int
    out: str
    err: str


def a_probe(size: int, modes: int = 1) -> NDArray[np.complex64]:
    """A bright spot with a curved phase and no symmetry; further modes are weaker and of another shape."""
    y, x = np.mgrid[:size, :size] - size / 2
    spot = np.exp(-((y - 1) ** 2 + 1.3 * (x + 0.5) ** 2 + 0.3 * x * y) / (2 * (size / 6) ** 2))
    curved = spot * np.exp(2j * (y**2 + 0.7 * x**2 + 0.5 * y) / size)
    return np.stack([curved * (0.3 * (x + mode) / size * 4) ** mode for mode in range(modes)]).astype(np.complex64)


def an_object(rows: int, columns: int) -> NDArray[np.complex128]:
    """Amplitude 0.7 to 1 and phase up to 1 rad: waves, and a bar that no rotation or mirror keeps."""
    y, x = np.mgrid[:rows, :columns]
    texture = np.sin(y / 3.1) * np.cos(x / 4.3 + y / 11) / 2 + 0.5
    bar = (np.abs(y - 0.4 * rows) < 3) & (x > 0.3 * columns)
    return (1 - 0.3 * texture) * np.exp(1j * (0.6 * texture + 0.4 * bar))


def make_scan(n: int = 36, size: int = 24, seed: int = 0, modes: int = 1, photons: float = 2e4) -> Scan:
    """A jittered raster of ``n`` positions, about 4 px apart, over an object with room to spare; Poisson counts.

    ``photons`` is the mean total of a pattern; 0 leaves out the counting noise (at 1e4 photons).
    """
    import torch

    from ptycho_torch.physics.forward import from_object

    rng = np.random.default_rng(seed)
    columns = int(np.ceil(np.sqrt(n)))
    grid = np.stack(np.divmod(np.arange(n), columns), 1) * 4.0
    positions = grid + rng.uniform(-1, 1, (n, 2)) + size // 2 + 4
    obj = an_object(*(int(extent) + size for extent in positions.max(0) + 4)).astype(np.complex64)
    probe = a_probe(size, modes)
    lit, light = (torch.from_numpy(array).to(torch.complex128) for array in (obj, probe))
    expected = from_object(lit, light, torch.from_numpy(positions)).intensity.numpy()
    expected *= (photons or 1e4) / expected.sum((1, 2)).mean()
    counts = rng.poisson(expected) if photons else expected
    amplitudes = np.fft.fftshift(np.sqrt(counts), axes=(1, 2)).astype(np.float32)
    return Scan(amplitudes, positions, probe, truth=obj, photons_per_unit=1.0)


@pytest.fixture(scope="session")
def scan_of() -> Callable[..., Scan]:
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
def train_to(scan_file: Path) -> Callable[..., Path]:
    """Trains a narrow network on ``scan_file`` for one epoch into a folder; settings may be changed by name."""
    from ptycho_torch.core.config import TrainConfig
    from ptycho_torch.train import train

    def train_to_folder(folder: Path, **settings: Any) -> Path:
        chosen: dict[str, Any] = {"max_epochs": 1, "batch_size": 6, "width": 4}
        chosen |= {"device": "cpu", "precision": "fp32", "logger": "none"}
        paths = {"train_data_file": scan_file, "output_dir": folder}
        train(TrainConfig(**(paths | chosen | settings)))
        return folder

    return train_to_folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, train_to: Callable[..., Path]) -> Path:
    """A bundle trained for ten epochs. Not to be written to."""
    return train_to(tmp_path_factory.mktemp("model") / "model", max_epochs=10)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Commands set up the package's log; put it back as it was."""
    logger = logging.getLogger("ptycho_torch")
    kept = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = kept[:2]
    logger.setLevel(kept[2])


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], own_logging: None) -> Callable[..., Outcome]:
    """Calls ``main`` of a verb in this process: quick, where the process boundary does not matter."""

    def call_main(verb: str, *words: str | Path) -> Outcome:
        capsys.readouterr()
        code = import_module(f"ptycho_torch.{verb}").main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return call_main


@pytest.fixture(scope="session")
def command() -> Callable[..., Outcome]:
    """Runs a command line of python in a process of its own: ``command("-m", "ptycho_torch.train", …)``."""

    def run_command(*words: str | Path, cwd: Path | None = None, **environment: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run_command
