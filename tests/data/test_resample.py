"""Crop and bin: what comes out is one scan again, by the forward model, and shows the same object at the same place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.resample import bin_scan, compute_probe_power, crop_scan
from ptycho_torch.data.scan import Scan, check_scan
from ptycho_torch.physics.forward import from_object, shift_probe
from ptycho_torch.physics.patches import extract_patches, split_positions

Resample = Callable[[Scan, int], Scan]


def expected(scan: Scan) -> NDArray[np.float64]:
    """Noiseless amplitudes (n, N, N) of the scan's own object, probe and positions, zero frequency at N//2."""
    obj, probe = (torch.from_numpy(array).to(torch.complex128) for array in (scan.truth, scan.probe))
    intensity = from_object(obj, probe, torch.from_numpy(scan.positions)).intensity.numpy()
    amplitudes: NDArray[np.float64] = np.fft.fftshift(np.sqrt(intensity), axes=(1, 2))
    return amplitudes


def misfit(scan: Scan) -> float:
    """R of the scan's patterns against its own object, probe and positions."""
    measured = scan.amplitudes.astype(np.float64)
    return float(np.square(expected(scan) - measured).sum() / np.square(measured).sum())


def smooth_scan(size: int, width: float, modes: int = 1, detail: float = 6.0, **changes: Any) -> Scan:
    """25 noiseless patterns, 3 px apart: a bent spot of ``width`` px on waves of ``detail`` px without symmetry."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2
    spot = np.exp(-((y - 1) ** 2 + 1.3 * (x + 0.5) ** 2 + 0.3 * x * y) / (2 * width**2))
    bent = 30 * spot * np.exp(0.02j * (y**2 + 0.7 * x**2 + 0.5 * y))
    probe = np.stack([bent * (0.3 * (x + mode) / width) ** mode for mode in range(modes)]).astype(np.complex64)
    grid = np.stack(np.divmod(np.arange(25), 5), 1) * 3.0
    positions = grid + rng.uniform(-1, 1, (25, 2)) + size // 2 + 4
    rows, columns = (int(high) + size + 4 + more for high, more in zip(positions.max(0), (0, 3), strict=True))
    y, x = np.mgrid[:rows, :columns]
    dip = np.exp(-((y - 0.4 * rows) ** 2 + (x - 0.55 * columns) ** 2) / 200)
    truth = ((1 - 0.3 * dip) * np.exp(0.8j * np.sin(y / detail) * np.cos(x / detail / 1.3 + y / 20))).astype(
        np.complex64
    )
    scan = Scan(np.ones((25, size, size), np.float32), positions, probe, truth=truth, photons_per_unit=1.0)
    scan = replace(scan, **changes)
    return replace(scan, amplitudes=expected(scan).astype(np.float32))


# Measured margins stand beside the bars. Summing pixels blurs each pattern a little (they are measured in intensity),
# the more so the wider the probe is in the field that is left; cropping loses only what the band does not hold.
DETAIL = {crop_scan: 6.0, bin_scan: 2.0}  # larger object pixels resolve less

CASES = [
    pytest.param(crop_scan, 64, 6.0, 1, 2, 1e-6, id="crop-64-2"),  # 2e-7
    pytest.param(crop_scan, 60, 6.0, 1, 3, 3e-5, id="crop-60-3"),  # 5e-6
    pytest.param(crop_scan, 48, 5.0, 2, 2, 1e-5, id="crop-48-2-modes"),
    pytest.param(bin_scan, 64, 3.0, 1, 2, 1e-3, id="bin-64-2"),  # 3e-4; without the ramp 2e-2
    pytest.param(bin_scan, 60, 3.0, 1, 3, 6e-3, id="bin-60-3"),  # 3e-3; without the ramp 7e-2
    pytest.param(bin_scan, 60, 2.0, 1, 4, 5e-3, id="bin-60-4-odd"),  # 2e-3; without the ramp 1e-2
    pytest.param(bin_scan, 45, 2.0, 1, 3, 5e-3, id="bin-45-3-odd"),
    pytest.param(bin_scan, 64, 2.5, 2, 2, 3e-3, id="bin-64-2-modes"),
]


@pytest.mark.parametrize(("resample", "size", "width", "modes", "factor", "bar"), CASES)
def test_resampled_object_probe_and_positions_give_the_resampled_patterns(
    resample: Resample, size: int, width: float, modes: int, factor: int, bar: float
) -> None:
    scan = resample(smooth_scan(size, width, modes, DETAIL[resample]), factor)
    check_scan(scan)
    assert scan.size == size // factor
    assert misfit(scan) < bar
    for shift in ([1, 0], [0, -1]):
        assert misfit(replace(scan, positions=scan.positions + shift)) > 2 * misfit(scan)


@pytest.mark.parametrize(("resample", "size", "width", "modes", "factor", "bar"), CASES)
def test_the_power_of_the_probe_stays_in_photons(
    resample: Resample, size: int, width: float, modes: int, factor: int, bar: float
) -> None:
    scan = smooth_scan(size, width, modes)
    assert compute_probe_power(resample(scan, factor).probe) == pytest.approx(compute_probe_power(scan.probe), rel=3e-3)


@pytest.mark.parametrize("factor", [2, 4])
def test_in_vacuum_a_cropped_pattern_holds_the_power_of_the_cropped_probe(factor: int) -> None:
    scan = smooth_scan(64, 1.0)  # a narrow spot reaches far beyond the pixels that are kept
    vacuum = np.ones_like(scan.truth)
    scan = crop_scan(smooth_scan(64, 1.0, truth=vacuum), factor)
    totals = np.square(scan.amplitudes.astype(np.float64)).sum((1, 2))
    np.testing.assert_allclose(totals, compute_probe_power(scan.probe), rtol=1e-5)
    np.testing.assert_allclose(scan.truth, 1, atol=1e-6)


def test_summing_pixels_keeps_every_count() -> None:
    scan = smooth_scan(60, 2.0)
    before, after = (np.square(each.amplitudes.astype(np.float64)).sum((1, 2)) for each in (scan, bin_scan(scan, 4)))
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_cropping_divides_coordinates_and_binning_leaves_them() -> None:
    scan = smooth_scan(48, 2.0)
    scan = replace(scan, nominal_positions=scan.positions + 0.25)
    for name in ("positions", "nominal_positions"):
        np.testing.assert_array_equal(getattr(crop_scan(scan, 3), name), getattr(scan, name) / 3)
        np.testing.assert_array_equal(getattr(bin_scan(scan, 2), name), getattr(scan, name))
    np.testing.assert_array_equal(bin_scan(scan, 2).truth, scan.truth)
    rows, columns = scan.truth.shape
    assert crop_scan(scan, 3).truth.shape == (-(-rows // 3), -(-columns // 3))


@pytest.mark.parametrize("resample", [crop_scan, bin_scan])
def test_a_factor_of_one_changes_nothing(resample: Resample) -> None:
    scan = smooth_scan(24, 2.0)
    assert resample(scan, 1) is scan


@pytest.mark.parametrize("stack", [False, True])
def test_masks_follow_their_pixels(stack: bool) -> None:
    scan = smooth_scan(24, 2.0)
    mask = np.ones((25, 24, 24), bool)
    mask[3:, 13, 8] = False
    scan = replace(scan, mask=mask if stack else mask[3])
    for resample, row, column in ((crop_scan, 7, 2), (bin_scan, 6, 4)):
        found = resample(scan, 2).mask
        assert found is not None
        dark = np.argwhere(~np.atleast_3d(found.T).T[-1])
        assert found.dtype == bool
        assert dark.tolist() == [[row, column]]
        assert not stack or found[:3].all()


@pytest.mark.parametrize(("resample", "factor"), [(crop_scan, 2), (crop_scan, 3), (bin_scan, 2), (bin_scan, 3)])
def test_labels_stay_patches_of_the_object(resample: Resample, factor: int) -> None:
    scan = smooth_scan(48, 1.5)
    positions = np.floor(scan.positions / factor) * factor  # so that old and new windows start on the same pixel
    patches = extract_patches(
        torch.from_numpy(scan.truth), split_positions(torch.from_numpy(positions), 48).corners, 48
    )
    scan = resample(replace(scan, positions=positions, labels=patches.numpy()), factor)
    corners = split_positions(torch.from_numpy(scan.positions), scan.size).corners
    wanted = extract_patches(torch.from_numpy(scan.truth), corners, scan.size).numpy()
    inner = (slice(None), slice(2, -2), slice(2, -2))  # the edge of a patch is not the edge of the object
    np.testing.assert_allclose(scan.labels[inner], wanted[inner], atol=1e-2 if resample is crop_scan else 0)


def reconstructed(scan: Scan, epochs: int) -> NDArray[np.complex128]:
    """The object by ePIE with the known probe, from ones: pattern by pattern, the modulus is replaced."""
    corners, fractions = split_positions(torch.from_numpy(scan.positions), scan.size)
    probes = shift_probe(torch.from_numpy(scan.probe).to(torch.complex128), fractions).numpy()[:, 0]
    modulus = np.fft.ifftshift(scan.amplitudes.astype(np.float64), axes=(1, 2))
    obj = np.ones(scan.truth.shape, dtype=np.complex128)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for i in rng.permutation(len(scan)):
            row, column = corners[i].tolist()
            window = (slice(row, row + scan.size), slice(column, column + scan.size))
            wave = np.fft.fft2(probes[i] * obj[window], norm="ortho")
            fitted = np.fft.ifft2(modulus[i] * np.exp(1j * np.angle(wave)), norm="ortho")
            change = fitted - probes[i] * obj[window]
            obj[window] += probes[i].conj() * change / np.square(np.abs(probes[i])).max()
    return obj


def difference(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """NRMSE after the best complex factor."""
    overlap = np.vdot(found, truth) / np.vdot(found, found)
    return float(np.linalg.norm(overlap * found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize(
    ("resample", "size", "width", "factor"), [(crop_scan, 64, 6.0, 2), (bin_scan, 64, 3.0, 2), (bin_scan, 60, 2.0, 3)]
)
def test_a_reconstruction_overlays_the_original(resample: Resample, size: int, width: float, factor: int) -> None:
    original = smooth_scan(size, width, detail=DETAIL[resample])
    scan = resample(original, factor)
    obj = reconstructed(scan, 60)
    truth = original.truth[::factor, ::factor] if resample is crop_scan else original.truth
    low, high = (np.rint(edge(scan.positions, 0)).astype(int) for edge in (np.min, np.max))
    lit = (slice(low[0], high[0] + 1), slice(low[1], high[1] + 1))

    def away(shift: tuple[int, int]) -> float:
        return difference(np.roll(obj, shift, (0, 1))[lit], truth[lit])

    assert away((0, 0)) < 0.06  # measured: 0.004, 0.013, 0.042
    assert all(away(shift) > 0.07 for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)))


@pytest.mark.parametrize(
    ("resample", "size", "width", "factor", "said"),
    [
        (crop_scan, 24, 2.0, 5, "divide the 24"),
        (bin_scan, 24, 2.0, 5, "divide the 24"),
        (crop_scan, 24, 2.0, 4, "leave 6"),
        (bin_scan, 24, 2.0, 4, "leave 6"),
        (crop_scan, 60, 2.0, 4, "odd number"),
        (crop_scan, 45, 2.0, 3, "odd number"),
        (bin_scan, 60, 5.0, 3, "of its power"),
    ],
)
def test_what_cannot_be_exact_is_refused(resample: Resample, size: int, width: float, factor: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resample(smooth_scan(size, width), factor)


def test_no_light_left_is_refused() -> None:
    scan = smooth_scan(32, 3.0)
    middle = np.zeros((32, 32), bool)
    middle[8:24, 8:24] = True
    with pytest.raises(DataError, match="no light"):
        crop_scan(replace(scan, mask=~middle), 2)
    with pytest.raises(DataError, match="no light"):
        bin_scan(replace(scan, mask=np.indices((32, 32)).sum(0) % 2 == 0), 2)
    checkers = np.where(np.indices((32, 32)).sum(0) % 2, 1, -1)  # all its power at the highest frequency
    with pytest.raises(DataError, match="nothing of the probe"):
        crop_scan(replace(scan, probe=checkers[None].astype(np.complex64)), 2)
