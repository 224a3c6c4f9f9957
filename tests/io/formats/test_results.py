"""Results written in the format of another program return with object, probe, positions and units."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.engines.initialization import read_initial_object
from ptycho_torch.io.export import ORIGIN_ATTRIBUTE
from ptycho_torch.io.foreign_result import compute_probe_coverage
from ptycho_torch.io.reconstruction import load_reconstruction, save_reconstruction
from ptycho_torch.io.scan import load_scan

SUFFIXES = (".ptyr", ".h5", ".cxi")
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
    np.testing.assert_array_equal(loaded.origin_yx, result.origin_yx)
    np.testing.assert_allclose(loaded.positions, result.positions, atol=1e-6)
    assert loaded.geometry is not None
    assert result.geometry is not None
    assert loaded.geometry.wavelength_m == pytest.approx(1.2e-10)
    assert loaded.geometry.object_pixel_m == pytest.approx(result.geometry.object_pixel_m)
    save_reconstruction(path, result)
    assert path.read_bytes() == first


def test_the_power_of_the_probe_in_each_pattern_returns_from_a_product(tmp_path: Path) -> None:
    power = np.linspace(0.8, 1.2, 9).astype(np.float32)
    save_reconstruction(tmp_path / "result.h5", replace(make_result(16), intensities=power))
    loaded = load_reconstruction(tmp_path / "result.h5").intensities
    assert loaded is not None
    np.testing.assert_allclose(loaded, power, rtol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_result_without_a_pixel_size_is_not_written(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="`pixel_size`"):
        save_reconstruction(tmp_path / f"result{suffix}", replace(make_result(16), geometry=None))
    assert not list(tmp_path.iterdir())


def drop_origin(path: Path) -> None:
    """Remove the attribute that other programs do not write."""
    with h5py.File(path, "a") as file:
        del file.attrs[ORIGIN_ATTRIBUTE]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_written_result_keeps_its_errors_against_the_truth(tmp_path: Path, suffix: str) -> None:
    result = replace(make_result(16), origin_yx=np.array([2, 1]))
    result = replace(result, positions=result.positions - (-4 - 2, 11 - 1))
    coverage = compute_probe_coverage(result.probe, result.positions - result.origin_yx, result.object.shape)
    result = replace(result, coverage=coverage)
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(40, 50)) + 1j * rng.normal(size=(40, 50))
    truth[2 : 2 + result.object.shape[0], 1 : 1 + result.object.shape[1]] += 3 * result.object
    path = tmp_path / f"result{suffix}"
    result.save(path)
    expected = result.compare(truth)
    assert expected["nrmse"] < 0.5
    assert load_reconstruction(path).compare(truth)["nrmse"] == pytest.approx(expected["nrmse"], rel=1e-5)


@pytest.mark.parametrize("suffix", [".h5", ".cxi"])
def test_a_written_result_of_a_part_keeps_the_indices_of_its_patterns(tmp_path: Path, suffix: str) -> None:
    numbers = [1, 4, 5, 7, 8, 20, 21, 22, 30]
    path = tmp_path / f"result{suffix}"
    replace(make_result(16), metadata={"indices": numbers}).save(path)
    assert load_reconstruction(path).metadata["source_index"] == numbers


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_initial_object_of_another_program_is_placed_by_its_positions(tmp_path: Path, suffix: str) -> None:
    result = make_result(16)
    path = tmp_path / f"result{suffix}"
    result.save(path)
    drop_origin(path)
    np.testing.assert_array_equal(load_reconstruction(path).origin_yx, [0, 0])
    jitter = np.random.default_rng(5).normal(0, 0.1, result.positions.shape)
    np.testing.assert_array_equal(read_initial_object(path, result.positions + jitter).origin_yx, result.origin_yx)


def test_an_initial_object_of_another_scan_is_at_its_own_origin_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = make_result(16)
    path = tmp_path / "result.h5"
    result.save(path)
    drop_origin(path)
    for positions in (result.positions[1:], result.positions[::-1]):
        caplog.clear()
        np.testing.assert_array_equal(read_initial_object(path, positions).origin_yx, [0, 0])
        assert "the place of the object is uncertain" in caplog.text


@pytest.mark.parametrize("suffix", [".npz", *SUFFIXES])
def test_a_result_in_the_place_of_a_scan_is_named_a_result(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"result{suffix}"
    make_result(16).save(path)
    with pytest.raises(DataError, match=r"the file is a result.*`init`.*evaluate.*load_reconstruction"):
        load_scan(path)
