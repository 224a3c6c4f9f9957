"""Files of a near field are refused with the evidence."""

from dataclasses import replace
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


def test_a_stated_far_field_does_not_convert_a_canonical_file(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    pt.save_scan(path, make_scan(9))
    plain, stated = pt.load_scan(path), pt.load_scan(path, propagation="far_field")
    assert stated.metadata == plain.metadata
    assert stated.digest() == plain.digest()


def test_a_canonical_file_of_a_near_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    pt.save_scan(path, replace(make_scan(9), geometry=Geometry(distance_m=2.0, propagation="near_field")))
    with pytest.raises(DataError, match=r"a near field; .* set `propagation`"):
        pt.load_scan(path)
    pt.save_scan(path, make_scan(9))
    with pytest.raises(DataError, match=r"a near field; .* set `propagation`"):
        pt.load_scan(path, propagation="near_field")
