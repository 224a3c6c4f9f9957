"""Scan position errors: three estimators of the displacement of each pattern, and the bound on displacements.

All functions are pure. The estimators compare a pattern with the object under its probe:

- :func:`estimate_by_exit_wave`: linear least squares on the change of the exit wave;
- :func:`estimate_by_correlation`: the peak of a cross-correlation of exit wave and object;
- :func:`estimate_by_modulus`: one Gauss-Newton step on the far-field modulus.

:func:`limit_displacements` is the only meaning of the setting ``position_bound``.
"""

import torch
from torch import Tensor

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.physics.forward import from_patches

EXIT_WAVE_MAX_STEP_PX = 0.5
"""Largest displacement per axis that :func:`estimate_by_exit_wave` returns."""

EXIT_WAVE_STEP_FACTOR = 2.0
"""Factor on the least-squares displacement. The exit-wave change of a modulus projection contains only the part of a
displacement that changes the far-field modulus and not its phase: half, on average."""

MODULUS_MAX_STEP_PX = 1.0
"""Largest displacement per axis that :func:`estimate_by_modulus` returns: the range of its linearization."""

PRIOR_POSITION_SIGMA_PX = 0.25
"""Prior standard deviation of a position error, which damps positions that a pattern constrains weakly."""

SEARCH_RADIUS_PX = 2
"""Largest displacement per axis, in whole pixels, at which a correlation is evaluated."""

UPSAMPLE_FACTOR = 8
"""Points per pixel at which a correlation is evaluated around its peak; a paraboloid interpolates between them."""

DISPLACEMENT_PENALTY_PER_PX2 = 1e-4
"""Relative penalty of a correlation per squared pixel of displacement: a flat object correlates equally everywhere."""


MIN_AFFINE_PATTERNS = 16
"""Number of patterns below which six parameters of an affine map are a large part of all displacements."""


def check_position_bound(bound: float | None, size: int) -> None:
    """Raise ConfigError if ``bound`` exceeds ``size``, the side of a pattern in pixels."""
    if bound is not None and bound > size:
        raise ConfigError(
            f"`position_bound` is {bound:g}; expected at most {size}, the side of a pattern; choose a smaller bound"
        )


def limit_displacements(displacements: Tensor, bound: float, model: str = "free") -> Tensor:
    """Return ``displacements`` without their mean and with at most ``bound`` pixels per axis.

    The mean is removed because a common shift of all positions is a shift of the object.

    Args:
        displacements: (n, 2) (y, x) from the initial positions, in pixels.
        bound: Largest magnitude per axis, in pixels.
        model: ``free`` clamps each displacement. ``affine`` scales all of them by one factor, which keeps them an
            affine map of the positions.
    """
    displacements = displacements - displacements.mean(0)
    if model == "affine":
        return displacements * min(1.0, bound / max(float(displacements.abs().max()), bound))
    return displacements.clamp(-bound, bound)


def remove_affine_part(displacements: Tensor, positions: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return ``displacements`` (n, 2) without their best affine map of ``positions`` (n, 2).

    Fewer than :data:`MIN_AFFINE_PATTERNS` displacements lose only their mean.

    Args:
        displacements: (n, 2) (y, x) in pixels.
        positions: (n, 2) (y, x) in pixels. Errors of the positions that are also in the displacements bias the map.
        weights: (n,) weights of the fit; None: all equal.
    """
    centered = positions - positions.mean(0)
    terms = torch.cat([positions.new_ones(len(positions), 1), centered], 1)
    if len(positions) < MIN_AFFINE_PATTERNS:
        terms = terms[:, :1]
    scale = torch.linalg.vector_norm(terms, dim=0).clamp_min(1e-9)
    terms = terms / scale  # positions on one line do not determine the map across it
    root = 1.0 if weights is None else weights.sqrt()[:, None]
    return displacements - terms @ (torch.linalg.pinv(root * terms, rtol=1e-9) @ (root * displacements))


def compute_object_slopes(obj: Tensor) -> tuple[Tensor, Tensor]:
    """Return the central differences of ``obj`` (rows, columns) per pixel, along y and along x.

    The differences are periodic; the margin of a canvas keeps patches away from its edge.
    """
    slope_y, slope_x = ((torch.roll(obj, -1, axis) - torch.roll(obj, 1, axis)) / 2 for axis in (0, 1))
    return slope_y, slope_x


def solve_displacements(
    derivative_y: Tensor, derivative_x: Tensor, residual: Tensor, damping: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Solve ``min over s of ‖s_y derivative_y + s_x derivative_x − residual‖²`` for each pattern.

    Args:
        derivative_y: (b, …) real or complex, the derivative of the model with respect to the position, per pixel.
        derivative_x: Same shape.
        residual: Same shape.
        damping: (b,) added to both diagonal elements of the normal matrix.

    Returns:
        Displacements (b, 2) (y, x) in pixels, and the normal matrices (b, 2, 2).
    """

    def inner(left: Tensor, right: Tensor) -> Tensor:
        return (left.conj() * right).real.flatten(1).sum(1)

    yy, yx, xx = (
        inner(derivative_y, derivative_y),
        inner(derivative_y, derivative_x),
        inner(derivative_x, derivative_x),
    )
    damped = damping + 1e-3 * (yy + xx) + 1e-18  # a flat object has no derivative; the determinant must not be 0
    yy, xx = yy + damped, xx + damped
    determinant = yy * xx - yx * yx
    right_y, right_x = inner(derivative_y, residual), inner(derivative_x, residual)
    y = (xx * right_y - yx * right_x) / determinant
    x = (yy * right_x - yx * right_y) / determinant
    curvature = torch.stack([yy, yx, yx, xx], -1).unflatten(-1, (2, 2))
    return torch.stack([y, x], -1), curvature


def estimate_by_exit_wave(
    probes: Tensor, slopes: tuple[Tensor, Tensor], exit_change: Tensor, step_factor: float = EXIT_WAVE_STEP_FACTOR
) -> tuple[Tensor, Tensor]:
    """Estimate displacements by linear least squares on the exit wave.

    To first order, a displacement s changes the exit wave by ``P ∇O · s``: Odstrčil, Menzel & Guizar-Sicairos, Opt.
    Express 26, 3108 (2018), section 5.

    Args:
        probes: (b, M, N, N) complex, the probe at each position.
        slopes: Patches (b, N, N) of the two slopes of the object, per pixel.
        exit_change: (b, M, N, N) complex, the change of the exit waves that the measurement requires.
        step_factor: Factor on the solution.

    Returns:
        Displacements (b, 2) (y, x), at most :data:`EXIT_WAVE_MAX_STEP_PX` per axis, and the curvature (b, 2, 2) of the
        misfit in photons per squared pixel.
    """
    derivative_y, derivative_x = (probes * slope[:, None] for slope in slopes)
    displacements, curvature = solve_displacements(derivative_y, derivative_x, exit_change)
    return (step_factor * displacements).clamp(-EXIT_WAVE_MAX_STEP_PX, EXIT_WAVE_MAX_STEP_PX), curvature


def estimate_by_modulus(
    patches: Tensor,
    slopes: tuple[Tensor, Tensor],
    probes: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    background: Tensor,
) -> tuple[Tensor, Tensor]:
    """Estimate displacements by one damped Gauss-Newton step on the far-field modulus.

    A displacement s changes the far field ψ by ``F(P ∇O) · s`` and the modulus by the part of that change in phase with
    ψ. Components proportional to the modulus itself are projected out, which gives each pattern a free intensity;
    otherwise a fluctuating source would move positions toward brighter parts of the object.

    Args:
        patches: (b, N, N) complex, the object under the probe.
        slopes: Patches (b, N, N) of the two slopes of the object, per pixel.
        probes: (b, M, N, N) complex, the probe at each position.
        counts: (b, N, N) measured photons.
        mask: (b or 1, N, N) bool, True where a pixel counts; None: all count.
        background: (N, N) photons in every pattern.

    Returns:
        Displacements (b, 2) (y, x), at most :data:`MODULUS_MAX_STEP_PX` per axis, and the curvature (b, 2, 2) of the
        misfit in photons per squared pixel.
    """
    fields = from_patches(patches, probes, background)
    modulus = fields.intensity.sqrt()
    residual = counts.sqrt() - modulus
    counted = modulus if mask is None else torch.where(mask, modulus, torch.zeros_like(modulus))
    inverse = torch.where(counted > 0, 1 / counted, torch.zeros_like(counted))
    derivatives = [
        (fields.detector.conj() * from_patches(slope, probes).detector).real.sum(1) * inverse for slope in slopes
    ]
    residual = torch.where(counted > 0, residual, 0)
    derivative_y, derivative_x, residual = (_project_out(counted, part) for part in (*derivatives, residual))
    damping = residual.square().mean((1, 2)) / PRIOR_POSITION_SIGMA_PX**2
    displacements, curvature = solve_displacements(derivative_y, derivative_x, residual, damping)
    return displacements.clamp(-MODULUS_MAX_STEP_PX, MODULUS_MAX_STEP_PX), curvature


def _project_out(direction: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` without their component along ``direction``, both (b, N, N) real."""
    power = direction.square().sum((1, 2), keepdim=True).clamp_min(torch.finfo(direction.dtype).tiny)
    return values - direction * ((direction * values).sum((1, 2), keepdim=True) / power)


def estimate_by_correlation(patches: Tensor, probes: Tensor, exit_change: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate displacements by the peak of a normalized cross-correlation.

    The displacement s that brings ``P O(r + s)`` nearest to the updated exit wave ψ', up to a complex factor, maximizes
    ``|Σ ψ'* P O(r + s)|² / Σ |P O(r + s)|²``: the cross-correlation of the object before and after its update (Zhang
    et al., Opt. Express 21, 13592 (2013)), weighted by the probe and normalized by the intensity of the shifted object.
    Around its peak the correlation is evaluated from its Fourier series (Guizar-Sicairos, Thurman & Fienup, Opt. Lett.
    33, 156 (2008)).

    Args:
        patches: (b, N, N) complex, the object under the probe.
        probes: (b, M, N, N) complex, the probe at each position.
        exit_change: (b, M, N, N) complex, the change of the exit waves that the measurement requires.

    Returns:
        Displacements (b, 2) (y, x), slightly more than :data:`SEARCH_RADIUS_PX` per axis at most, and the curvature
        (b, 2, 2) of the peaks in photons per squared pixel.
    """
    exit_waves = probes * patches[:, None] + exit_change
    back_projection = (probes.conj() * exit_waves).sum(1)
    illumination = probes.abs().square().sum(1)
    cross = torch.fft.fft2(patches) * torch.fft.fft2(back_projection).conj()
    power = torch.fft.fft2(patches.abs().square()) * torch.fft.fft2(illumination).conj()
    radius = min(SEARCH_RADIUS_PX, (cross.shape[-1] - 1) // 2)
    whole = torch.arange(-radius, radius + 1, device=cross.device, dtype=illumination.dtype)
    nearest, _ = _find_peak(cross, power, whole, whole.new_zeros(len(cross), 2))
    steps = torch.arange(-UPSAMPLE_FACTOR, UPSAMPLE_FACTOR + 1, device=cross.device, dtype=illumination.dtype)
    return _find_peak(cross, power, steps / UPSAMPLE_FACTOR, nearest)


def _find_peak(cross: Tensor, power: Tensor, offsets: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Find the peak among equally spaced ``offsets`` (m,) on both axes around ``center`` (b, 2), with a paraboloid.

    Returns:
        Peaks (b, 2) and their curvature (b, 2, 2).
    """
    points = center[:, :, None] + offsets
    score = _compute_correlation_score(cross, power, points)
    best = score.flatten(1).argmax(1)
    index = torch.stack([best // len(offsets), best % len(offsets)], -1)
    inner = index.clamp(1, len(offsets) - 2)
    step = torch.arange(-1, 2, device=index.device)
    rows, columns = inner[:, 0, None] + step, inner[:, 1, None] + step
    batch = torch.arange(len(best), device=best.device)[:, None, None]
    vertex, curvature = _fit_paraboloid(score[batch, rows[:, :, None], columns[:, None]])
    vertex = torch.where(index == inner, vertex, torch.zeros_like(vertex))
    spacing = offsets[1] - offsets[0]
    return points.gather(2, index[..., None])[..., 0] + spacing * vertex, curvature / spacing**2


def _compute_correlation_score(cross: Tensor, power: Tensor, points: Tensor) -> Tensor:
    """Return the score at displacements ``points`` (b, 2, m) of rows and columns, (b, m, m), from spectra (b, N, N)."""
    frequencies = torch.fft.fftfreq(cross.shape[-1], device=points.device, dtype=points.dtype)
    angles = 2 * torch.pi * points[..., None] * frequencies
    phase_y, phase_x = torch.polar(torch.ones_like(angles), angles).unbind(1)
    overlap, intensity = (phase_y @ spectrum @ phase_x.mT for spectrum in (cross, power))
    score = overlap.abs().square() / intensity.real.clamp_min(torch.finfo(points.dtype).tiny)
    distance = points[:, 0, :, None].square() + points[:, 1, None, :].square()
    return score * (1 - DISPLACEMENT_PENALTY_PER_PX2 * distance)


def _fit_paraboloid(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return vertex (b, 2), within ½ of the center, and curvature (b, 2, 2) of paraboloids through 3 × 3 points.

    The curvature is that of the decrease from the peak and is positive semidefinite.
    """
    center = values[:, 1, 1]
    yy = (2 * center - values[:, 0, 1] - values[:, 2, 1]).clamp_min(0)
    xx = (2 * center - values[:, 1, 0] - values[:, 1, 2]).clamp_min(0)
    mixed = (values[:, 0, 2] + values[:, 2, 0] - values[:, 0, 0] - values[:, 2, 2]) / 4
    limit = 0.99 * (yy * xx).sqrt()
    yx = torch.minimum(torch.maximum(mixed, -limit), limit)
    y, x = (values[:, 2, 1] - values[:, 0, 1]) / 2, (values[:, 1, 2] - values[:, 1, 0]) / 2
    determinant = (yy * xx - yx * yx).clamp_min(torch.finfo(yy.dtype).tiny)
    vertex = torch.stack([xx * y - yx * x, yy * x - yx * y], -1) / determinant[:, None]
    return vertex.clamp(-0.5, 0.5), torch.stack([yy, yx, yx, xx], -1).unflatten(-1, (2, 2))


def fit_affine_displacements(displacements: Tensor, curvature: Tensor, positions: Tensor) -> Tensor:
    """Return the displacements by one affine map of the positions that fit ``displacements`` best.

    The map is ``A (positions − mean) + shift``, fitted by least squares with the curvature of each pattern as weight;
    without weights, patterns that constrain their position weakly would dominate the fit. The shift is dropped, since
    the object absorbs it: A has two scales, a rotation and a shear.

    Args:
        displacements: (n, 2) (y, x) in pixels.
        curvature: (n, 2, 2) curvature of the misfit of each pattern.
        positions: (n, 2) initial positions.
    """
    terms = torch.cat([positions - positions.mean(0), positions.new_ones(len(positions), 1)], 1)
    matrix = torch.einsum("nij,na,nb->iajb", curvature, terms, terms).reshape(6, 6)
    right = torch.einsum("nij,nj,na->ia", curvature, displacements, terms).reshape(6)
    scale = matrix.diagonal().clamp_min(1e-300).rsqrt()  # positions on one line do not determine the map across it
    solution = scale * (torch.linalg.pinv(matrix * scale[:, None] * scale, rtol=1e-9, hermitian=True) @ (scale * right))
    return terms[:, :2] @ solution.reshape(2, 3)[:, :2].mT
