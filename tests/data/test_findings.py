"""Faults of a scan: each is found with its evidence, corrected where that is safe, and not reported without cause."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ptycho_torch as pt
from ptycho_torch.core.errors import ContractError
from ptycho_torch.data.findings import find_faults
from ptycho_torch.data.fixes import fix_scan
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import load_scan, read_input, save_scan

Change = Callable[[Scan], Scan]
RNG_SEED = 0


@pytest.fixture(scope="module")
def scan() -> Scan:
    return pt.simulate_scan("run1084", positions=400, photons=1e6, seed=0)


def choose(scan: Scan, fraction: float = 0.05) -> Any:
    """Return the indices of randomly chosen frames."""
    return np.sort(np.random.default_rng(RNG_SEED).permutation(len(scan))[: int(fraction * len(scan))])


def with_frames(change: Callable[[Any], Any]) -> Change:
    """Return a change of 5 % of the frames."""

    def apply(scan: Scan) -> Scan:
        amplitudes, chosen = scan.amplitudes.copy(), choose(scan)
        amplitudes[chosen] = change(amplitudes[chosen])
        return replace(scan, amplitudes=amplitudes)

    return apply


def make_noise(frames: Any) -> Any:
    return np.sqrt(np.random.default_rng(1).poisson(4e6 / 64**2, frames.shape))


def with_amplitudes(change: Callable[[Any], Any]) -> Change:
    return lambda scan: replace(scan, amplitudes=np.float32(change(scan.amplitudes.copy())))


def stop_beam(amplitudes: Any) -> Any:
    return np.where(np.hypot(*(np.mgrid[:64, :64] - 32)) < 14, 0, amplitudes)


def saturate(amplitudes: Any) -> Any:
    return np.minimum(amplitudes, np.sqrt(np.quantile(np.square(amplitudes), 0.97)))


def add_defects(amplitudes: Any) -> Any:
    amplitudes[:, 33, 30] = 0
    amplitudes[:, 5, 7] = 20
    return amplitudes


def shift_position(scan: Scan) -> Scan:
    positions = scan.positions.copy()
    positions[7] += 3000
    positions[90, 1] -= 1e6
    return replace(scan, positions=positions)


def move_probe_to_corner(scan: Scan) -> Scan:
    return replace(scan, probe=np.fft.ifftshift(scan.require_probe(), axes=(-2, -1)))


def roll(shift: tuple[int, int]) -> Change:
    return with_amplitudes(lambda amplitudes: np.roll(amplitudes, shift, (1, 2)))


FAULTS: list[tuple[str, str, Change]] = [
    ("bright", "outlier frames", with_frames(lambda frames: frames * np.sqrt(10))),
    ("noise", "outlier frames", with_frames(make_noise)),
    ("dark", "outlier frames", with_frames(lambda frames: frames / 10)),
    ("empty", "outlier frames", with_frames(np.zeros_like)),
    ("glitch", "outlier positions", shift_position),
    ("center by 1", "center", roll((1, 0))),
    ("center by 2", "center", roll((2, -2))),
    ("center by 10", "center", roll((10, -7))),
    ("corner probe", "probe origin", move_probe_to_corner),
    ("beam stop", "bad pixels", with_amplitudes(stop_beam)),
    ("defects", "bad pixels", with_amplitudes(add_defects)),
    ("saturated", "saturation", with_amplitudes(saturate)),
]


@pytest.mark.parametrize(("name", "change"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_fault_is_found_and_corrected(scan: Scan, name: str, change: Change) -> None:
    damaged = change(scan)
    findings = find_faults(damaged)
    assert [finding.name for finding in findings] == [name]
    assert findings[0].severity == "warning"
    assert "`" in findings[0].setting
    fixed, applied = fix_scan(damaged)
    assert applied
    assert find_faults(fixed) == []


@pytest.mark.parametrize("fault", ["far from the scan: pattern 7 at", "probe is around its corner"])
def test_reading_a_scan_warns_of_faults_that_need_no_pattern(
    scan: Scan, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = scan.select(np.arange(50))
    positions = small.positions.copy()
    positions[7] = (5e4, 60)
    assert small.probe is not None
    corner = np.fft.ifftshift(small.probe, axes=(-2, -1))
    save_scan(
        tmp_path / "scan.npz", replace(small, **({"positions": positions} if "far" in fault else {"probe": corner}))
    )
    load_scan(tmp_path / "scan.npz")
    assert fault in caplog.text
    assert "`fix`" in caplog.text
    caplog.clear()
    load_scan(tmp_path / "scan.npz", fix=True)
    assert fault not in caplog.text


@pytest.mark.parametrize("shift", [(1, 0), (2, -2), (10, -7)])
def test_corrected_center_restores_every_unmasked_value(scan: Scan, shift: tuple[int, int]) -> None:
    fixed, _ = fix_scan(roll(shift)(scan))
    assert fixed.mask is not None
    np.testing.assert_array_equal(fixed.amplitudes[:, fixed.mask], scan.amplitudes[:, fixed.mask])
    assert fixed.mask.mean() > 0.7


@pytest.mark.parametrize("setting", [{"fix": True}, {"center": "auto"}], ids=["fix", "center"])
def test_the_probe_takes_the_fraction_of_a_pixel_that_a_window_leaves(
    scan: Scan, tmp_path: Path, setting: dict[str, Any]
) -> None:
    """The ramp would otherwise be in the object."""
    fraction = np.exp(2j * np.pi * 0.4 * (np.arange(64) - 32) / 64)
    offset = replace(roll((3, -5))(scan), probe=(scan.require_probe() / fraction).astype(np.complex64))
    save_scan(tmp_path / "scan.npz", offset)  # the center is at (3, -4.6) from that of the far field of the probe
    restored = load_scan(tmp_path / "scan.npz", **setting).require_probe()
    power = np.linalg.norm(restored) * np.linalg.norm(scan.require_probe())
    assert np.vdot(restored, scan.require_probe()).real > 0.998 * power
    assert np.vdot(offset.require_probe(), scan.require_probe()).real < 0.98 * power


@pytest.mark.parametrize(
    "mask",
    [lambda y, x: y < 28, lambda y, x: x > 30, lambda y, x: np.hypot(y - 36, x - 29) > 8],
    ids=["upper half", "right half", "stop beside the center"],
)
@pytest.mark.parametrize("probe", ["structured", "fresnel", "gaussian"])
def test_mask_on_one_side_does_not_move_the_center(probe: str, mask: Callable[[Any, Any], Any]) -> None:
    intact = pt.simulate_scan("run1084", positions=100, probe=probe, seed=3)
    masked = replace(intact, mask=mask(*np.mgrid[:64, :64]))
    assert "center" not in {finding.name for finding in find_faults(masked)}


@pytest.mark.parametrize("change", [fault[2] for fault in FAULTS[:4]], ids=[fault[0] for fault in FAULTS[:4]])
def test_exactly_the_outlier_frames_are_left_out(scan: Scan, change: Change) -> None:
    fixed, _ = fix_scan(change(scan))
    assert fixed.source_index is not None
    np.testing.assert_array_equal(fixed.source_index, np.setdiff1d(np.arange(len(scan)), choose(scan)))


def test_consecutive_bad_frames_are_found(scan: Scan) -> None:
    amplitudes = scan.amplitudes.copy()
    amplitudes[100:120] *= 0.1
    fixed, _ = fix_scan(replace(scan, amplitudes=amplitudes))
    assert fixed.source_index is not None
    np.testing.assert_array_equal(np.setdiff1d(np.arange(400), fixed.source_index), np.arange(100, 120))


INTACT: list[dict[str, Any]] = [
    {"preset": "tiny"},
    {"preset": "tiny", "photons": 1e3},
    {"preset": "tiny", "photons": 0},
    {"preset": "run1084", "positions": 300, "photons": 1e3},
    {"preset": "run1084", "positions": 300, "object": "gratings"},
    {"preset": "run1084", "positions": 300, "object": "spokes"},
    {"preset": "run1084", "positions": 300, "object": "photographs", "probe": "speckle"},
    {"preset": "run1084", "positions": 300, "object": "bars", "probe": "gaussian"},
    {"preset": "star", "positions": 200},
    {"preset": "star", "positions": 200, "photons": 1e3},
]


@pytest.mark.parametrize("settings", INTACT, ids=[" ".join(map(str, case.values())) for case in INTACT])
def test_intact_scan_has_no_fault(settings: dict[str, Any]) -> None:
    intact = pt.simulate_scan(**settings, seed=3)
    assert find_faults(intact) == []
    assert find_faults(replace(intact, probe=None)) == []
    fixed, applied = fix_scan(intact)
    assert fixed is intact
    assert applied == []


def test_beam_that_decays_is_no_fault(scan: Scan) -> None:
    amplitudes = scan.amplitudes.copy()
    amplitudes[300:] *= np.sqrt(0.4)
    assert find_faults(replace(scan, amplitudes=amplitudes)) == []


def test_inverted_mask_is_an_error_that_names_the_polarity(scan: Scan, tmp_path: Path) -> None:
    mask = np.ones((64, 64), bool)
    mask[3, 4:10] = False
    damaged = replace(scan, mask=~mask)
    first = find_faults(damaged)[0]
    assert (first.name, first.severity, first.rule) == ("mask", "error", "R30")
    save_scan(tmp_path / "scan.npz", damaged)
    with pytest.raises(ContractError, match=r"polarity.*`invert_mask`.*\[contract R30\]"):
        load_scan(tmp_path / "scan.npz")
    assert load_scan(tmp_path / "scan.npz", invert_mask=True).mask is not None
    assert find_faults(replace(scan, mask=mask)) == []


def test_mask_of_a_beam_stop_is_no_fault(scan: Scan) -> None:
    mask = np.hypot(*(np.mgrid[:64, :64] - 32)) >= 14
    damaged = replace(with_amplitudes(lambda a: np.where(mask, a, 0))(scan), mask=mask)
    assert find_faults(damaged) == []


@pytest.mark.parametrize(
    ("factor", "unit"), [(2e-8, "meters"), (5e-3, "millimeters"), (0.05, "micrometers"), (40, "nanometers")]
)
def test_positions_in_another_unit_are_an_error(scan: Scan, tmp_path: Path, factor: float, unit: str) -> None:
    damaged = replace(scan, positions=scan.positions * factor)
    assert "R31" in {finding.rule for finding in find_faults(damaged)}
    save_scan(tmp_path / "scan.npz", damaged)
    with pytest.raises(ContractError, match=rf"{unit}.*`position_unit`.*\[contract R31\]"):
        load_scan(tmp_path / "scan.npz")


def test_two_scans_in_one_file_are_reported(scan: Scan) -> None:
    findings = find_faults(replace(scan, scan_index=np.arange(len(scan)) // 200))
    assert [(finding.name, finding.setting) for finding in findings] == [("several scans", "`scan_index`")]


def test_implausible_photon_scale_is_reported_with_the_scale_of_the_lattice(scan: Scan) -> None:
    damaged = replace(scan, amplitudes=scan.amplitudes * np.float32(1e-4), photons_per_unit=1.0)
    findings = find_faults(damaged)
    assert [finding.name for finding in findings] == ["photon scale"]
    assert "1e+08" in findings[0].evidence


def test_fix_of_a_file_is_logged_and_recorded(scan: Scan, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_scan(tmp_path / "scan.npz", shift_position(scan))
    with caplog.at_level(logging.WARNING):
        fixed = read_input(tmp_path / "scan.npz", fix=True).scan
    assert len(fixed) == 398
    assert "left out 2 outlier patterns: 7, 90" in caplog.text
    assert fixed.metadata["fixes"] == ["left out 2 outlier patterns: 7, 90"]


INTENSITY_SCALES = [1.0, 1 / 7.3e5]


@pytest.mark.parametrize("scale", INTENSITY_SCALES)
@pytest.mark.parametrize("photons", [1e3, 1e6])
def test_undeclared_intensities_of_counts_are_read_as_counts(
    write_npz: Callable[..., Path], scale: float, photons: float
) -> None:
    true = pt.simulate_scan("tiny", photons=photons, seed=1)
    scan = load_scan(write_npz(make_undeclared(true, np.square(true.amplitudes, dtype=np.float64).round() * scale)))
    np.testing.assert_allclose(scan.amplitudes, true.amplitudes * np.sqrt(scale), rtol=1e-5)


@pytest.mark.parametrize("round_off", [np.float16, lambda values: values.round(3)], ids=["float16", "three decimals"])
def test_undeclared_amplitudes_of_few_digits_are_no_counts(
    write_npz: Callable[..., Path], round_off: Callable[[Any], Any]
) -> None:
    """They are multiples of their last digit."""
    true = pt.simulate_scan("tiny", photons=1e6, seed=1)
    scan = load_scan(write_npz(make_undeclared(true, round_off(true.amplitudes))))
    np.testing.assert_allclose(scan.amplitudes, true.amplitudes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("preset", ["tiny", "run1084"])
def test_undeclared_intensities_without_a_lattice_are_an_error(write_npz: Callable[..., Path], preset: str) -> None:
    true = pt.simulate_scan(preset, photons=0, positions=100, seed=1)
    with pytest.raises(ContractError, match=r"`measurement`.*\[contract R8\]"):
        load_scan(write_npz(make_undeclared(true, np.square(true.amplitudes) / 1e6)))
    scan = load_scan(write_npz(make_undeclared(true, true.amplitudes)))
    np.testing.assert_array_equal(scan.amplitudes, true.amplitudes)


def make_undeclared(scan: Scan, patterns: Any) -> dict[str, Any]:
    """Return the arrays of a file that declares nothing."""
    return {
        "diffraction": patterns,
        "probeGuess": scan.require_probe()[0],
        "ycoords": scan.positions[:, 0],
        "xcoords": scan.positions[:, 1],
    }


@pytest.mark.parametrize("probe", ["gaussian", "zone_plate"])
def test_center_of_a_symmetric_beam_is_found_without_a_probe(probe: str) -> None:
    scan = replace(pt.simulate_scan("tiny", photons=1e6, probe=probe, seed=0), probe=None)
    assert "center" not in [finding.name for finding in find_faults(scan)]
    assert "center" in [finding.name for finding in find_faults(roll((2, 2))(scan))]


@pytest.mark.parametrize("counts", [True, False])
def test_counts_declared_amplitudes_are_found(
    scan: Scan, counts: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.rint(np.square(scan.amplitudes)) if counts else scan.amplitudes
    arrays = {"frames": values.astype(np.uint16) if counts else values, "positions": scan.positions}
    np.savez(tmp_path / "own.npz", **arrays)
    read = load_scan(tmp_path / "own.npz", diffraction_key="frames", measurement="amplitude")
    assert ("likely counts" in caplog.text) == counts
    assert ("measurement" in [finding.name for finding in find_faults(read)]) == counts


@pytest.mark.parametrize("per_pattern", [False, True])
def test_a_bright_masked_corner_is_no_corner_origin(scan: Scan, per_pattern: bool) -> None:
    amplitudes, mask = scan.amplitudes.copy(), np.ones(scan.amplitudes.shape[1:], bool)
    amplitudes[:, :4, :4], mask[:4, :4] = 2000, False
    masked = replace(scan, amplitudes=amplitudes, mask=np.repeat(mask[None], len(scan), 0) if per_pattern else mask)
    assert "origin" not in [finding.name for finding in find_faults(masked)]
    everywhere = replace(masked, mask=None)
    assert "origin" in [finding.name for finding in find_faults(everywhere)]
