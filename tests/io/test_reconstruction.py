"""Files of reconstructions: round trip, and errors for other files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.io.reconstruction import load_reconstruction


@pytest.fixture
def reconstruction() -> Reconstruction:
    rng = np.random.default_rng(0)
    return Reconstruction(
        object=(rng.standard_normal((11, 14)) + 1j * rng.standard_normal((11, 14))).astype(np.complex64),
        coverage=rng.uniform(0, 1, (11, 14)).astype(np.float32),
        origin_yx=np.array([-3, 5]),
        probe=np.ones((1, 6, 6), np.complex64),
        positions=rng.uniform(0, 5, (4, 2)),
        photons_per_unit=784.25,
        history={"epoch": [1.0, 2.0], "loss": [3.5, 1.25]},
        metadata={"method": "network", "epochs": 2},
    )


@pytest.mark.parametrize("name", ["result", "result.png", "result.NPZ"])
def test_another_suffix_is_refused(reconstruction: Reconstruction, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a format of results: npz \(\.npz\)"):
        reconstruction.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_round_trip_keeps_every_field(reconstruction: Reconstruction, tmp_path: Path) -> None:
    reconstruction.save(tmp_path / "a.npz")
    reconstruction.save(tmp_path / "b.npz")
    loaded = load_reconstruction(tmp_path / "a.npz")
    for name in ("object", "coverage", "origin_yx", "probe", "positions"):
        assert np.array_equal(getattr(loaded, name), getattr(reconstruction, name))
        assert getattr(loaded, name).dtype == getattr(reconstruction, name).dtype
    assert loaded.photons_per_unit == 784.25
    assert loaded.history == reconstruction.history
    assert loaded.metadata == reconstruction.metadata
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_round_trip_keeps_optional_uncertainty(reconstruction: Reconstruction, tmp_path: Path) -> None:
    uncertainty = np.linspace(0, 1, 154, dtype=np.float32).reshape(11, 14)
    uncertainty[0, 0] = np.inf
    replace(reconstruction, uncertainty=uncertainty).save(tmp_path / "with.npz")
    reconstruction.save(tmp_path / "without.npz")
    loaded = load_reconstruction(tmp_path / "with.npz").uncertainty
    assert loaded is not None
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, uncertainty)
    assert load_reconstruction(tmp_path / "without.npz").uncertainty is None


def test_uncertainty_with_other_shape_raises(reconstruction: Reconstruction, tmp_path: Path) -> None:
    replace(reconstruction, uncertainty=np.zeros((3, 4), np.float32)).save(tmp_path / "r.npz")
    with pytest.raises(DataError, match=r"uncertainty is \(3, 4\)"):
        load_reconstruction(tmp_path / "r.npz")


@pytest.mark.parametrize("text", ["nonsense", "[]", "{}", "3"])
def test_damaged_metadata_raises(reconstruction: Reconstruction, tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.npz"
    reconstruction.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"metadata": np.array(text)}))
    with pytest.raises(DataError, match="metadata"):
        load_reconstruction(path)


def test_scan_file_raises(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", diffraction=np.zeros((2, 4, 4)))
    with pytest.raises(DataError, match="not a reconstruction"):
        load_reconstruction(tmp_path / "scan.npz")
