"""Resampling of a scan to fewer detector pixels: crop to the central pixels, or bin blocks of pixels.

Both keep the arrays consistent: the forward model of the resampled object, probe and positions gives the resampled
patterns, as far as the remaining pixels resolve object and probe.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.scan import Scan

MIN_PATTERN_SIZE_PX = 8
"""Smallest side of a resampled pattern in pixels."""

MAX_PROBE_POWER_LOSS = 0.01
"""Largest share of the probe's power that binning may crop."""

Complex = NDArray[np.complex128]


def check_resampled_size(size: int, crop: int, bin: int) -> None:
    """Check that patterns of ``size`` pixels can be cropped by ``crop`` and then binned by ``bin``.

    Raises:
        ConfigError: a factor does not divide the size, leaves less than 8 pixels, or crops to an odd number.
    """
    remaining = size // (crop * bin)
    for name, factor, before in (("crop", crop, size), ("bin", bin, size // crop)):
        if before % factor:
            raise ConfigError(f"`{name}` is {factor}; expected a divisor of {before}, the side of a pattern in pixels")
    if crop * bin > 1 and remaining < MIN_PATTERN_SIZE_PX:
        raise ConfigError(
            f"`crop` {crop} and `bin` {bin} leave {remaining} of {size} pixels; expected at least "
            f"{MIN_PATTERN_SIZE_PX}; choose smaller factors"
        )
    if crop > 1 and (size // crop) % 2:
        raise ConfigError(
            f"`crop` is {crop} and leaves {size // crop} pixels; expected an even number, because the middle of an odd "
            "window does not stay on the pixel grid; choose another factor"
        )


def crop_scan(scan: Scan, factor: int) -> Scan:
    """Keep the central ``N / factor`` detector pixels; the object pixel grows by ``factor``.

    Probe and object are limited to the band that these pixels resolve, and coordinates are divided by ``factor``. Pixel
    ``p`` of the new object (and of a new patch) is the old pixel ``factor · p``; the origin is unchanged.

    Args:
        scan: the scan.
        factor: crop factor; 1 returns the scan unchanged.

    Raises:
        ConfigError: the factor does not divide N, or leaves less than 8 or an odd number of pixels.
        DataError: no photons remain, or nothing of the probe's power.
    """
    check_resampled_size(scan.size, factor, 1)
    if factor == 1:
        return scan
    middle = _make_central_slice(scan.size, scan.size // factor)
    setting = f"`crop` {factor}"
    amplitudes = np.ascontiguousarray(scan.amplitudes[:, middle, middle])
    mask = None if scan.mask is None else np.ascontiguousarray(scan.mask[..., middle, middle])
    probe = None if scan.probe is None else _crop_probe_band(scan.probe, middle).astype(np.complex64)
    _check_photons_left(scan, amplitudes, mask, setting)
    if (
        scan.probe is not None
        and probe is not None
        and not compute_probe_power(probe) > 1e-6 * compute_probe_power(scan.probe)
    ):
        raise DataError(
            f"{_format_source(scan)}: {setting} leaves nothing of the probe's power; choose a smaller factor"
        )
    return replace(
        scan,
        amplitudes=amplitudes,
        positions=scan.positions / factor,
        probe=probe,
        mask=mask,
        truth=None if scan.truth is None else _resample_transmission(scan.truth, factor).astype(np.complex64),
        nominal_positions=None if scan.nominal_positions is None else scan.nominal_positions / factor,
        labels=None if scan.labels is None else _resample_transmission(scan.labels, factor).astype(np.complex64),
        geometry=None if scan.geometry is None else scan.geometry.scale_pixels(object_factor=factor),
    )


def bin_scan(scan: Scan, factor: int) -> Scan:
    """Sum the counts of ``factor`` × ``factor`` detector pixels; object pixel and coordinates are unchanged.

    The field of view of a pattern shrinks, so probe and labels are cropped to their central ``N / factor`` pixels. A
    summed pixel counts if all of its pixels count.

    Args:
        scan: the scan.
        factor: bin factor; 1 returns the scan unchanged.

    Raises:
        ConfigError: the factor does not divide N or leaves less than 8 pixels, or more than 1 % of the probe's power is
            cropped.
        DataError: no photons remain on pixels that count.
    """
    check_resampled_size(scan.size, 1, factor)
    if factor == 1:
        return scan
    middle = _make_central_slice(scan.size, scan.size // factor)
    probe = None if scan.probe is None else scan.probe[:, middle, middle]
    lost_fraction = 0.0
    if scan.probe is not None and probe is not None:
        lost_fraction = 1 - compute_probe_power(probe) / compute_probe_power(scan.probe)
    if lost_fraction > MAX_PROBE_POWER_LOSS:
        raise ConfigError(
            f"`bin` is {factor} and crops the probe to its central {scan.size // factor} pixels, which loses "
            f"{lost_fraction:.1%} of its power; expected at most {MAX_PROBE_POWER_LOSS:.0%}; choose a smaller factor"
        )
    mask = None if scan.mask is None else np.asarray(_split_into_blocks(scan.mask, factor).all((-3, -1)))
    counts = _split_into_blocks(np.square(scan.amplitudes, dtype=np.float64), factor).sum((-3, -1))
    amplitudes = np.sqrt(counts).astype(np.float32)
    _check_photons_left(scan, amplitudes, mask, f"`bin` {factor}")
    return replace(
        scan,
        amplitudes=amplitudes,
        probe=None if probe is None else (probe * _make_block_ramp(scan.size, factor)).astype(np.complex64),
        mask=mask,
        labels=None if scan.labels is None else np.ascontiguousarray(scan.labels[:, middle, middle]),
        geometry=None if scan.geometry is None else scan.geometry.scale_pixels(detector_factor=factor),
    )


def resample_probe(probe: NDArray[Any], size: int) -> NDArray[np.complex64]:
    """Return a probe on ``size`` pixels over the same field: its spectrum is cropped or padded; the power is kept.

    Args:
        probe: (M, N, N) complex.
        size: number of pixels per side of the result.
    """
    old = probe.shape[-1]
    spectrum = np.fft.fftshift(np.fft.fft2(probe.astype(np.complex128), norm="ortho"), axes=(-2, -1))
    resampled = np.zeros((*probe.shape[:-2], size, size), np.complex128)
    common = min(old, size)
    source = slice(old // 2 - common // 2, old // 2 - common // 2 + common)
    target = slice(size // 2 - common // 2, size // 2 - common // 2 + common)
    resampled[..., target, target] = spectrum[..., source, source]
    values = np.fft.ifft2(np.fft.ifftshift(resampled, axes=(-2, -1)), norm="ortho")
    return values.astype(np.complex64)


def compute_probe_power(probe: NDArray[Any]) -> float:
    """Return the power of a probe (M, N, N), summed over modes, in the probe's unit."""
    return float(np.square(np.abs(probe.astype(np.complex128))).sum())


def _make_central_slice(size: int, new_size: int) -> slice:
    """Return the central ``new_size`` of ``size`` pixels: index size//2 becomes index new_size//2."""
    start = size // 2 - new_size // 2
    return slice(start, start + new_size)


def _crop_probe_band(probe: NDArray[Any], middle: slice) -> Complex:
    """Return the probe (M, N, N) limited to the band of the central detector pixels, with the power of that band."""
    spectrum = np.fft.fftshift(np.fft.fft2(probe.astype(np.complex128), norm="ortho"), axes=(-2, -1))
    band = np.fft.ifftshift(spectrum[:, middle, middle], axes=(-2, -1))
    return np.fft.ifft2(band, norm="ortho").astype(np.complex128)


def _resample_transmission(transmission: NDArray[Any], factor: int) -> Complex:
    """Return a transmission (*, rows, columns), band-limited to the larger pixel, at every ``factor``-th pixel."""
    rows_done = _resample_last_axis(transmission.astype(np.complex128), factor)
    return np.ascontiguousarray(np.swapaxes(_resample_last_axis(np.swapaxes(rows_done, -2, -1), factor), -2, -1))


def _resample_last_axis(image: Complex, factor: int) -> Complex:
    """Return the last axis band-limited by a Fourier crop that keeps the mean, at pixels 0, ``factor``, 2 ``factor``, …

    The axis is first padded to a multiple of the factor at its far end, and mirrored there: Fourier space is periodic,
    and a jump from the last pixel to the first would ring.
    """
    length = -(-image.shape[-1] // factor)
    no_padding = [(0, 0)] * (image.ndim - 1)
    padded = np.pad(image, [*no_padding, (0, length * factor - image.shape[-1])], mode="edge")
    spectrum = np.fft.fftshift(np.fft.fft(np.concatenate([padded, padded[..., ::-1]], -1)), axes=-1)
    band = spectrum[..., _make_central_slice(2 * length * factor, 2 * length)]
    sampled: Complex = np.fft.ifft(np.fft.ifftshift(band, axes=-1))[..., :length] / factor
    return sampled


def _split_into_blocks(array: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return (*, N, N) as (*, N / factor, factor, N / factor, factor)."""
    side = array.shape[-1] // factor
    return array.reshape(*array.shape[:-2], side, factor, side, factor)


def _make_block_ramp(size: int, factor: int) -> Complex:
    """Return the phase factor (N / factor, N / factor) on the cropped probe that moves zero frequency to its block.

    The block that contains zero frequency need not be centered on it: its center lies ``offset`` old pixels further.
    The far field at the centers of the blocks is the far field of the probe times exp(-2πi · offset · x / N).
    """
    side = size // factor
    offset = factor * (side // 2) + (factor - 1) / 2 - size // 2
    ramp = np.exp(-2j * np.pi * offset * (np.arange(side) - side // 2) / size)
    return ramp[:, None] * ramp


def _check_photons_left(
    scan: Scan, amplitudes: NDArray[np.float32], mask: NDArray[np.bool_] | None, setting: str
) -> None:
    if not (amplitudes if mask is None else amplitudes * mask).any():
        raise DataError(
            f"{_format_source(scan)}: {setting} leaves no photons on pixels that count; choose a smaller factor"
        )


def _format_source(scan: Scan) -> str:
    return str(scan.source or "scan")
