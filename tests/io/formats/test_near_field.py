"""Files of a near field are refused with the evidence."""

from pathlib import Path

import h5py
import pytest
from helpers import make_scan

import ptycho_torch as pt
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry


def test_a_cxi_file_whose_title_states_a_near_field_is_refused(tmp_path: Path) -> None:
    scan = make_scan(9)
    geometry = Geometry(wavelength_m=1e-10, distance_m=2.0, detector_pixel_m=(1e-4, 1e-4))
    path = tmp_path / "scan.cxi"
    pt.save_scan(path, pt.Scan(scan.amplitudes, scan.positions, scan.probe, geometry=geometry))
    assert len(pt.load_scan(path)) == 9
    with h5py.File(path, "r+") as file:
        if "title" in file["entry_1"]:
            del file["entry_1/title"]
        file["entry_1/title"] = "Near-field scan of a gold star"
    with pytest.raises(DataError, match="a near field by /entry_1/title"):
        pt.load_scan(path)
    assert len(pt.load_scan(path, propagation="far_field")) == 9
