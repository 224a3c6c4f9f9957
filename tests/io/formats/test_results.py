"""Results written in the format of another program return with object, probe, positions and units."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.io.reconstruction import load_reconstruction, save_reconstruction

SUFFIXES = (".ptyr", ".h5")
"""Suffixes of results of other programs."""


def make_result(size: int) -> Reconstruction:
    """Return a result with an object whose first pixel is not (0, 0), on pixels that are not square."""
    rng = np.random.default_rng(size)
    shape = (size + 17, size + 26)
    obj = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    probe = rng.normal(size=(2, size, size)) + 1j * rng.normal(size=(2, size, size))
    origin = np.array([-4, 11])
    return Reconstruction(
        object=obj.astype(np.complex64),
        coverage=np.ones(shape, np.float32),
        origin_yx=origin,
        probe=probe.astype(np.complex64),
        positions=rng.uniform(0, 15, (9, 2)) + size // 2 + origin,
        geometry=Geometry(wavelength_m=1.2e-10, distance_m=1.5, detector_pixel_m=(1e-4, 1.1e-4)).complete(size),
    )


@pytest.mark.parametrize("size", [16, 15])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_written_result_returns(tmp_path: Path, suffix: str, size: int) -> None:
    result = make_result(size)
    path = tmp_path / f"result{suffix}"
    save_reconstruction(path, result)
    first = path.read_bytes()
    loaded = load_reconstruction(path)
    np.testing.assert_allclose(loaded.object, result.object, rtol=1e-6)
    np.testing.assert_allclose(loaded.probe, result.probe, rtol=1e-6)
    # The same pixel of the object is under the same pixel of the probe.
    np.testing.assert_allclose(loaded.positions - loaded.origin_yx, result.positions - result.origin_yx, atol=1e-6)
    assert loaded.geometry is not None
    assert result.geometry is not None
    assert loaded.geometry.wavelength_m == pytest.approx(1.2e-10)
    assert loaded.geometry.object_pixel_m == pytest.approx(result.geometry.object_pixel_m)
    save_reconstruction(path, result)
    assert path.read_bytes() == first


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_result_without_a_pixel_size_is_not_written(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="`pixel_size`"):
        save_reconstruction(tmp_path / f"result{suffix}", replace(make_result(16), geometry=None))
    assert not list(tmp_path.iterdir())
