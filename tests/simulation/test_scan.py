"""Simulated scans: statistics, directions, objects, probes and trajectories."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter
from ptycho_torch.io.scan import load_scan
from ptycho_torch.simulation.objects import FIXED_OBJECTS, OBJECTS
from ptycho_torch.simulation.probes import PROBES, make_incoherent_modes
from ptycho_torch.simulation.scan import (
    NOISELESS_PHOTONS_PER_PATTERN,
    PRESETS,
    simulate_measurement,
    simulate_scan,
)
from ptycho_torch.simulation.trajectories import TRAJECTORIES

DATA = os.environ.get("PTYCHO_TORCH_DATA")


@pytest.mark.parametrize("name", FIXED_OBJECTS)
def test_fixed_objects_have_limited_amplitude_and_phase(name: str) -> None:
    obj = OBJECTS[name]((91, 80), np.random.default_rng(0))
    assert 0.3 <= np.abs(obj).min() <= np.abs(obj).max() <= 1.1
    assert np.abs(np.angle(obj)).max() < 2.0


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_transmissions_without_symmetry(name: str) -> None:
    obj = OBJECTS[name]((91, 80), np.random.default_rng(0))
    assert obj.shape == (91, 80)
    assert obj.dtype == np.complex128
    if name == "flat":
        return
    middle = obj[5:85, :]
    for other in (middle[::-1], middle[:, ::-1], middle[::-1, ::-1], middle.T):
        assert np.linalg.norm(other - middle) > 0.1 * np.linalg.norm(middle - middle.mean())
    assert not np.array_equal(obj, OBJECTS[name]((91, 80), np.random.default_rng(1)))


@pytest.mark.parametrize("name", ["letters", "star", "cells"])
def test_amplitude_and_phase_are_different_images(name: str) -> None:
    obj = OBJECTS[name]((100, 101), np.random.default_rng(0))
    correlation = np.corrcoef(np.abs(obj).ravel(), np.angle(obj).ravel())[0, 1]
    assert abs(correlation) < (0.99 if name == "star" else 0.7)


@pytest.mark.parametrize("size", [32, 64, 100])
@pytest.mark.parametrize("name", PROBES)
def test_probes_scale_with_the_pattern_and_fade_before_its_edge(name: str, size: int) -> None:
    probe = PROBES[name](size)
    power = np.abs(probe) ** 2
    edge = np.ones((size, size), bool)
    edge[2:-2, 2:-2] = False
    assert power[edge].sum() < 0.05 * power.sum()
    assert 0.3 * size < compute_probe_diameter(probe[None]) < 0.8 * size


def test_structured_probe_has_no_symmetry() -> None:
    power = np.abs(PROBES["structured"](64)[1:, 1:]) ** 2
    for other in (power[::-1], power[:, ::-1], power.T, power[::-1, ::-1]):
        assert np.linalg.norm(other - power) > 0.2 * np.linalg.norm(power)


def test_modes_are_orthogonal_with_halving_power() -> None:
    modes = make_incoherent_modes(PROBES["structured"](32), 4).reshape(4, -1)
    gram = modes.conj() @ modes.T
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-12
    assert np.diag(gram).real[1:] / np.diag(gram).real[:-1] == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="at most"):
        make_incoherent_modes(PROBES["gaussian"](16), 99)


@pytest.mark.parametrize("count", [1, 7, 64, 200])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories_have_the_requested_count_and_density(name: str, count: int) -> None:
    positions = TRAJECTORIES[name](count, 5.0, 0.2, np.random.default_rng(0))
    assert positions.shape == (count, 2)
    if count >= 64:
        box = np.prod(np.ptp(positions, axis=0) + 5.0)
        area = box * (np.pi / 4 if name == "spiral" else 1.0)  # a spiral fills a disk
        assert area / count == pytest.approx(25.0, rel=0.35)
        assert 2.0 < (compute_median_step(positions) or 0) < 7.0


@pytest.mark.parametrize("overlap", [0.6, 0.8])
def test_overlap_matches_the_setting(overlap: float) -> None:
    scan = simulate_scan("tiny", overlap=overlap, trajectory="grid")
    assert 1 - compute_median_step(scan.positions) / compute_probe_diameter(scan.probe) == pytest.approx(
        overlap, abs=0.01
    )


def test_counts_are_poisson_with_the_requested_mean() -> None:
    noiseless = simulate_scan("tiny", photons=0)
    expected = noiseless.amplitudes.astype(float) ** 2 * (2e4 / NOISELESS_PHOTONS_PER_PATTERN)
    counts = simulate_scan("tiny", photons=2e4).amplitudes.astype(float) ** 2
    assert np.abs(counts - counts.round()).max() < 1e-3  # float32 square roots of whole numbers
    assert counts.sum((1, 2)).mean() == pytest.approx(2e4, rel=0.005)
    bright = expected > 5
    chi = ((counts - expected)[bright] ** 2 / expected[bright]).mean()
    assert chi == pytest.approx(1.0, abs=0.05)  # variance = mean


def test_noiseless_scan_has_the_documented_mean() -> None:
    scan = simulate_scan("tiny", photons=0, seed=3)
    assert (scan.amplitudes.astype(float) ** 2).sum((1, 2)).mean() == pytest.approx(
        NOISELESS_PHOTONS_PER_PATTERN, rel=1e-5
    )


def test_shift_of_the_object_equals_shift_of_the_positions() -> None:
    rng = np.random.default_rng(0)
    obj, probe = OBJECTS["letters"]((80, 81), rng), PROBES["structured"](32)
    positions = np.array([[30.3, 40.2], [41.7, 35.5]])
    original = simulate_measurement(obj, probe, positions, 0, rng)
    shifted = simulate_measurement(np.roll(obj, (3, -2), (0, 1)), probe, positions + np.array([3, -2]), 0, rng)
    other = simulate_measurement(np.roll(obj, (3, -2), (0, 1)), probe, positions - np.array([3, -2]), 0, rng)
    assert np.allclose(original.amplitudes, shifted.amplitudes, rtol=1e-4, atol=1e-2)
    assert not np.allclose(original.amplitudes, other.amplitudes, rtol=1e-2, atol=1)


def test_prism_shifts_the_pattern_along_its_axis() -> None:
    y, _ = np.mgrid[:64, :64]
    rng = np.random.default_rng(0)
    probe, positions = PROBES["gaussian"](32), np.array([[32.0, 32.0]])
    flat = simulate_measurement(np.ones((64, 64), complex), probe, positions, 0, rng)
    prism = simulate_measurement(np.exp(2j * np.pi * 4 * y / 32), probe, positions, 0, rng)
    assert np.allclose(np.roll(flat.amplitudes, 4, axis=1), prism.amplitudes, rtol=1e-3, atol=1e-1)


def test_scan_is_determined_by_the_seed() -> None:
    first, same, other = (simulate_scan("tiny", seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first.amplitudes, same.amplitudes)
    assert np.array_equal(first.positions, same.positions)
    assert not np.array_equal(first.amplitudes, other.amplitudes)
    assert not np.array_equal(first.positions, other.positions)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_settings(name: str) -> None:
    settings = PRESETS[name]
    scan = simulate_scan(name)
    assert (len(scan), scan.size) == (settings.positions, settings.size)
    assert scan.truth is not None
    assert scan.truth.shape[0] != scan.truth.shape[1] or name == "star"
    counts = scan.amplitudes.astype(float) ** 2
    assert counts.sum((1, 2)).mean() == pytest.approx(settings.photons, rel=0.01)


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("huge", {}, "`preset` is huge; expected one of run1084, star, tiny"),
        ("tiny", {"sise": 64}, "`sise` is not a setting of a simulation; expected one of object, probe, .*size"),
        ("tiny", {"object": "dog"}, "`object` is dog; expected one of bars, cells"),
        ("tiny", {"size": 4}, "`size` is 4; expected at least 8"),
        ("tiny", {"photons": -1}, "`photons` is -1; expected a number of at least 0"),
        ("tiny", {"photons": "1e6"}, "`photons` is '1e6'; expected a number"),
        ("tiny", {"positions": 0}, "`positions` is 0; expected a number above 0"),
        ("tiny", {"overlap": 2}, "`overlap` is 2; expected a number from 0 to below 1"),
    ],
)
def test_unknown_settings_raise_and_list_the_choices(preset: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate_scan(preset, **settings)


def test_position_outside_the_object_raises() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="too close to the edge"):
        simulate_measurement(np.ones((40, 40), complex), PROBES["disk"](32), np.array([[5.0, 20.0]]), 0, rng)


@pytest.mark.skipif(not DATA, reason="PTYCHO_TORCH_DATA is not set: no independent simulator to compare with")
def test_independent_simulator_agrees(tmp_path: Path) -> None:
    """R stays below 1e-4 for a band-limited probe, although the other simulator shifts the object, not the probe."""
    tool = Path(str(DATA)).parent / "tools" / "simulate_twin.py"
    if not tool.is_file():
        pytest.skip(f"{tool} does not exist")
    scan = simulate_scan("run1084", positions=16, photons=0, object="cells")
    assert scan.truth is not None
    source, simulated = tmp_path / "source.npz", tmp_path / "simulated.npz"
    y, x = scan.positions.T
    np.savez(source, objectGuess=scan.truth, probeGuess=scan.probe[0], xcoords=x, ycoords=y)
    photons = 1e12  # counting noise is far below the expected difference
    subprocess.run(
        [sys.executable, str(tool), str(source), str(simulated), "--photons", str(photons), "--layout", "counts"],
        check=True,
        capture_output=True,
    )
    other = load_scan(simulated, measurement="amplitude").amplitudes.astype(float) * np.sqrt(
        NOISELESS_PHOTONS_PER_PATTERN / photons
    )
    ours = scan.amplitudes.astype(float)
    assert ((ours - other) ** 2).sum() / (other**2).sum() < 1e-4
