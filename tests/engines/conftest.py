"""Fixtures of the engines' tests."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.forward import from_object


@pytest.fixture(scope="module")
def noiseless(scan_factory: Callable[..., Scan]) -> Scan:
    """A scan without noise whose probe has the power with which the true object predicts the patterns."""
    scan = scan_factory(n=36, size=24, seed=1, photons=0)
    assert scan.truth is not None
    expected = from_object(*(torch.from_numpy(a) for a in (scan.truth, scan.probe, scan.positions))).intensity
    scale = np.square(scan.amplitudes, dtype=np.float64).sum() / float(expected.sum())
    return replace(scan, probe=(scan.probe * np.sqrt(scale)).astype(np.complex64))
