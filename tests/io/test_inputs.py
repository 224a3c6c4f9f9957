"""Probes and positions from files: keys, shapes and errors that name the setting."""

from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.inputs import read_positions, read_probe, read_probe_size
from ptycho_torch.io.scan import save_scan


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    """Write a reconstruction with a probe of two modes."""
    result = Reconstruction(
        object=np.ones((20, 21), np.complex64),
        coverage=np.ones((20, 21), np.float32),
        origin_yx=np.zeros(2, np.int64),
        probe=np.arange(72, dtype=np.complex64).reshape(2, 6, 6) + 1j,
        positions=np.arange(8.0).reshape(4, 2),
        photons_per_unit=2.5,
        metadata={"scan_digest": "abc"},
    )
    result.save(tmp_path / "result.npz")
    return tmp_path / "result.npz"


def test_probe_of_a_reconstruction_has_digest_and_photon_scale(result_file: Path) -> None:
    probe = read_probe(result_file, 6, "init_probe")
    np.testing.assert_array_equal(probe.modes, np.arange(72).reshape(2, 6, 6) + 1j)
    assert (probe.scan_digest, probe.photons_per_unit) == ("abc", 2.5)
    assert read_probe_size(result_file, "probe") == 6


def test_probe_and_positions_of_a_scan_file(tmp_path: Path, scan: Scan) -> None:
    save_scan(tmp_path / "scan.npz", scan)
    probe = read_probe(tmp_path / "scan.npz", scan.size, "probe")
    np.testing.assert_array_equal(probe.modes, scan.probe)
    assert (probe.scan_digest, probe.photons_per_unit) == ("", 1.0)
    np.testing.assert_array_equal(read_positions(tmp_path / "scan.npz", len(scan), "positions"), scan.positions)


def test_positions_of_a_reconstruction(result_file: Path) -> None:
    np.testing.assert_array_equal(read_positions(result_file, 4, "positions"), np.arange(8.0).reshape(4, 2))


def test_errors_name_the_setting(result_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz", a=np.zeros(3))
    with pytest.raises(DataError, match=r"expected finite modes of 8 × 8 pixels.*change `init_probe`"):
        read_probe(result_file, 8, "init_probe")
    with pytest.raises(DataError, match=r"no probe \(found a\).*change `probe`"):
        read_probe(tmp_path / "empty.npz", 8, "probe")
    with pytest.raises(DataError, match=r"no probe; .*change `probe`"):
        read_probe_size(tmp_path / "empty.npz", "probe")
    with pytest.raises(DataError, match=r"expected \(5, 2\) finite numbers.*change `positions`"):
        read_positions(result_file, 5, "positions")
    with pytest.raises(DataError, match=r"no positions; .*change `init_positions`"):
        read_positions(tmp_path / "empty.npz", 5, "init_positions")
