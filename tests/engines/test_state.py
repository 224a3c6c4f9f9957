"""The state of a reconstruction and the measurement."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.state import make_measurement, make_vacuum_state
from ptycho_torch.physics.noise import make_noise_model


@pytest.mark.parametrize("per_pattern", [False, True])
def test_a_measurement_is_in_photons_with_masked_pixels_zero(scan: Scan, per_pattern: bool) -> None:
    shape = scan.amplitudes.shape if per_pattern else scan.amplitudes.shape[1:]
    mask = np.random.default_rng(0).random(shape) > 0.1
    measurement = make_measurement(replace(scan, mask=mask), 3.0, make_noise_model("amplitude"), torch.device("cpu"))
    expected = 3.0 * np.where(mask, np.square(scan.amplitudes), 0)
    shifted = torch.fft.fftshift(measurement.counts, (1, 2))
    np.testing.assert_allclose(shifted.numpy(), expected, rtol=1e-5)
    assert measurement.photons == pytest.approx(expected.sum(), rel=1e-5)
    chosen = measurement.select_mask(torch.tensor([4, 7]))
    assert chosen is not None
    assert len(chosen) == (2 if per_pattern else 1)


def test_a_copy_is_independent_and_restorable(scan: Scan) -> None:
    state = make_vacuum_state(torch.from_numpy(scan.positions), torch.from_numpy(scan.probe))
    copied = state.copy()
    copied.object += 1
    assert bool((state.object == 1).all())
    state.restore(copied.tensors())
    assert torch.equal(state.object, copied.object)


def test_every_patch_lies_on_the_canvas_with_the_margin(scan: Scan) -> None:
    state = make_vacuum_state(torch.from_numpy(scan.positions), torch.from_numpy(scan.probe), margin=3)
    corners, fractions = state.compute_placement()
    assert corners.amin(0).tolist() == [3, 3]
    assert (corners.amax(0) + state.size + 3).tolist() == list(state.canvas.shape)
    assert bool(((fractions >= -0.5) & (fractions < 0.5)).all())


def test_an_impossible_canvas_is_refused_before_allocation(scan: Scan) -> None:
    with pytest.raises(DataError, match=r"the canvas of the scan has .* check the unit of `positions`"):
        make_vacuum_state(torch.from_numpy(scan.positions * 1e9), torch.from_numpy(scan.probe))
