"""Residual R of a stitched object, and its noise floor: the R that counting noise alone causes."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.forward import from_patches, shift_probe
from ptycho_torch.physics.noise import sum_amplitude_errors
from ptycho_torch.physics.patches import extract_patches, split_positions

MAX_BATCH_PIXELS = 2**20
"""Number of detector pixels per batch; the result depends on it only through rounding."""


class FourierError(NamedTuple):
    """Comparison of the measured patterns with the patterns of a stitched object, over unmasked pixels."""

    r: float
    """Σ(|F| − √I)² / ΣI, with |F| the model's amplitude and I the measured counts."""

    r_floor: float
    """Expectation of R for Poisson counts k at the rates λ of the model: E[Σ(√k − √λ)²] / ΣI."""

    loss: float
    """Mean of 2(|F| − √I)² per pixel, the deviance of the amplitude noise model; ½ at the truth for many photons."""

    per_pattern: NDArray[np.float64]
    """R of each evaluated pattern, (evaluated,); NaN for a pattern without photons."""

    indices: NDArray[np.intp]
    """Indices of the evaluated patterns in the scan, (evaluated,)."""

    skipped: int
    """Number of patterns that were skipped because their patch lies partly outside the canvas."""

    photons_per_pattern: float
    """Mean measured photons per evaluated pattern."""


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
        reconstruction: its object, origin, probe, background and intensities are used, in complex64.
        scan: the measured patterns. It may have more positions than the reconstruction; patterns whose patch lies
            partly outside the canvas are skipped.
        photons_per_unit: photons per squared unit of the amplitudes of the scan.
        device: device of the computation.
        indices: indices of the patterns to evaluate, for example of validation patterns; None: all patterns.

    Raises:
        DataError: patterns and probe differ in size, no pattern lies on the canvas, or the patterns have no photons.
    """
    requested = np.arange(len(scan)) if indices is None else np.asarray(indices, np.intp)
    evaluated = requested[_is_on_canvas(reconstruction, scan)[requested]]
    if not len(evaluated):
        raise DataError(
            f"none of the {len(requested)} patterns lies on the canvas of the reconstruction "
            f"(origin {reconstruction.origin_yx.tolist()}, {reconstruction.object.shape} pixels); expected patterns of "
            "the scan that was reconstructed; check `scan`"
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
        batch_sums = sum_amplitude_errors(rates, counts, batch_mask.to(device))
        ratio = batch_sums.squared_error / batch_sums.photons
        per_pattern[start : start + step] = torch.where(batch_sums.photons > 0, ratio, torch.nan).cpu().numpy()
        sums += torch.stack([part.sum() for part in batch_sums]).cpu()
    squared, photons, floor, pixels = sums.tolist()
    if not photons > 0:
        raise DataError(
            f"the {len(evaluated)} evaluated patterns have {photons:g} photons; expected more than 0; check the mask "
            "of the scan"
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
    """Compute the photons of the patterns of a reconstruction.

    Args:
        reconstruction: its object, origin, probe and background are used.
        positions: (n, 2) (y, x) scan positions in object pixels.
        device: device of the computation.
        intensities: (n,) relative power of the probe in each pattern; None: 1 in all patterns.

    Returns:
        (n, N, N) float32 photons, zero frequency at [0, 0].

    Raises:
        IndexError: a patch lies partly outside the canvas.
    """
    obj = torch.from_numpy(np.asarray(reconstruction.object, np.complex64)).to(device)
    probe = torch.from_numpy(np.asarray(reconstruction.probe, np.complex64)).to(device)
    # Not every device supports float64, so the corners are computed on the CPU.
    relative = torch.from_numpy(positions - reconstruction.origin_yx)
    corners, fractions = split_positions(relative, probe.shape[-1])
    patches = extract_patches(obj, corners.to(device), probe.shape[-1])
    if intensities is not None:
        patches = patches * torch.from_numpy(np.sqrt(intensities)).to(device)[:, None, None]
    shifted_probe = shift_probe(probe, fractions.to(device, torch.float32))
    background = reconstruction.background
    added = 0.0 if background is None else torch.from_numpy(background).to(device)
    return from_patches(patches, shifted_probe, added).intensity


def select_intensities(
    reconstruction: Reconstruction, scan: Scan, indices: NDArray[np.intp]
) -> NDArray[np.float32] | None:
    """Return the relative power of the probe in the patterns at ``indices`` of ``scan``, (len(indices),).

    Intensities belong to patterns by order in the file, so those of a scan of another length are not used. None: the
    reconstruction has no intensities for this scan.
    """
    intensities = reconstruction.intensities
    return None if intensities is None or len(intensities) != len(scan) else intensities[indices]


def compute_measured_photons(
    scan: Scan, indices: NDArray[np.intp], photons_per_unit: float, device: str | torch.device = "cpu"
) -> Tensor:
    """Return the measured photons of the patterns at ``indices``, (len(indices), N, N), zero frequency at [0, 0]."""
    amplitudes = np.asarray(scan.amplitudes[indices], np.float32)
    counts = np.fft.ifftshift(amplitudes, axes=(-2, -1)) ** 2 * np.float32(photons_per_unit)
    return torch.from_numpy(counts).to(device)


def _is_on_canvas(reconstruction: Reconstruction, scan: Scan) -> NDArray[np.bool_]:
    """Return for each pattern whether its patch lies on the canvas, (n,)."""
    size = reconstruction.probe.shape[-1]
    if scan.size != size:
        raise DataError(
            f"the patterns are {scan.size} × {scan.size} pixels and the probe of the reconstruction is "
            f"{size} × {size}; expected equal sizes; check that `scan` is the scan that was reconstructed"
        )
    corners, _ = split_positions(torch.from_numpy(scan.positions - reconstruction.origin_yx), size)
    inside = (corners >= 0) & (corners + size <= torch.tensor(reconstruction.object.shape))
    return np.asarray(inside.all(1).numpy(), np.bool_)


def _make_corner_origin_mask(scan: Scan) -> Tensor:
    """Return the mask of the scan with zero frequency at [0, 0], (N, N) or (n, N, N); all True without a mask."""
    if scan.mask is None:
        return torch.ones(scan.size, scan.size, dtype=torch.bool)
    return torch.from_numpy(np.fft.ifftshift(scan.mask, axes=(-2, -1)).copy())
