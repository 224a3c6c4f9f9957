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

Turns = NDArray[np.complex128]

SUSPECT = 16.0
"""A patch is trusted less once its mean squared disagreement is this many times the median."""

AGREED = 1e-4
"""Squared disagreement, as a share of the object's mean square, below which no patch is suspected."""

REWEIGHTINGS = 4
EIGEN_STEPS, EIGEN_RESIDUAL = 1000, 1e-6
SMALL = 16  # patches up to which the graph is written down: less work than steps on it
NEWTON_STEPS, NEWTON_ANGLE = 20, 1e-9
CONJUGATE_STEPS = 200


class Synchronised(NamedTuple):
    """What makes patches agree."""

    turns: Turns
    """(n,) of modulus one."""

    trust: NDArray[np.float64]
    """(n,) above 0, at most 1: factors on the weights; 1 where a patch disagrees no more than most do."""


class Samples(NamedTuple):
    """Patches at some of their pixels, the same pixels of the canvas for all."""

    values: NDArray[np.complex128]
    """(n, k)."""

    weights: NDArray[np.float64]
    """(n, k), not negative."""

    places: NDArray[np.int64]
    """(n, k): which pixel of the canvas, counted from 0."""


def synchronise(samples: Samples) -> Synchronised:
    """The turns that make patches agree best, and how far each patch may be trusted.

    A patch that disagrees with its neighbours far more than most do (of a dead pattern, say) loses its say: iteratively
    reweighted least squares. Of patches without a common lit pixel, each island is turned by nothing on average over
    the patches' weights, so patches that agree already stay as they are.
    """
    count = len(samples.values)
    turns, trust = np.ones(count, np.complex128), np.ones(count)
    islands = _islands(samples)
    light = (samples.weights * np.abs(samples.values) ** 2).sum(1)
    for number in range(REWEIGHTINGS + 1):
        matrix = _matrix(samples, trust)
        for island in islands:
            part = matrix[island]
            start = turns[island] if number else _by_eigenvector(part, light[island])
            turns[island] = _by_newton(part, start)
        before, trust = trust, _trust(samples, turns, trust)
        if np.abs(trust - before).max(initial=0) < 0.05:
            break
    for island in islands:
        mean = (samples.weights[island].sum(1) * turns[island]).sum()
        turns[island] *= np.conj(_unit(mean))
    return Synchronised(turns, trust)


def _matrix(samples: Samples, trust: NDArray[np.float64]) -> Any:
    """M of the module's docstring, sparse, (n, pixels)."""
    from scipy.sparse import csr_array

    count, each = samples.values.shape
    weights = samples.weights * trust[:, None]
    total = np.bincount(samples.places.ravel(), weights.ravel())
    data = weights * samples.values / np.sqrt(np.maximum(total, np.finfo(float).tiny))[samples.places]
    return csr_array((data.ravel(), samples.places.ravel(), np.arange(0, data.size + 1, each)), (count, len(total)))


def _islands(samples: Samples) -> list[NDArray[np.intp]]:
    """The patches (indices) of each connected part of the overlap graph; those without weight or content in none."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count = len(samples.values)
    seen = (samples.weights > 0) & (samples.values != 0)
    rows = np.broadcast_to(np.arange(count)[:, None], seen.shape)[seen]
    pixels = samples.places[seen] + count
    size = int(samples.places.max(initial=0)) + 1 + count
    _, labels = connected_components(csr_array((np.ones(len(rows)), (rows, pixels)), (size, size)), directed=False)
    labels = labels[:count]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [group for group in groups if seen[group].any()]


def _by_eigenvector(matrix: Any, light: NDArray[np.float64]) -> Turns:
    """The phases of the leading eigenvector of ``M̄ Mᵀ``, each patch over the root of its ``light`` Σ w |p|², (n,).

    The scale takes from a patch of garbage what its brightness would give it, and where all agree, the eigenvalue is 1
    and the eigenvector nowhere faint. One vector of LOBPCG (Knyazev, SIAM J. Sci. Comput. 23, 517 (2001)).
    """
    from scipy.sparse.linalg import LinearOperator, lobpcg

    norms = np.sqrt(np.maximum(light, np.finfo(float).tiny))
    forth, back = (matrix / norms[:, None]).T.tocsr(), (matrix / norms[:, None]).conj().tocsr()
    if len(norms) <= SMALL:
        return _unit(np.linalg.eigh((back @ forth).toarray())[1][:, -1])
    graph = LinearOperator((len(norms),) * 2, matvec=lambda vector: back @ (forth @ vector), dtype=np.complex128)
    start = norms.astype(np.complex128)[:, None]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        vector = lobpcg(graph, start, largest=True, tol=EIGEN_RESIDUAL, maxiter=EIGEN_STEPS)[1]
    if said:  # Newton's method goes on from what there is
        log.info("the phases of %d patches settle slowly: their eigenvector is not exact", len(norms))
    return _unit(vector[:, 0])


def _by_newton(matrix: Any, turns: Turns) -> Turns:
    """Turns that nothing turns further: Newton's method on the angles, each step by conjugate gradients."""
    forth = matrix.T.tocsr()
    back = matrix.conj()
    for _ in range(NEWTON_STEPS):
        pull = turns.conj() * (back @ (forth @ turns))
        if np.abs(np.angle(pull)).max() < NEWTON_ANGLE:
            break
        angles = _newton_step(pull, lambda step, at=turns: (at.conj() * (back @ (forth @ (at * step)))).real)
        gain = np.linalg.norm(forth @ turns)
        # Half as far where that overshoots; at the last the plain angles, which never do.
        for tried in (angles, angles / 2, angles / 4, np.angle(pull)):
            turned = turns * np.exp(1j * tried)
            if np.linalg.norm(forth @ turned) >= gain:
                break
        turns = turned
    return turns


def _newton_step(pull: Turns, apply: Any) -> NDArray[np.float64]:
    """Angles (n,) that solve ``(diag(Re pull) − apply) angles = Im pull``, as far as the left side is convex."""
    diagonal = np.maximum(np.abs(pull), np.finfo(float).tiny)
    angles = np.zeros(len(pull))
    left = pull.imag.copy()
    first = np.linalg.norm(left)
    scaled = left / diagonal
    direction, norm = scaled, left @ scaled
    for number in range(CONJUGATE_STEPS):
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


def _trust(samples: Samples, turns: Turns, trust: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors on the weights from what each patch disagrees by, in units of what the median one does."""
    lit = samples.weights * trust[:, None]
    total = np.bincount(samples.places.ravel(), lit.ravel())
    turned = samples.values * turns[:, None]
    real, imaginary = (np.bincount(samples.places.ravel(), (lit * part).ravel()) for part in (turned.real, turned.imag))
    mean = (real + 1j * imaginary) / np.maximum(total, np.finfo(float).tiny)
    light = np.maximum(samples.weights.sum(1), np.finfo(float).tiny)
    off = (samples.weights * np.abs(turned - mean[samples.places]) ** 2).sum(1) / light
    power = (np.abs(mean) ** 2 * total).sum() / max(float(total.sum()), np.finfo(float).tiny)
    usual = SUSPECT * np.median(off) + AGREED * power
    return np.square(np.where(off <= usual, 1, usual / np.maximum(off, np.finfo(float).tiny)))


def _unit(values: Any) -> Any:
    """``values`` over their modulus, 1 where that is 0."""
    size = np.abs(values)
    return np.where(size > 0, values / np.where(size > 0, size, 1), 1)
