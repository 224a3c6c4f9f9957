"""Probe families: power inside window and detector for every N, and the range of measured probes."""

import numpy as np
import pytest

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.simulation.dataset import normalize_probe
from ptycho_torch.simulation.probe_families import (
    PROBE_FAMILIES,
    draw_modes,
    draw_probe,
    make_resampling_matrix,
    perturb_probe,
)
from ptycho_torch.simulation.probes import PROBES
from ptycho_torch.simulation.wavefields import (
    compute_phasor,
    confine_wave,
    make_beam,
    make_frequency_grid,
    make_pixel_grid,
    propagate,
)

SIZES = [32, 40, 64, 96, 128]


def share_within(power: np.ndarray, part: float) -> float:
    """Return the share of ``power`` (N, N), centered, in the central ``part`` of each side."""
    size = len(power)
    edge = round(size * (1 - part) / 2)
    return float(power[edge : size - edge, edge : size - edge].sum() / power.sum())


def power_of(modes: np.ndarray) -> np.ndarray:
    return np.square(np.abs(modes)).sum(0)


def far_power(modes: np.ndarray) -> np.ndarray:
    return power_of(np.fft.fftshift(np.fft.fft2(modes, norm="ortho"), axes=(-2, -1)))


def rms(power: np.ndarray) -> float:
    """Return the root mean square distance from the center of mass, as a fraction of N."""
    y, x = make_pixel_grid(len(power))
    power = power / power.sum()
    return float(np.sqrt((power * (y**2 + x**2)).sum() - (power * y).sum() ** 2 - (power * x).sum() ** 2) / len(power))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROBE_FAMILIES)
def test_power_lies_inside_window_and_detector(name: str, size: int) -> None:
    for number in range(40 if size < 100 else 12):
        modes = draw_probe(size, (name,), np.random.default_rng([number, 2]))
        assert modes.shape[1:] == (size, size)
        assert np.isfinite(modes).all()
        assert power_of(modes).sum() == pytest.approx(1)
        assert share_within(power_of(modes), 0.75) > 0.95
        assert share_within(far_power(modes), 0.875) > 0.95
        assert rms(power_of(modes)) * size > 1.5  # no single bright pixel


@pytest.mark.parametrize("name", PROBE_FAMILIES)
def test_family_depends_on_the_generator_only(name: str) -> None:
    first, same, other = (PROBE_FAMILIES[name](64, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, same)
    overlap = abs(np.vdot(first, other)) ** 2
    assert overlap < 0.9


def test_families_cover_measured_probes() -> None:
    """LCLS run 1084: rms radius 0.24 N and rms frequency 0.27 a pixel; Siemens star of the APS: 0.17 and 0.15."""
    drawn = [draw_probe(64, tuple(PROBE_FAMILIES), np.random.default_rng([number, 5])) for number in range(400)]
    radii = np.array([rms(power_of(modes)) for modes in drawn])
    frequencies = np.array([rms(far_power(modes)) for modes in drawn])
    for radius, frequency in ((0.24, 0.27), (0.17, 0.15)):
        for values, value in ((radii, radius), (frequencies, frequency)):
            assert (values > value).any()
            assert (values < value).any()
        near = np.hypot(radii / radius - 1, frequencies / frequency - 1)
        assert near.min() < 0.15  # both together


@pytest.mark.parametrize("modes", [1, 2, 3])
def test_random_modes_are_orthogonal_with_decreasing_power(modes: int) -> None:
    probe = PROBES["structured"](64)
    found = draw_modes(probe / np.linalg.norm(probe), modes, np.random.default_rng(1)).reshape(modes, -1)
    gram = found.conj() @ found.T
    powers = np.diag(gram).real
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-12
    assert powers.sum() == pytest.approx(1, abs=1e-3)
    assert ((powers[1:] / powers[:-1] > 0.099) & (powers[1:] / powers[:-1] < 0.501)).all()


@pytest.mark.parametrize("modes", [1, 3])
def test_perturbation_scales_with_its_amount(modes: int) -> None:
    probe = draw_modes(confine_wave(PROBES["zone_plate"](64)), modes, np.random.default_rng(0))
    same = perturb_probe(probe, 0.0, np.random.default_rng(0))
    assert np.abs(same - probe).max() < 1e-10
    fidelity = []
    for number in range(12):
        near = perturb_probe(probe, 1.0, np.random.default_rng(number))
        assert power_of(near).sum() == pytest.approx(1)
        assert share_within(power_of(near), 0.875) > 0.95
        assert rms(power_of(near)) == pytest.approx(rms(power_of(probe)), rel=0.5)
        overlap = np.sqrt(power_of(near) * power_of(probe)).sum()
        fidelity.append(overlap)
    assert min(fidelity) < 0.995
    assert np.median(fidelity) > 0.85


@pytest.mark.parametrize("shift", [0.0, 3.0, -2.25])
def test_resampling_shifts_and_scales_a_beam(shift: float) -> None:
    y, x = make_pixel_grid(64)
    down, across = make_resampling_matrix(64, 0.9, shift), make_resampling_matrix(64, 0.9, 0.0)
    beam_of = lambda y, x: np.exp(-(y**2 + 2 * x**2) / 200) * compute_phasor(0.01 * y**2)  # noqa: E731
    assert np.abs(down @ beam_of(y, x) @ across.T - beam_of(0.9 * (y - shift), 0.9 * x))[8:-8, 8:-8].max() < 2e-2


def test_beam_has_the_requested_radius_and_curvature() -> None:
    for charge in (0, 1, -3):
        wave = confine_wave(make_beam(128, 14.0, 0.1, charge))
        assert rms(power_of(wave[None])) * 128 == pytest.approx(14.0, rel=0.02)
    flat, curved = (rms(far_power(confine_wave(make_beam(128, 14.0, bend, 0))[None])) for bend in (0.0, 0.1))
    assert curved**2 - flat**2 == pytest.approx(0.1**2, rel=0.05)


def test_propagation_conserves_energy_and_is_reversible() -> None:
    wave = confine_wave(make_beam(64, 4.0, 0.0, 0))
    away = propagate(wave, 60.0)
    assert np.square(np.abs(away)).sum() == pytest.approx(1)
    radius, frequency = 64 * rms(power_of(wave[None])), rms(far_power(wave[None]))
    assert 64 * rms(power_of(away[None])) == pytest.approx(np.hypot(radius, 60 * frequency), rel=1e-3)
    assert np.abs(propagate(away, -60.0) - wave).max() < 1e-12
    ky, kx = make_frequency_grid(64)
    assert np.hypot(ky, kx).max() == pytest.approx(np.sqrt(0.5))


def test_unsuitable_probe_raises() -> None:
    for probe in (np.ones((32, 32)), np.ones((2, 2, 64, 64)), np.zeros((64, 64)), np.full((64, 64), np.nan)):
        with pytest.raises(ConfigError, match="`probe`"):
            normalize_probe(probe, 64)
