"""Crop and bin: the resampled arrays agree with the forward model, and the object keeps its place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.resample import bin_scan, compute_probe_power, crop_scan
from ptycho_torch.data.scan import Scan, check_scan
from ptycho_torch.physics.forward import from_object, shift_probe
from ptycho_torch.physics.patches import extract_patches, split_positions

Resample = Callable[[Scan, int], Scan]


def predict_amplitudes(scan: Scan) -> NDArray[np.float64]:
    """Return noiseless amplitudes (n, N, N) of the scan's object, probe and positions, zero frequency at N//2."""
    obj, probe = (torch.from_numpy(array).to(torch.complex128) for array in (scan.truth, scan.probe))
    intensity = from_object(obj, probe, torch.from_numpy(scan.positions)).intensity.numpy()
    amplitudes: NDArray[np.float64] = np.fft.fftshift(np.sqrt(intensity), axes=(1, 2))
    return amplitudes


def compute_r(scan: Scan) -> float:
    """Return R of the scan's patterns against the forward model of its object, probe and positions."""
    measured = scan.amplitudes.astype(np.float64)
    return float(np.square(predict_amplitudes(scan) - measured).sum() / np.square(measured).sum())


def smooth_scan(size: int, width: float, modes: int = 1, detail: float = 6.0, **changes: Any) -> Scan:
    """Make 25 noiseless patterns, 3 px apart: a curved spot of ``width`` px and an object of ``detail`` px waves."""
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
    return replace(scan, amplitudes=predict_amplitudes(scan).astype(np.float32))


# Comments give the measured values. Summing intensities blurs each pattern slightly, more for a probe that is wide in
# the remaining field; cropping loses only what lies outside the band.
DETAIL = {crop_scan: 6.0, bin_scan: 2.0}  # larger object pixels need a smoother object

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


@pytest.mark.parametrize(("resample", "size", "width", "modes", "factor", "limit"), CASES)
def test_forward_model_predicts_the_resampled_patterns(
    resample: Resample, size: int, width: float, modes: int, factor: int, limit: float
) -> None:
    scan = resample(smooth_scan(size, width, modes, DETAIL[resample]), factor)
    check_scan(scan)
    assert scan.size == size // factor
    assert compute_r(scan) < limit
    for shift in ([1, 0], [0, -1]):
        assert compute_r(replace(scan, positions=scan.positions + shift)) > 2 * compute_r(scan)


@pytest.mark.parametrize(("resample", "size", "width", "modes", "factor", "limit"), CASES)
def test_probe_power_is_kept(
    resample: Resample, size: int, width: float, modes: int, factor: int, limit: float
) -> None:
    scan = smooth_scan(size, width, modes)
    assert compute_probe_power(resample(scan, factor).probe) == pytest.approx(compute_probe_power(scan.probe), rel=3e-3)


@pytest.mark.parametrize("factor", [2, 4])
def test_cropped_vacuum_pattern_has_the_power_of_the_cropped_probe(factor: int) -> None:
    scan = smooth_scan(64, 1.0)  # the far field of a narrow spot extends far beyond the cropped detector
    vacuum = np.ones_like(scan.truth)
    scan = crop_scan(smooth_scan(64, 1.0, truth=vacuum), factor)
    totals = np.square(scan.amplitudes.astype(np.float64)).sum((1, 2))
    np.testing.assert_allclose(totals, compute_probe_power(scan.probe), rtol=1e-5)
    np.testing.assert_allclose(scan.truth, 1, atol=1e-6)


def test_binning_keeps_all_counts() -> None:
    scan = smooth_scan(60, 2.0)
    before, after = (np.square(each.amplitudes.astype(np.float64)).sum((1, 2)) for each in (scan, bin_scan(scan, 4)))
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_crop_divides_coordinates_and_bin_keeps_them() -> None:
    scan = smooth_scan(48, 2.0)
    scan = replace(scan, nominal_positions=scan.positions + 0.25)
    for name in ("positions", "nominal_positions"):
        np.testing.assert_array_equal(getattr(crop_scan(scan, 3), name), getattr(scan, name) / 3)
        np.testing.assert_array_equal(getattr(bin_scan(scan, 2), name), getattr(scan, name))
    np.testing.assert_array_equal(bin_scan(scan, 2).truth, scan.truth)
    rows, columns = scan.truth.shape
    assert crop_scan(scan, 3).truth.shape == (-(-rows // 3), -(-columns // 3))


@pytest.mark.parametrize(("resize", "object_factor", "detector_factor"), [(crop_scan, 2, 1), (bin_scan, 1, 2)])
def test_pixel_sizes_follow_crop_and_bin(resize: Resample, object_factor: int, detector_factor: int) -> None:
    geometry = Geometry(object_pixel_m=(1e-8, 2e-8), detector_pixel_m=(5e-5, 6e-5), wavelength_m=1e-10)
    resized = resize(smooth_scan(32, 2.5, geometry=geometry), 2).geometry
    assert resized is not None
    assert resized.object_pixel_m == (object_factor * 1e-8, object_factor * 2e-8)
    assert resized.detector_pixel_m == (detector_factor * 5e-5, detector_factor * 6e-5)
    assert resized.wavelength_m == 1e-10


@pytest.mark.parametrize("resample", [crop_scan, bin_scan])
def test_factor_one_returns_the_scan(resample: Resample) -> None:
    scan = smooth_scan(24, 2.0)
    assert resample(scan, 1) is scan


@pytest.mark.parametrize("stack", [False, True])
def test_masks_are_resampled_with_the_patterns(stack: bool) -> None:
    scan = smooth_scan(24, 2.0)
    mask = np.ones((25, 24, 24), bool)
    mask[3:, 13, 8] = False
    scan = replace(scan, mask=mask if stack else mask[3])
    for resample, row, column in ((crop_scan, 7, 2), (bin_scan, 6, 4)):
        mask = resample(scan, 2).mask
        assert mask is not None
        masked = np.argwhere(~np.atleast_3d(mask.T).T[-1])
        assert mask.dtype == bool
        assert masked.tolist() == [[row, column]]
        assert not stack or mask[:3].all()


@pytest.mark.parametrize(("resample", "factor"), [(crop_scan, 2), (crop_scan, 3), (bin_scan, 2), (bin_scan, 3)])
def test_labels_remain_patches_of_the_object(resample: Resample, factor: int) -> None:
    scan = smooth_scan(48, 1.5)
    positions = np.floor(scan.positions / factor) * factor  # old and new windows start on the same pixel
    patches = extract_patches(
        torch.from_numpy(scan.truth), split_positions(torch.from_numpy(positions), 48).corners, 48
    )
    scan = resample(replace(scan, positions=positions, labels=patches.numpy()), factor)
    corners = split_positions(torch.from_numpy(scan.positions), scan.size).corners
    expected = extract_patches(torch.from_numpy(scan.truth), corners, scan.size).numpy()
    inner = (slice(None), slice(2, -2), slice(2, -2))  # the edge of a patch is not the edge of the object
    np.testing.assert_allclose(scan.labels[inner], expected[inner], atol=1e-2 if resample is crop_scan else 0)


def reconstruct(scan: Scan, epochs: int) -> NDArray[np.complex128]:
    """Reconstruct the object by ePIE with the known probe, starting from ones."""
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


def compute_nrmse(obj: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the NRMSE after the best complex factor."""
    overlap = np.vdot(obj, truth) / np.vdot(obj, obj)
    return float(np.linalg.norm(overlap * obj - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize(
    ("resample", "size", "width", "factor"), [(crop_scan, 64, 6.0, 2), (bin_scan, 64, 3.0, 2), (bin_scan, 60, 2.0, 3)]
)
def test_reconstruction_overlays_the_original(resample: Resample, size: int, width: float, factor: int) -> None:
    original = smooth_scan(size, width, detail=DETAIL[resample])
    scan = resample(original, factor)
    obj = reconstruct(scan, 60)
    truth = original.truth[::factor, ::factor] if resample is crop_scan else original.truth
    low, high = (np.rint(edge(scan.positions, 0)).astype(int) for edge in (np.min, np.max))
    scanned = (slice(low[0], high[0] + 1), slice(low[1], high[1] + 1))

    def compute_shifted_nrmse(shift: tuple[int, int]) -> float:
        return compute_nrmse(np.roll(obj, shift, (0, 1))[scanned], truth[scanned])

    assert compute_shifted_nrmse((0, 0)) < 0.06  # measured: 0.004, 0.013, 0.042
    assert all(compute_shifted_nrmse(shift) > 0.07 for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)))


@pytest.mark.parametrize(
    ("resample", "size", "width", "factor", "message"),
    [
        (crop_scan, 24, 2.0, 5, "divisor of 24"),
        (bin_scan, 24, 2.0, 5, "divisor of 24"),
        (crop_scan, 24, 2.0, 4, "leave 6"),
        (bin_scan, 24, 2.0, 4, "leave 6"),
        (crop_scan, 60, 2.0, 4, "expected an even number"),
        (crop_scan, 45, 2.0, 3, "expected an even number"),
        (bin_scan, 60, 5.0, 3, "of its power"),
    ],
)
def test_unsuitable_factor_raises(resample: Resample, size: int, width: float, factor: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resample(smooth_scan(size, width), factor)


def test_no_photons_left_raises() -> None:
    scan = smooth_scan(32, 3.0)
    middle = np.zeros((32, 32), bool)
    middle[8:24, 8:24] = True
    with pytest.raises(DataError, match="no photons"):
        crop_scan(replace(scan, mask=~middle), 2)
    with pytest.raises(DataError, match="no photons"):
        bin_scan(replace(scan, mask=np.indices((32, 32)).sum(0) % 2 == 0), 2)
    checkers = np.where(np.indices((32, 32)).sum(0) % 2, 1, -1)  # all power at the highest frequency
    with pytest.raises(DataError, match="nothing of the probe"):
        crop_scan(replace(scan, probe=checkers[None].astype(np.complex64)), 2)
