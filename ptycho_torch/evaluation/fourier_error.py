"""Agreement of a stitched object with the measured patterns: R, and the noise floor that counting noise sets."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.physics import forward, noise
from ptycho_torch.physics.patches import extract_patches, split_positions

MAX_BATCH_PIXELS = 2**20
"""Detector pixels computed together; the result does not depend on it beyond rounding."""


class FourierError(NamedTuple):
    """The stitched object, cut again at every position, against the measurement, over unmasked pixels, in photons."""

    r: float
    """Σ(|F| − √I)² / ΣI, with |F| the model's amplitude and I the measured counts."""

    r_floor: float
    """What R would be if the model were the truth: the Poisson expectation of (√k − √λ)² at its rates, over ΣI."""

    loss: float
    """Mean over pixels of the amplitude noise model's negative log likelihood, 2(|F| − √I)²: ½ is high-dose noise."""

    per_pattern: NDArray[np.float64]
    """R of each judged pattern, (judged,); NaN where a pattern holds no photon."""

    indices: NDArray[np.intp]
    """Which patterns of the scan were judged, (judged,)."""

    skipped: int
    """Patterns left out because their window reaches outside the canvas."""

    photons_per_pattern: float
    """Mean measured photons of the judged patterns, over unmasked pixels."""


def compute_fourier_error(
    reconstruction: Reconstruction,
    scan: Scan,
    *,
    photons_per_unit: float,
    device: str | torch.device = "cpu",
    indices: NDArray[np.intp] | None = None,
) -> FourierError:
    """Compare ``reconstruction`` with the patterns of ``scan``.

    Args:
        reconstruction: object, origin and probe are used, in complex64.
        scan: the measured patterns; it may hold more positions than the reconstruction was made from, and patterns
            whose window reaches outside the canvas are skipped and counted.
        photons_per_unit: photons for one squared unit of the scan's amplitude.
        device: where to compute.
        indices: the patterns to judge, for example those held out of training; None: all.

    Raises:
        DataError: the patterns are not of the probe's size, none lies on the canvas, or they hold no photon.
    """
    requested = np.arange(len(scan)) if indices is None else np.asarray(indices, np.intp)
    evaluated = requested[_is_on_canvas(reconstruction, scan)[requested]]
    if not len(evaluated):
        raise DataError(
            f"none of the {len(requested)} patterns to judge lies on the reconstruction's canvas "
            f"(origin {reconstruction.origin_yx.tolist()}, {reconstruction.object.shape} pixels); "
            "check that `scan` is the scan that was reconstructed"
        )
    mask = _make_corner_origin_mask(scan)
    sums = torch.zeros(4, dtype=torch.float64)
    per_pattern = np.empty(len(evaluated))
    step = max(1, MAX_BATCH_PIXELS // scan.size**2)
    for start in range(0, len(evaluated), step):
        batch = evaluated[start : start + step]
        batch_intensities = select_intensities(reconstruction, scan, batch)
        rates = predict_photons(reconstruction, scan.positions[batch], device, batch_intensities)
        counts = compute_measured_photons(scan, batch, photons_per_unit, device)
        batch_mask = mask if mask.ndim == 2 else mask[torch.from_numpy(batch)]
        error, measured, *others = _sum_per_pattern(rates, counts, batch_mask.to(device))
        per_pattern[start : start + step] = torch.where(measured > 0, error / measured, torch.nan).numpy()
        sums += torch.stack([part.sum() for part in (error, measured, *others)])
    squared, photons, floor, pixels = sums.tolist()
    if not photons > 0:
        raise DataError(
            f"the {len(evaluated)} patterns to judge hold {photons:g} photons, expected more; check the mask"
        )
    skipped = len(requested) - len(evaluated)
    loss = 2 * squared / pixels
    return FourierError(
        squared / photons, floor / photons, loss, per_pattern, evaluated, skipped, photons / len(evaluated)
    )


def predict_photons(
    reconstruction: Reconstruction,
    positions: NDArray[np.float64],
    device: str | torch.device = "cpu",
    intensities: NDArray[np.float32] | None = None,
) -> Tensor:
    """The model's photons at scan positions (n, 2) (y, x) on the object's grid: (n, N, N) float32, corner origin.

    ``intensities`` (n,) are of the probe in each pattern; None: all 1.

    Raises:
        IndexError: a window reaches outside the canvas.
    """
    obj = torch.from_numpy(np.asarray(reconstruction.object, np.complex64)).to(device)
    probe = torch.from_numpy(np.asarray(reconstruction.probe, np.complex64)).to(device)
    # float64 does not exist on every device; corners are found where it does.
    relative = torch.from_numpy(positions - reconstruction.origin_yx)
    corners, fractions = split_positions(relative, probe.shape[-1])
    patches = extract_patches(obj, corners.to(device), probe.shape[-1])
    if intensities is not None:
        patches = patches * torch.from_numpy(np.sqrt(intensities)).to(device)[:, None, None]
    shifted_probe = forward.shift_probe(probe, fractions.to(device, torch.float32))
    background = reconstruction.background
    added = 0.0 if background is None else torch.from_numpy(background).to(device)
    return forward.from_patches(patches, shifted_probe, added).intensity


def select_intensities(
    reconstruction: Reconstruction, scan: Scan, indices: NDArray[np.intp]
) -> NDArray[np.float32] | None:
    """How bright the probe was in some patterns of ``scan``, (len(indices),); None: not known, or all alike.

    They belong to patterns by their order in the file, so that they say nothing about a scan of another length.
    """
    known = reconstruction.intensities
    return None if known is None or len(known) != len(scan) else known[indices]


def compute_measured_photons(
    scan: Scan, indices: NDArray[np.intp], photons_per_unit: float, device: str | torch.device = "cpu"
) -> Tensor:
    """The measured photons of some patterns, (len(indices), N, N) float32, corner origin."""
    amplitudes = np.asarray(scan.amplitudes[indices], np.float32)
    counts = np.fft.ifftshift(amplitudes, axes=(-2, -1)) ** 2 * np.float32(photons_per_unit)
    return torch.from_numpy(counts).to(device)


def _sum_per_pattern(rates: Tensor, counts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared amplitude error, photons, expected squared error and pixels of each pattern: (n,) float64 on the CPU."""
    maps = ((rates.sqrt() - counts.sqrt()).square(), counts, noise.compute_noise_floor(rates), torch.ones_like(counts))
    # A masked pixel may hold anything, NaN included, so it is replaced rather than multiplied by zero.
    sums = [torch.where(mask, values, torch.zeros_like(values)).flatten(1).sum(1).cpu().double() for values in maps]
    return sums[0], sums[1], sums[2], sums[3]


def _is_on_canvas(reconstruction: Reconstruction, scan: Scan) -> NDArray[np.bool_]:
    """Whether each pattern's window lies on the canvas, (n,)."""
    size = reconstruction.probe.shape[-1]
    if scan.size != size:
        raise DataError(
            f"the scan's patterns are {scan.size} × {scan.size} pixels, the reconstruction's probe is {size} × {size}; "
            "give the scan that was reconstructed"
        )
    corners, _ = split_positions(torch.from_numpy(scan.positions - reconstruction.origin_yx), size)
    inside = (corners >= 0) & (corners + size <= torch.tensor(reconstruction.object.shape))
    return np.asarray(inside.all(1).numpy(), np.bool_)


def _make_corner_origin_mask(scan: Scan) -> Tensor:
    """The scan's mask with zero frequency at [0, 0], (N, N) or (n, N, N); all True where it has none."""
    if scan.mask is None:
        return torch.ones(scan.size, scan.size, dtype=torch.bool)
    return torch.from_numpy(np.fft.ifftshift(scan.mask, axes=(-2, -1)).copy())
