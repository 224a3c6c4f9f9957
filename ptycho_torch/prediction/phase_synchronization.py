"""Angular synchronisation: one phase for each patch, such that all agree where they overlap.

Patches ``p_j`` with weights ``w_j`` and turns ``t_j`` of modulus one have the mean ``O = Σ w t p / Σ w``, and what they
disagree by, ``Σ w |t p − O|²``, is least where ``‖Mᵀt‖`` is largest, ``M[j, x] = w_j(x) p_j(x) / √Σ w(x)``. Without the
demand of modulus one that is an eigenvector of the connection Laplacian of the overlap graph (Singer, Appl. Comput.
Harmon. Anal. 30, 20 (2011)), which no bad start misleads; from there Newton's method finds the turns themselves. The
graph is never written down: it is applied as ``M`` and its adjoint.
"""

import logging
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

PhaseFactors = NDArray[np.complex128]

OUTLIER_RATIO = 16.0
"""A patch is trusted less once its mean squared disagreement is this many times the median."""

MIN_RELATIVE_DISAGREEMENT = 1e-4
"""Squared disagreement, as a share of the object's mean square, below which no patch is suspected."""

MAX_REWEIGHTINGS = 4
MAX_EIGEN_STEPS, EIGEN_TOLERANCE = 1000, 1e-6
MAX_DENSE_PATCHES = 16  # patches up to which the graph is written down: less work than steps on it
MAX_NEWTON_STEPS, NEWTON_TOLERANCE_RAD = 20, 1e-9
MAX_CONJUGATE_STEPS = 200


class Synchronization(NamedTuple):
    """What makes patches agree."""

    phase_factors: PhaseFactors
    """(n,) of modulus one."""

    patch_weights: NDArray[np.float64]
    """(n,) above 0, at most 1: factors on the weights; 1 where a patch disagrees no more than most do."""


class PatchSamples(NamedTuple):
    """Patches at some of their pixels, the same pixels of the canvas for all."""

    values: NDArray[np.complex128]
    """(n, k)."""

    weights: NDArray[np.float64]
    """(n, k), not negative."""

    canvas_indices: NDArray[np.int64]
    """(n, k): which pixel of the canvas, counted from 0."""


def synchronize_phases(samples: PatchSamples) -> Synchronization:
    """The turns that make patches agree best, and how far each patch may be trusted.

    A patch that disagrees with its neighbours far more than most do (of a dead pattern, say) loses its say: iteratively
    reweighted least squares. Of patches without a common lit pixel, each island is turned by nothing on average over
    the patches' weights, so patches that agree already stay as they are.
    """
    count = len(samples.values)
    phase_factors, patch_weights = np.ones(count, np.complex128), np.ones(count)
    components = _find_components(samples)
    light = (samples.weights * np.abs(samples.values) ** 2).sum(1)
    for number in range(MAX_REWEIGHTINGS + 1):
        matrix = _build_matrix(samples, patch_weights)
        for component in components:
            part = matrix[component]
            start = phase_factors[component] if number else _solve_by_eigenvector(part, light[component])
            phase_factors[component] = _solve_by_newton(part, start)
        before, patch_weights = patch_weights, _compute_patch_weights(samples, phase_factors, patch_weights)
        if np.abs(patch_weights - before).max(initial=0) < 0.05:
            break
    for component in components:
        mean = (samples.weights[component].sum(1) * phase_factors[component]).sum()
        phase_factors[component] *= np.conj(_normalize_modulus(mean))
    return Synchronization(phase_factors, patch_weights)


def _build_matrix(samples: PatchSamples, patch_weights: NDArray[np.float64]) -> Any:
    """M of the module's docstring, sparse, (n, pixels)."""
    from scipy.sparse import csr_array

    count, each = samples.values.shape
    weights = samples.weights * patch_weights[:, None]
    total = np.bincount(samples.canvas_indices.ravel(), weights.ravel())
    data = weights * samples.values / np.sqrt(np.maximum(total, np.finfo(float).tiny))[samples.canvas_indices]
    return csr_array(
        (data.ravel(), samples.canvas_indices.ravel(), np.arange(0, data.size + 1, each)), (count, len(total))
    )


def _find_components(samples: PatchSamples) -> list[NDArray[np.intp]]:
    """The patches (indices) of each connected part of the overlap graph; those without weight or content in none."""
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


def _solve_by_eigenvector(matrix: Any, light: NDArray[np.float64]) -> PhaseFactors:
    """The phases of the leading eigenvector of ``M̄ Mᵀ``, each patch over the root of its ``light`` Σ w |p|², (n,).

    The scale takes from a patch of garbage what its brightness would give it, and where all agree, the eigenvalue is 1
    and the eigenvector nowhere faint. One vector of LOBPCG (Knyazev, SIAM J. Sci. Comput. 23, 517 (2001)).
    """
    from scipy.sparse.linalg import LinearOperator, lobpcg

    norms = np.sqrt(np.maximum(light, np.finfo(float).tiny))
    forth, back = (matrix / norms[:, None]).T.tocsr(), (matrix / norms[:, None]).conj().tocsr()
    if len(norms) <= MAX_DENSE_PATCHES:
        return _normalize_modulus(np.linalg.eigh((back @ forth).toarray())[1][:, -1])
    graph = LinearOperator((len(norms),) * 2, matvec=lambda vector: back @ (forth @ vector), dtype=np.complex128)
    start = norms.astype(np.complex128)[:, None]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        vector = lobpcg(graph, start, largest=True, tol=EIGEN_TOLERANCE, maxiter=MAX_EIGEN_STEPS)[1]
    if caught:  # Newton's method goes on from what there is
        log.info("the phases of %d patches settle slowly: their eigenvector is not exact", len(norms))
    return _normalize_modulus(vector[:, 0])


def _solve_by_newton(matrix: Any, phase_factors: PhaseFactors) -> PhaseFactors:
    """Turns that nothing turns further: Newton's method on the angles, each step by conjugate gradients."""
    forth = matrix.T.tocsr()
    back = matrix.conj()
    for _ in range(MAX_NEWTON_STEPS):
        pull = phase_factors.conj() * (back @ (forth @ phase_factors))
        if np.abs(np.angle(pull)).max() < NEWTON_TOLERANCE_RAD:
            break
        angles = _solve_newton_step(
            pull, lambda step, at=phase_factors: (at.conj() * (back @ (forth @ (at * step)))).real
        )
        gain = np.linalg.norm(forth @ phase_factors)
        # Half as far where that overshoots; at the last the plain angles, which never do.
        for candidate in (angles, angles / 2, angles / 4, np.angle(pull)):
            rotated = phase_factors * np.exp(1j * candidate)
            if np.linalg.norm(forth @ rotated) >= gain:
                break
        phase_factors = rotated
    return phase_factors


def _solve_newton_step(pull: PhaseFactors, apply: Any) -> NDArray[np.float64]:
    """Angles (n,) that solve ``(diag(Re pull) − apply) angles = Im pull``, as far as the left side is convex."""
    diagonal = np.maximum(np.abs(pull), np.finfo(float).tiny)
    angles = np.zeros(len(pull))
    left = pull.imag.copy()
    first = np.linalg.norm(left)
    scaled = left / diagonal
    direction, norm = scaled, left @ scaled
    for number in range(MAX_CONJUGATE_STEPS):
        image = pull.real * direction - apply(direction)
        curvature = direction @ image
        if curvature <= 0:
            return angles if number else np.angle(pull)
        angles += norm / curvature * direction
        left -= norm / curvature * image
        if np.linalg.norm(left) <= 1e-2 * first:
            break
        scaled = left / diagonal
        norm, last = left @ scaled, norm
        direction = scaled + norm / last * direction
    return angles


def _compute_patch_weights(
    samples: PatchSamples, phase_factors: PhaseFactors, patch_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Factors on the weights from what each patch disagrees by, in units of what the median one does."""
    lit = samples.weights * patch_weights[:, None]
    total = np.bincount(samples.canvas_indices.ravel(), lit.ravel())
    rotated = samples.values * phase_factors[:, None]
    real, imaginary = (
        np.bincount(samples.canvas_indices.ravel(), (lit * part).ravel()) for part in (rotated.real, rotated.imag)
    )
    mean = (real + 1j * imaginary) / np.maximum(total, np.finfo(float).tiny)
    light = np.maximum(samples.weights.sum(1), np.finfo(float).tiny)
    off = (samples.weights * np.abs(rotated - mean[samples.canvas_indices]) ** 2).sum(1) / light
    power = (np.abs(mean) ** 2 * total).sum() / max(float(total.sum()), np.finfo(float).tiny)
    threshold = OUTLIER_RATIO * np.median(off) + MIN_RELATIVE_DISAGREEMENT * power
    return np.square(np.where(off <= threshold, 1, threshold / np.maximum(off, np.finfo(float).tiny)))


def _normalize_modulus(values: Any) -> Any:
    """``values`` over their modulus, 1 where that is 0."""
    size = np.abs(values)
    return np.where(size > 0, values / np.where(size > 0, size, 1), 1)
