"""Positions by cross-correlation: where under the probe the corrected exit wave finds the object."""

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel

SEARCH_RADIUS_PX = 2
"""Pixels on either axis within which an epoch looks for a peak."""

UPSAMPLE_FACTOR = 8
"""Points a pixel at which the correlation about its peak is computed; a parabola finds the rest."""

DISPLACEMENT_PENALTY_PER_PX2 = 1e-4
"""What a displacement must explain better for each square pixel: a flat object agrees everywhere, and moves nothing."""


def estimate_displacements_by_correlation(
    optics: MeasurementModel, update: ExitWaveUpdate, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """By how much each position of a batch is off, by a cross-correlation.

    The displacement s that brings ``P O(r + s)`` nearest to the corrected exit wave ψ' but for a factor is the one of
    the highest ``|Σ ψ'* P O(r + s)|² / Σ |P O(r + s)|²``: the cross-correlation of the object with itself after its
    update (Zhang et al., Opt. Express 21, 13592 (2013)), weighted by the probe, and free of a pull towards what is
    bright. About the peak it is computed from its Fourier series (Guizar-Sicairos, Thurman & Fienup, Opt. Lett. 33,
    156 (2008)).

    Returns:
        (b, 2) (y, x) in pixels, little more than :data:`SEARCH_RADIUS_PX` on either axis; and how sharp the peaks are, (b, 2, 2),
        in photons a square pixel.
    """
    del optics, indices
    exit_waves = update.probes * update.patches[:, None] + update.change
    back_projection = (update.probes.conj() * exit_waves).sum(1)
    illumination = update.probes.abs().square().sum(1)
    cross = torch.fft.fft2(update.patches) * torch.fft.fft2(back_projection).conj()
    power = torch.fft.fft2(update.patches.abs().square()) * torch.fft.fft2(illumination).conj()
    span = min(SEARCH_RADIUS_PX, (cross.shape[-1] - 1) // 2)
    whole = torch.arange(-span, span + 1, device=cross.device, dtype=illumination.dtype)
    nearest, _ = _find_peak(cross, power, whole, whole.new_zeros(len(cross), 2))
    fine = (
        torch.arange(-UPSAMPLE_FACTOR, UPSAMPLE_FACTOR + 1, device=cross.device, dtype=illumination.dtype)
        / UPSAMPLE_FACTOR
    )
    return _find_peak(cross, power, fine, nearest)


def _find_peak(cross: Tensor, power: Tensor, offsets: Tensor, about: Tensor) -> tuple[Tensor, Tensor]:
    """The best of some ``offsets`` (m,), equally spaced, on both axes ``about`` points (b, 2), refined by a paraboloid.

    Returns:
        The peaks (b, 2), and how sharp they are, (b, 2, 2).
    """
    at = about[:, :, None] + offsets
    score = _compute_correlation_score(cross, power, at)
    best = score.flatten(1).argmax(1)
    place = torch.stack([best // len(offsets), best % len(offsets)], -1)
    inner = place.clamp(1, len(offsets) - 2)
    step = torch.arange(-1, 2, device=place.device)
    rows, columns = inner[:, 0, None] + step, inner[:, 1, None] + step
    batch = torch.arange(len(best), device=best.device)[:, None, None]
    vertex, sharpness = _fit_paraboloid(score[batch, rows[:, :, None], columns[:, None]])
    vertex = torch.where(place == inner, vertex, torch.zeros_like(vertex))
    spacing = offsets[1] - offsets[0]
    return at.gather(2, place[..., None])[..., 0] + spacing * vertex, sharpness / spacing**2


def _compute_correlation_score(cross: Tensor, power: Tensor, at: Tensor) -> Tensor:
    """The score at displacements ``at`` (b, 2, m) of rows and columns, (b, m, m), from the two spectra (b, N, N)."""
    frequencies = torch.fft.fftfreq(cross.shape[-1], device=at.device, dtype=at.dtype)
    phases = 2 * torch.pi * at[..., None] * frequencies
    down, across = torch.polar(torch.ones_like(phases), phases).unbind(1)
    overlap, illumination = (down @ spectrum @ across.mT for spectrum in (cross, power))
    score = overlap.abs().square() / illumination.real.clamp_min(torch.finfo(at.dtype).tiny)
    distance = at[:, 0, :, None].square() + at[:, 1, None, :].square()
    return score * (1 - DISPLACEMENT_PENALTY_PER_PX2 * distance)


def _fit_paraboloid(values: Tensor) -> tuple[Tensor, Tensor]:
    """Where paraboloids through 3 × 3 points (b, 3, 3) are highest, (b, 2) within ½ of the middle; and their curvature.

    The curvature, (b, 2, 2), is that of what falls away from the peak: it has no negative direction.
    """
    middle = values[:, 1, 1]
    a = (2 * middle - values[:, 0, 1] - values[:, 2, 1]).clamp_min(0)
    c = (2 * middle - values[:, 1, 0] - values[:, 1, 2]).clamp_min(0)
    mixed = (values[:, 0, 2] + values[:, 2, 0] - values[:, 0, 0] - values[:, 2, 2]) / 4
    most = 0.99 * (a * c).sqrt()
    b = torch.minimum(torch.maximum(mixed, -most), most)
    y, x = (values[:, 2, 1] - values[:, 0, 1]) / 2, (values[:, 1, 2] - values[:, 1, 0]) / 2
    determinant = (a * c - b * b).clamp_min(torch.finfo(a.dtype).tiny)
    vertex = torch.stack([c * y - b * x, a * x - b * y], -1) / determinant[:, None]
    return vertex.clamp(-0.5, 0.5), torch.stack([a, b, b, c], -1).unflatten(-1, (2, 2))
