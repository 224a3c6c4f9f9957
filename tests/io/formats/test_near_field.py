"""Files of a near field are refused with the evidence."""

from pathlib import Path

import pytest
from helpers import make_scan

import ptycho_torch as pt
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry


def test_a_cxi_file_whose_name_states_a_near_field_is_refused(tmp_path: Path) -> None:
    """The same content under another name is read."""
    scan = make_scan(9)
    geometry = Geometry(wavelength_m=1e-10, distance_m=2.0, detector_pixel_m=(1e-4, 1e-4))
    pt.save_scan(tmp_path / "scan.cxi", pt.Scan(scan.amplitudes, scan.positions, scan.probe, geometry=geometry))
    assert len(pt.load_scan(tmp_path / "scan.cxi")) == 9
    (tmp_path / "scan.cxi").rename(tmp_path / "P25_Near-Field.cxi")
    with pytest.raises(DataError, match="a near field by the name of the file"):
        pt.load_scan(tmp_path / "P25_Near-Field.cxi")
