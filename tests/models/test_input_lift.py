"""The physics lift: one adjoint step from the measured amplitude into real space."""

from collections.abc import Callable

import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.models.input_lift import PROBE_POWER_FLOOR_FRACTION, backproject_pattern, compute_log_amplitude


def probe_of(scan_of: Callable[..., Scan], size: int, modes: int) -> torch.Tensor:
    return torch.from_numpy(scan_of(4, size, modes=modes).probe).to(torch.complex128)[None]


def amplitude_of(obj: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft2(obj * probe, norm="ortho").abs().square().sum(-3).sqrt()


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("size", [24, 31])
def test_a_flat_object_is_seen_where_the_probe_is_bright(
    size: int, modes: int, scan_factory: Callable[..., Scan]
) -> None:
    probe = probe_of(scan_factory, size, modes)
    lifted = backproject_pattern(amplitude_of(torch.ones(size, size), probe), probe)
    power = probe.abs().square().sum(-3)
    assert (lifted - power / (power + PROBE_POWER_FLOOR_FRACTION * power.max())).abs().max() < 1e-5


@pytest.mark.parametrize("place", [(9, 14), (14, 9), (16, 15)])
def test_a_bump_of_phase_is_seen_in_its_place(place: tuple[int, int], scan_factory: Callable[..., Scan]) -> None:
    probe = probe_of(scan_factory, 24, 1)
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    bump = torch.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / 4).double()
    flat = backproject_pattern(amplitude_of(torch.ones(24, 24), probe), probe)
    seen = (backproject_pattern(amplitude_of(torch.exp(0.2j * bump), probe), probe) - flat).imag[0]
    brightest = divmod(int(seen.argmax()), 24)
    assert abs(brightest[0] - place[0]) <= 2
    assert abs(brightest[1] - place[1]) <= 2


def test_brighter_patterns_give_a_brighter_picture(scan_factory: Callable[..., Scan]) -> None:
    probe = probe_of(scan_factory, 24, 1)
    amplitude = amplitude_of(torch.ones(24, 24), probe)
    assert torch.allclose(backproject_pattern(3 * amplitude, probe), 3 * backproject_pattern(amplitude, probe))


@pytest.mark.parametrize("dark", ["pattern", "probe"])
def test_no_light_is_no_trouble(dark: str, scan_factory: Callable[..., Scan]) -> None:
    probe = probe_of(scan_factory, 24, 1).to(torch.complex64)
    amplitude = amplitude_of(torch.ones(24, 24), probe)
    lifted = backproject_pattern(amplitude * (dark != "pattern"), probe * (dark != "probe"))
    assert torch.isfinite(torch.view_as_real(lifted)).all()


@pytest.mark.parametrize("size", [24, 31])
def test_networks_look_at_centred_patterns(size: int) -> None:
    amplitudes = torch.zeros(1, size, size)
    amplitudes[0, 0, 0] = 100.0
    seen = compute_log_amplitude(amplitudes)
    assert seen.argmax() == (size // 2) * size + size // 2
    assert seen.max() > 0
    assert compute_log_amplitude(torch.zeros(1, size, size)).abs().max() == 0
