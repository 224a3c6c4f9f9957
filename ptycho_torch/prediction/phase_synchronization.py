"""Angular synchronization: one phase per patch that makes overlapping patches agree.

Patches ``p_j`` with weights ``w_j`` and phase factors ``t_j`` of modulus one have the mean ``O = Σ w t p / Σ w``. Their
disagreement ``Σ w |t p − O|²`` is minimal where ``‖Mᵀt‖`` is maximal, with ``M[j, x] = w_j(x) p_j(x) / √Σ w(x)``.
Without the constraint to modulus one, the maximum is an eigenvector of the connection Laplacian of the overlap graph
(Singer, Appl. Comput. Harmon. Anal. 30, 20 (2011)), which depends on no initial value. From its phases, Newton's method
converges to the constrained maximum. The graph is applied as ``M`` and its adjoint, and never stored.
"""

import logging
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

PhaseFactors = NDArray[np.complex128]

OUTLIER_RATIO = 16.0
"""Ratio of the mean squared disagreement of a patch to the median, above which its weight is reduced."""

MIN_RELATIVE_DISAGREEMENT = 1e-4
"""Squared disagreement, as a fraction of the mean square of the object, below which no weight is reduced."""

MAX_REWEIGHTINGS = 4
MAX_EIGEN_STEPS, EIGEN_TOLERANCE = 1000, 1e-6
MAX_DENSE_PATCHES = 16  # up to this number of patches a dense matrix is faster than an iterative solver
MAX_NEWTON_STEPS, NEWTON_TOLERANCE_RAD = 20, 1e-9
MAX_CONJUGATE_STEPS = 200


class Synchronization(NamedTuple):
    """Phase factors that make patches agree, and weights that reduce outliers."""

    phase_factors: PhaseFactors
    """(n,) phase factors of modulus one."""

    patch_weights: NDArray[np.float64]
    """(n,) factors on the weights, above 0 and at most 1; less than 1 for outliers only."""


class PatchSamples(NamedTuple):
    """Values of patches on a subset of the pixels of the canvas."""

    values: NDArray[np.complex128]
    """(n, k) values of the patches."""

    weights: NDArray[np.float64]
    """(n, k) weights, not negative."""

    canvas_indices: NDArray[np.int64]
    """(n, k) indices of the pixels of the canvas, counted from 0."""


def synchronize_phases(samples: PatchSamples) -> Synchronization:
    """Compute the phase factors that make patches agree best, by iteratively reweighted least squares.

    A patch that disagrees with its neighbors much more than the median, for example of a dead pattern, gets a smaller
    weight. The weighted mean of the phase factors of each connected component of the overlap graph is positive, so
    patches that agree already are not changed.
    """
    count = len(samples.values)
    phase_factors, patch_weights = np.ones(count, np.complex128), np.ones(count)
    components = _find_components(samples)
    power = (samples.weights * np.abs(samples.values) ** 2).sum(1)
    for number in range(MAX_REWEIGHTINGS + 1):
        matrix = _build_matrix(samples, patch_weights)
        for component in components:
            part = matrix[component]
            start = phase_factors[component] if number else _solve_by_eigenvector(part, power[component])
            phase_factors[component] = _solve_by_newton(part, start)
        before, patch_weights = patch_weights, _compute_patch_weights(samples, phase_factors, patch_weights)
        if np.abs(patch_weights - before).max(initial=0) < 0.05:
            break
    for component in components:
        mean = (samples.weights[component].sum(1) * phase_factors[component]).sum()
        phase_factors[component] *= np.conj(_normalize_modulus(mean))
    return Synchronization(phase_factors, patch_weights)


def _build_matrix(samples: PatchSamples, patch_weights: NDArray[np.float64]) -> Any:
    """Return the sparse matrix M of the docstring of this module, (n, pixels)."""
    from scipy.sparse import csr_array

    count, num_samples = samples.values.shape
    weights = samples.weights * patch_weights[:, None]
    total = np.bincount(samples.canvas_indices.ravel(), weights.ravel())
    data = weights * samples.values / np.sqrt(np.maximum(total, np.finfo(float).tiny))[samples.canvas_indices]
    return csr_array(
        (data.ravel(), samples.canvas_indices.ravel(), np.arange(0, data.size + 1, num_samples)), (count, len(total))
    )


def _find_components(samples: PatchSamples) -> list[NDArray[np.intp]]:
    """Return the patch indices of each connected component of the overlap graph, without patches of zero power."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count = len(samples.values)
    occupied = (samples.weights > 0) & (samples.values != 0)
    rows = np.broadcast_to(np.arange(count)[:, None], occupied.shape)[occupied]
    pixels = samples.canvas_indices[occupied] + count
    size = int(samples.canvas_indices.max(initial=0)) + 1 + count
    _, labels = connected_components(csr_array((np.ones(len(rows)), (rows, pixels)), (size, size)), directed=False)
    labels = labels[:count]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [group for group in groups if occupied[group].any()]


def _solve_by_eigenvector(matrix: Any, power: NDArray[np.float64]) -> PhaseFactors:
    """Return the phases of the leading eigenvector of ``M̄ Mᵀ``, with each patch over the root of its power, (n,).

    The division reduces the effect of bright patches that are wrong. If all patches agree, the eigenvalue is 1 and no
    component of the eigenvector is small. The solver is LOBPCG (Knyazev, SIAM J. Sci. Comput. 23, 517 (2001)).

    Args:
        matrix: (n, pixels) sparse matrix M.
        power: (n,) power Σ w |p|² of each patch.
    """
    from scipy.sparse.linalg import LinearOperator, lobpcg

    norms = np.sqrt(np.maximum(power, np.finfo(float).tiny))
    forward, adjoint = (matrix / norms[:, None]).T.tocsr(), (matrix / norms[:, None]).conj().tocsr()
    if len(norms) <= MAX_DENSE_PATCHES:
        return _normalize_modulus(np.linalg.eigh((adjoint @ forward).toarray())[1][:, -1])
    graph = LinearOperator((len(norms),) * 2, matvec=lambda vector: adjoint @ (forward @ vector), dtype=np.complex128)
    start = norms.astype(np.complex128)[:, None]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        vector = lobpcg(graph, start, largest=True, tol=EIGEN_TOLERANCE, maxiter=MAX_EIGEN_STEPS)[1]
    if caught:  # an inexact initial value for Newton's method
        log.info("the eigenvector of the phases of %d patches did not converge", len(norms))
    return _normalize_modulus(vector[:, 0])


def _solve_by_newton(matrix: Any, phase_factors: PhaseFactors) -> PhaseFactors:
    """Maximize ``‖Mᵀt‖`` by Newton's method on the angles, with conjugate gradients in each step."""
    forward = matrix.T.tocsr()
    adjoint = matrix.conj()
    for _ in range(MAX_NEWTON_STEPS):
        gradient = phase_factors.conj() * (adjoint @ (forward @ phase_factors))
        if np.abs(np.angle(gradient)).max() < NEWTON_TOLERANCE_RAD:
            break
        angles = _solve_newton_step(
            gradient, lambda step, at=phase_factors: (at.conj() * (adjoint @ (forward @ (at * step)))).real
        )
        norm = np.linalg.norm(forward @ phase_factors)
        # Shorter steps if the full step overshoots; the plain angles never do.
        for candidate in (angles, angles / 2, angles / 4, np.angle(gradient)):
            rotated = phase_factors * np.exp(1j * candidate)
            if np.linalg.norm(forward @ rotated) >= norm:
                break
        phase_factors = rotated
    return phase_factors


def _solve_newton_step(gradient: PhaseFactors, apply: Any) -> NDArray[np.float64]:
    """Solve ``(diag(Re g) − apply) angles = Im g`` by conjugate gradients, up to a direction of negative curvature.

    Args:
        gradient: (n,) complex g.
        apply: function that applies the matrix of the second term to a vector (n,).

    Returns:
        (n,) angles in radians.
    """
    diagonal = np.maximum(np.abs(gradient), np.finfo(float).tiny)
    angles = np.zeros(len(gradient))
    residual = gradient.imag.copy()
    initial_norm = np.linalg.norm(residual)
    scaled = residual / diagonal
    direction, norm = scaled, residual @ scaled
    for number in range(MAX_CONJUGATE_STEPS):
        image = gradient.real * direction - apply(direction)
        curvature = direction @ image
        if curvature <= 0:
            return angles if number else np.angle(gradient)
        angles += norm / curvature * direction
        residual -= norm / curvature * image
        if np.linalg.norm(residual) <= 1e-2 * initial_norm:
            break
        scaled = residual / diagonal
        norm, last_norm = residual @ scaled, norm
        direction = scaled + norm / last_norm * direction
    return angles


def _compute_patch_weights(
    samples: PatchSamples, phase_factors: PhaseFactors, patch_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return factors on the weights, (n,), from the ratio of the disagreement of each patch to the median."""
    weights = samples.weights * patch_weights[:, None]
    total = np.bincount(samples.canvas_indices.ravel(), weights.ravel())
    rotated = samples.values * phase_factors[:, None]
    real, imaginary = (
        np.bincount(samples.canvas_indices.ravel(), (weights * part).ravel()) for part in (rotated.real, rotated.imag)
    )
    mean = (real + 1j * imaginary) / np.maximum(total, np.finfo(float).tiny)
    weight_sums = np.maximum(samples.weights.sum(1), np.finfo(float).tiny)
    disagreement = (samples.weights * np.abs(rotated - mean[samples.canvas_indices]) ** 2).sum(1) / weight_sums
    power = (np.abs(mean) ** 2 * total).sum() / max(float(total.sum()), np.finfo(float).tiny)
    threshold = OUTLIER_RATIO * np.median(disagreement) + MIN_RELATIVE_DISAGREEMENT * power
    return np.square(np.where(disagreement <= threshold, 1, threshold / np.maximum(disagreement, np.finfo(float).tiny)))


def _normalize_modulus(values: Any) -> Any:
    """Return ``values`` over their modulus, 1 where the modulus is 0."""
    modulus = np.abs(values)
    return np.where(modulus > 0, values / np.where(modulus > 0, modulus, 1), 1)
