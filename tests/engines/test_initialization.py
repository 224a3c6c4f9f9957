"""The initial state of a reconstruction: object, probe, positions and nuisance parameters."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import (
    InitialObject,
    make_initial_probe,
    make_initial_state,
    paste_object,
    set_num_modes,
)


@pytest.fixture
def earlier(scan: Scan) -> Reconstruction:
    """A reconstruction of the scan in another photon unit."""
    assert scan.truth is not None
    return Reconstruction(
        object=scan.truth[2:-3, 1:-4],
        coverage=np.ones(scan.truth[2:-3, 1:-4].shape, np.float32),
        origin_yx=np.array([2, 1]),
        probe=scan.probe,
        positions=scan.positions + 0.25,
        photons_per_unit=2.0,
        background=np.full((scan.size, scan.size), 3.0, np.float32),
        intensities=np.linspace(0.9, 1.1, len(scan), dtype=np.float32),
    )


def test_default_is_vacuum_with_the_probe_and_positions_of_the_scan(scan: Scan) -> None:
    state = make_initial_state(scan, 2.0)
    assert bool((state.object == 1).all())
    np.testing.assert_array_equal(state.positions.numpy(), scan.positions)
    photons = 2.0 * np.square(scan.amplitudes, dtype=np.float64).sum() / len(scan)
    assert float(state.probe.abs().square().sum()) == pytest.approx(photons, rel=1e-4)


def test_a_reconstruction_is_continued_in_the_photon_unit_of_the_scan(scan: Scan, earlier: Reconstruction) -> None:
    state = make_initial_state(scan, 8.0, earlier, margin=4)
    np.testing.assert_array_equal(state.positions.numpy(), earlier.positions)
    np.testing.assert_allclose(state.probe.numpy(), 2 * earlier.probe, rtol=1e-6)
    assert bool((state.background == 12).all())
    np.testing.assert_array_equal(state.intensities.numpy(), earlier.intensities)
    expected = paste_object(state, earlier.object, earlier.origin_yx)
    assert torch.equal(state.object, expected)


def test_explicit_probe_and_positions_replace_those_of_a_reconstruction(scan: Scan, earlier: Reconstruction) -> None:
    state = make_initial_state(scan, 1.0, earlier, init_probe=7 * scan.probe, positions=scan.positions)
    np.testing.assert_array_equal(state.positions.numpy(), scan.positions)
    torch.testing.assert_close(state.probe, make_initial_state(scan, 1.0).probe)


def test_positions_of_a_reconstruction_of_another_length_are_ignored(scan: Scan, earlier: Reconstruction) -> None:
    assert earlier.intensities is not None
    shorter = replace(earlier, positions=earlier.positions[:9], intensities=earlier.intensities[:9])
    state = make_initial_state(scan, 2.0, shorter)
    np.testing.assert_array_equal(state.positions.numpy(), scan.positions)
    assert bool((state.intensities == 1).all())


@pytest.mark.parametrize("convert", [lambda a: a, torch.from_numpy, lambda a: InitialObject(a, np.zeros(2, np.int64))])
def test_an_array_starts_at_the_origin_of_object_coordinates(scan: Scan, convert: Callable[..., object]) -> None:
    assert scan.truth is not None
    state = make_initial_state(scan, 1.0, convert(scan.truth))  # type: ignore[arg-type]
    (top, left), (rows, columns) = state.canvas
    np.testing.assert_array_equal(state.object.numpy(), scan.truth[top : top + rows, left : left + columns])


@pytest.mark.parametrize("values", [np.ones(5), np.full((50, 50), np.nan), np.full((50, 50), "a")])
def test_an_unusable_initial_object_raises(scan: Scan, values: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected a finite array of two axes"):
        make_initial_state(scan, 1.0, values)


def test_a_probe_of_another_size_raises(scan: Scan, earlier: Reconstruction) -> None:
    with pytest.raises(DataError, match="expected the 24 × 24 pixels"):
        make_initial_state(scan, 1.0, replace(earlier, probe=earlier.probe[:, :-2, :-2]))


def test_a_malformed_gaussian_probe_raises(scan: Scan) -> None:
    with pytest.raises(ConfigError, match="`init_probe` is gaussian:x"):
        make_initial_probe("gaussian:x", scan, np.random.default_rng(0))


@pytest.mark.parametrize("modes", [1, 2, 4])
def test_changing_the_number_of_modes_preserves_the_power(scan: Scan, modes: int) -> None:
    probe = torch.from_numpy(scan.probe)
    changed = set_num_modes(set_num_modes(probe, 3), modes)
    assert changed.shape == (modes, 24, 24)
    assert float(changed.abs().square().sum()) == pytest.approx(float(probe.abs().square().sum()), rel=1e-4)
    overlap = (changed[0].conj() * probe[0]).sum().abs() / changed[0].norm() / probe[0].norm()
    assert overlap > 0.999
