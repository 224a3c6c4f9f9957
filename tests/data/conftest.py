"""Scan files for tests: small, asymmetric, and easy to break in one place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def canonical_arrays(n: int = 5, size: int = 8, seed: int = 0) -> Arrays:
    """The arrays of a valid file in the canonical layout without metadata: Poisson counts, brightest in the middle."""
    rng = np.random.default_rng(seed)
    axis = np.arange(size) - size // 2
    envelope = np.exp(-(axis[:, None] ** 2 + 1.5 * axis**2) / (size / 3) ** 2)
    counts = rng.poisson(400 * envelope * rng.uniform(0.5, 1.5, (n, size, size)))
    field = rng.normal(size=(2, size, size))
    obj = rng.normal(size=(2, size + 20, size + 23))
    positions = rng.uniform(size // 2 + 1, size // 2 + 18, (2, n))
    return {
        "diffraction": np.sqrt(counts).astype(np.float32),
        "probeGuess": (envelope * (field[0] + 1j * field[1])).astype(np.complex64),
        "objectGuess": (obj[0] + 1j * obj[1]).astype(np.complex64),
        "xcoords": positions[0],
        "ycoords": positions[1],
    }


def legacy_arrays(n: int = 5, size: int = 8, seed: int = 0) -> Arrays:
    """The same scan in the legacy layout: (H, W, n), float64, complex128."""
    arrays = canonical_arrays(n, size, seed)
    return arrays | {
        "diffraction": np.moveaxis(arrays["diffraction"], 0, 2).astype(np.float64),
        "probeGuess": arrays["probeGuess"].astype(np.complex128),
        "objectGuess": arrays["objectGuess"].astype(np.complex128),
    }


@pytest.fixture
def canonical() -> Callable[..., Arrays]:
    """Makes the arrays of a valid canonical file from ``n``, ``size`` and ``seed``."""
    return canonical_arrays


@pytest.fixture
def legacy() -> Callable[..., Arrays]:
    """Makes the arrays of the same scan in the legacy layout."""
    return legacy_arrays


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays to an NPZ file and return its path."""

    def write_arrays(arrays: Arrays, name: str = "scan.npz") -> Path:
        path = tmp_path / name
        np.savez(path, **arrays)
        return path

    return write_arrays
