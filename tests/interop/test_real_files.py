"""Read measured files of public repositories; each test is skipped by the name of its file where that is absent.

The folder `PTYCHO_TORCH_INTEROP` holds them under their names: minimal.cxi (cxidb/CXI),
PETRAIII_P25_Near_Field_Ptycho.cxi (cdtools), scan_scan1.ptyr (PtychographyTools), dls_i08_probe.ptyr (ptypy tutorials),
probe_PSI.mat (fold_slice), lamni/orchestra.dat (ptychodus).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ptycho_torch as pt
from ptycho_torch.core.errors import DataError

pytestmark = pytest.mark.interop

RealFile = Callable[[str], Path]


def test_a_result_of_ptypy_of_2020_is_a_reconstruction(real_file: RealFile) -> None:
    """Place 92 positions at 6.2 keV so that every patch of 128² pixels is inside the object."""
    result = pt.load_reconstruction(real_file("scan_scan1.ptyr"))
    assert result.object.shape == (402, 416)
    assert result.probe.shape == (1, 128, 128)
    assert result.geometry is not None
    assert result.geometry.object_pixel_m == pytest.approx((6.35820101e-8,) * 2)
    assert result.geometry.wavelength_m == pytest.approx(1.9997e-10, rel=1e-4)
    corners = np.floor(result.positions - 64 + 0.5)
    assert len(corners) == 92
    assert corners.min() >= 0
    assert (corners + 128 <= result.object.shape).all()


def test_the_near_field_of_cdtools_is_refused(real_file: RealFile) -> None:
    """State the evidence: no field of the file names the propagation, but the shadows move with the positions."""
    with pytest.raises(DataError, match=r"a near field: the patterns are shadow images .*; expected far-field"):
        pt.load_scan(real_file("PETRAIII_P25_Near_Field_Ptycho.cxi"))


def test_the_smallest_cxi_file_lacks_only_positions(real_file: RealFile) -> None:
    """Read its one frame of 50 × 100 pixels and name the setting that gives positions."""
    with pytest.raises(DataError, match=r"no scan positions.*`positions_file`"):
        pt.load_scan(real_file("minimal.cxi"))


@pytest.mark.parametrize("name", ["dls_i08_probe.ptyr", "probe_PSI.mat"])
def test_a_file_with_only_a_probe_is_not_taken_for_a_scan(name: str, real_file: RealFile) -> None:
    """Name the setting that gives the patterns."""
    with pytest.raises(DataError, match="`patterns_file`"):
        pt.load_scan(real_file(name))


def test_a_table_of_an_interferometer_gives_positions_by_the_names_of_its_columns(
    real_file: RealFile, tmp_path: Path
) -> None:
    """Read the averages of x and y in micrometers from a table with two header lines."""
    table = real_file("lamni/orchestra.dat")
    rows = np.loadtxt(table, skiprows=2)
    counts = np.random.default_rng(0).poisson(5, (len(rows), 16, 16)).astype(np.uint16)
    np.save(tmp_path / "counts.npy", counts)
    scan = pt.load_scan(
        tmp_path / "counts.npy",
        positions_file=table,
        x_key="Average_x_st_fzp",
        y_key="Average_y_st_fzp",
        position_unit="micrometer",
        pixel_size=2e-8,
        measurement="counts",
    )
    expected = rows[:, [6, 3]] * 1e-6 / 2e-8
    np.testing.assert_allclose(scan.positions - scan.positions[0], expected - expected[0], atol=1e-6)
