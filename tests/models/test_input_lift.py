"""The physics input: one adjoint step from the measured amplitude into real space."""

from collections.abc import Callable

import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.models.input_lift import PROBE_POWER_FLOOR_FRACTION, backproject_pattern, compute_log_amplitude


def make_probe(scan_factory: Callable[..., Scan], size: int, modes: int) -> torch.Tensor:
    return torch.from_numpy(scan_factory(4, size, modes=modes).probe).to(torch.complex128)[None]


def compute_amplitude(obj: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft2(obj * probe, norm="ortho").abs().square().sum(-3).sqrt()


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("size", [24, 31])
def test_flat_object_appears_where_the_probe_is_bright(
    size: int, modes: int, scan_factory: Callable[..., Scan]
) -> None:
    probe = make_probe(scan_factory, size, modes)
    backprojected = backproject_pattern(compute_amplitude(torch.ones(size, size), probe), probe)
    power = probe.abs().square().sum(-3)
    assert (backprojected - power / (power + PROBE_POWER_FLOOR_FRACTION * power.max())).abs().max() < 1e-5


@pytest.mark.parametrize("center", [(9, 14), (14, 9), (16, 15)])
def test_phase_bump_appears_at_its_position(center: tuple[int, int], scan_factory: Callable[..., Scan]) -> None:
    probe = make_probe(scan_factory, 24, 1)
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    bump = torch.exp(-((rows - center[0]) ** 2 + (columns - center[1]) ** 2) / 4).double()
    flat = backproject_pattern(compute_amplitude(torch.ones(24, 24), probe), probe)
    change = (backproject_pattern(compute_amplitude(torch.exp(0.2j * bump), probe), probe) - flat).imag[0]
    brightest = divmod(int(change.argmax()), 24)
    assert abs(brightest[0] - center[0]) <= 2
    assert abs(brightest[1] - center[1]) <= 2


def test_backprojection_is_linear_in_the_amplitude(scan_factory: Callable[..., Scan]) -> None:
    probe = make_probe(scan_factory, 24, 1)
    amplitude = compute_amplitude(torch.ones(24, 24), probe)
    assert torch.allclose(backproject_pattern(3 * amplitude, probe), 3 * backproject_pattern(amplitude, probe))


@pytest.mark.parametrize("zero", ["pattern", "probe"])
def test_zero_pattern_or_probe_gives_finite_values(zero: str, scan_factory: Callable[..., Scan]) -> None:
    probe = make_probe(scan_factory, 24, 1).to(torch.complex64)
    amplitude = compute_amplitude(torch.ones(24, 24), probe)
    backprojected = backproject_pattern(amplitude * (zero != "pattern"), probe * (zero != "probe"))
    assert torch.isfinite(torch.view_as_real(backprojected)).all()


@pytest.mark.parametrize("size", [24, 31])
def test_log_amplitude_is_centered(size: int) -> None:
    amplitudes = torch.zeros(1, size, size)
    amplitudes[0, 0, 0] = 100.0
    log_amplitude = compute_log_amplitude(amplitudes)
    assert log_amplitude.argmax() == (size // 2) * size + size // 2
    assert log_amplitude.max() > 0
    assert compute_log_amplitude(torch.zeros(1, size, size)).abs().max() == 0
