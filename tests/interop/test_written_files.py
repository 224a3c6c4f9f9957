"""Write scans and results, and let other programs read them.

Each program reads our file with its own reader and computes the patterns with its own forward model at its own
positions; they are the patterns of the truth only if positions, orientation, units and frames arrive unchanged.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import make_true_reconstruction
from truth import DETECTOR_PIXEL_M, DISTANCE_M, Truth, make_truth

import ptycho_torch as pt
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan

pytestmark = pytest.mark.interop

CheckFile = Callable[[str, Path, int], float]

SCANS = (
    ("cdtools", "scan.cxi", None),
    ("ptychodus", "product.h5", "ptychodus"),
    ("ptypy", "scan.ptyd", None),
    ("ptylab", "scan.hdf5", "ptylab"),
    ("ptychovit", "scan_para.hdf5", "ptychovit"),
)
"""Name of the program's file in `write_peer_files.py`, file name, and `format` if the suffix does not decide."""

RESULTS = (("ptychodus", "product.h5"), ("ptypy_result", "result.ptyr"))


def make_geometry(truth: Truth) -> Geometry:
    """Return the geometry of the photons of a truth."""
    return Geometry(
        wavelength_m=truth.wavelength_m,
        distance_m=DISTANCE_M,
        detector_pixel_m=(DETECTOR_PIXEL_M,) * 2,
        object_pixel_m=(truth.object_pixel_m,) * 2,
    )


def make_scan(truth: Truth) -> Scan:
    """Return the scan of a truth; two pixels of a corner are masked."""
    mask = np.ones(truth.probe.shape, bool)
    mask[2, 5:9] = False
    return Scan(
        np.sqrt(truth.counts.astype(np.float64)),
        truth.positions,
        truth.probe,
        mask,
        truth=truth.obj,
        photons_per_unit=1.0,
        geometry=make_geometry(truth),
    )


def make_result(truth: Truth) -> Reconstruction:
    """Return the true object and probe as a result."""
    result = make_true_reconstruction(truth.obj, truth.probe[None], truth.positions)
    return replace(result, photons_per_unit=1.0, geometry=make_geometry(truth))


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize(("name", "file", "kind"), SCANS)
def test_another_program_computes_the_patterns_of_a_written_scan(
    name: str, file: str, kind: str | None, side: int, tmp_path: Path, check_peer: CheckFile
) -> None:
    """Write a scan at integer positions and let the program read it."""
    pt.save_scan(tmp_path / file, make_scan(make_truth(side, "integer")), format=kind)
    assert check_peer(name, tmp_path / file, side) < 2e-3


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize(("name", "file"), RESULTS)
def test_another_program_computes_the_patterns_from_a_written_result(
    name: str, file: str, side: int, tmp_path: Path, check_peer: CheckFile
) -> None:
    """Write the true object and probe as a result and let the program read it."""
    make_result(make_truth(side, "integer")).save(tmp_path / file)
    assert check_peer(name, tmp_path / file, side) < 2e-3
