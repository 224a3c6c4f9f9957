"""The operators of the measurement model: adjoint pairs, the illumination map, and the exit-wave update."""

import numpy as np
import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.measurement_model import IlluminationMap, MeasurementModel, ProbeObjectView
from ptycho_torch.engines.state import ReconstructionState, make_measurement, make_vacuum_state
from ptycho_torch.physics.forward import from_object, from_patches
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.physics.probe import compute_power


@pytest.fixture
def state() -> ReconstructionState:
    """A state in double precision with two modes, unequal intensities and a background."""
    generator = torch.Generator().manual_seed(0)
    positions = 20 * torch.rand(6, 2, dtype=torch.float64, generator=generator)
    probe = torch.randn(2, 7, 7, dtype=torch.complex128, generator=generator)
    state = make_vacuum_state(positions, probe)
    state.object = torch.randn(state.canvas.shape, dtype=torch.complex128, generator=generator)
    state.intensities = 0.5 + torch.rand(6, dtype=torch.float64, generator=generator)
    state.background = torch.rand(7, 7, dtype=torch.float64, generator=generator)
    return state


def test_probes_and_patches_predict_what_the_forward_model_predicts(state: ReconstructionState) -> None:
    view, indices = ProbeObjectView(state), torch.tensor([4, 1])
    origin = state.positions.new_tensor(state.canvas.origin)
    expected = from_object(state.object, state.probe, state.positions[indices] - origin).intensity
    intensity = from_patches(view.patches(indices), view.probes(indices)).intensity
    torch.testing.assert_close(intensity, state.intensities[indices, None, None] * expected)


def test_probe_gradient_and_object_gradient_are_adjoints(state: ReconstructionState) -> None:
    view, indices = ProbeObjectView(state), torch.tensor([0, 3, 5])
    generator = torch.Generator().manual_seed(1)
    waves = torch.randn(3, 2, 7, 7, dtype=torch.complex128, generator=generator)
    modes = torch.randn(2, 7, 7, dtype=torch.complex128, generator=generator)
    left = (waves.conj() * view.shift_modes(modes, indices)).sum()
    torch.testing.assert_close(left, (view.compute_probe_gradient(waves, indices).conj() * modes).sum())
    canvas = torch.randn(state.canvas.shape, dtype=torch.complex128, generator=generator)
    probes = view.probes(indices)
    left = (waves.conj() * probes * view.extract(canvas, indices)[:, None]).sum()
    torch.testing.assert_close(left, (view.compute_object_gradient(waves, probes, indices).conj() * canvas).sum())


@pytest.mark.parametrize("block", [1, 3])
def test_the_illumination_map_sums_the_probe_power_of_the_chosen_positions(block: int) -> None:
    generator = torch.Generator().manual_seed(2)
    corners = torch.randint(0, 5, (4, 2), generator=generator) * block  # on the blocks, where the map is exact
    power, shape = torch.rand(6, 6, dtype=torch.float64, generator=generator), (4 * block + 6, 4 * block + 7)
    illumination_map = IlluminationMap(corners, power, shape, block)
    chosen = torch.tensor([0, 2, 2])
    direct = torch.zeros(illumination_map.shape[0] * block, illumination_map.shape[1] * block, dtype=torch.float64)
    for row, column in corners[chosen].tolist():
        direct[row : row + 6, column : column + 6] += power
    expected = torch.nn.functional.avg_pool2d(direct[None, None], block)[0, 0]
    torch.testing.assert_close(illumination_map.sum_positions(chosen), expected)
    upsampled = illumination_map.upsample(expected)
    assert upsampled.shape == shape
    assert bool((upsampled[:block, :block] == expected[0, 0]).all())


@pytest.mark.parametrize("excess", [False, True])
def test_the_update_brings_the_prediction_to_the_measurement(scan: Scan, excess: bool) -> None:
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    state = make_vacuum_state(torch.from_numpy(scan.positions), torch.from_numpy(scan.probe))
    model, indices = MeasurementModel(measurement, state, fixed_probe=True), torch.tensor([3, 9])
    update = model.compute_update(indices, excess=excess)
    exit_waves = update.probes * update.patches[:, None]
    before = compute_power(torch.fft.fft2(exit_waves, norm="ortho"))
    after = compute_power(torch.fft.fft2(exit_waves + update.change, norm="ortho"))
    counts = measurement.counts[indices]
    assert float((after.sqrt() - counts.sqrt()).norm()) < 0.1 * float((before.sqrt() - counts.sqrt()).norm())
    expected = float((before.sqrt() - counts.sqrt()).square().sum())
    assert update.error == pytest.approx(expected, rel=0.05)
    assert (update.excess is not None) == excess
    if update.excess is not None:
        np.testing.assert_allclose(update.excess.numpy(), (counts - before).numpy(), atol=1e-2)
