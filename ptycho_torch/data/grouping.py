"""Grouping of scan positions: groups of neighbors, compact batches, and a held-out region."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError

Indices = NDArray[np.intp]

LONGEST_AXIS_RATIO = 1.1
"""Ratio of width to height of a field above which its columns are the longest axis; the axis of a square field is the
rows."""


def find_nearest_groups(positions: NDArray[np.float64], gridsize: int, centers: Indices) -> Indices:
    """Return groups of a position and its ``gridsize² − 1`` nearest neighbors.

    Args:
        positions: (n, 2) (y, x) in pixels.
        gridsize: g.
        centers: (m,) indices of the positions at the centers of the groups.

    Returns:
        (m, g²) indices into ``positions``; each group starts with its center, neighbors follow by distance.

    Raises:
        ConfigError: there are fewer than g² positions.
    """
    members = gridsize**2
    check_group_size(gridsize, len(positions))
    if members == 1:
        return centers[:, None]
    from scipy.spatial import cKDTree

    # One more than needed, because a duplicate of the center may come before the center itself.
    _, near = cKDTree(positions).query(positions[centers], k=min(members + 1, len(positions)))
    groups = np.empty((len(centers), members), dtype=np.intp)
    for row, (center, candidates) in enumerate(zip(centers, near, strict=True)):
        groups[row, 0] = center
        groups[row, 1:] = candidates[candidates != center][: members - 1]
    return groups


def check_group_size(gridsize: int, positions: int) -> None:
    """Raise :class:`ConfigError` if there are fewer ``positions`` than one group of ``gridsize``² needs."""
    if gridsize**2 > positions:
        raise ConfigError(
            f"`gridsize` is {gridsize}, which needs groups of {gridsize**2} positions; expected groups of at most "
            f"{positions}, the number of positions; choose a smaller `gridsize`"
        )


def make_compact_batches(
    positions: NDArray[np.float64], batch_size: int, spread: int, rng: np.random.Generator
) -> list[Indices]:
    """Divide all positions into batches of neighbors; each position is in one batch.

    Repeated bisection along random directions cuts the field into compact cells of ``spread`` × ``batch_size``
    positions, and each cell is divided at random into ``spread`` batches. A spread of 1 gives the most compact batches;
    a larger spread gives batches with a longer reach at the same cost.

    Args:
        positions: (n, 2) (y, x) in pixels.
        batch_size: positions per batch; the last batch of a cell may be smaller.
        spread: batches per cell.
        rng: random generator of directions, division and order of the batches.

    Returns:
        Index arrays into ``positions``, in random order.
    """
    batches: list[Indices] = []
    for cell in _bisect(np.arange(len(positions)), positions, batch_size * spread, rng):
        shuffled = rng.permutation(cell)
        batches += [shuffled[start : start + batch_size] for start in range(0, len(cell), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _bisect(indices: Indices, positions: NDArray[np.float64], cell: int, rng: np.random.Generator) -> list[Indices]:
    if len(indices) <= cell:
        return [indices] if len(indices) else []
    angle = rng.uniform(0, np.pi)
    along = positions[indices] @ np.array([np.sin(angle), np.cos(angle)])
    cells = -(-len(indices) // cell)
    first = (cells // 2) * cell  # whole cells on one side, so that only one batch of the scan is smaller
    ranked = indices[np.argsort(along, kind="stable")]
    return _bisect(ranked[:first], positions, cell, rng) + _bisect(ranked[first:], positions, cell, rng)


def draw_groups(
    positions: NDArray[np.float64], gridsize: int, allowed: Indices, count: int | None, rng: np.random.Generator
) -> Indices:
    """Return groups of neighbors among the allowed positions: all groups, or a random choice without replacement.

    Args:
        positions: (n, 2) (y, x) in pixels.
        gridsize: g.
        allowed: (k,) indices of positions that may be centers and neighbors.
        count: number of groups; None for all.
        rng: random generator of the choice.

    Returns:
        (m, g²) indices into ``positions``, by ascending center.

    Raises:
        ConfigError: ``count`` exceeds the number of groups, or a group needs more positions than there are.
    """
    centers = np.arange(len(allowed))
    if count is not None:
        if count > len(allowed):
            raise ConfigError(
                f"`n_images` is {count}; expected at most {len(allowed)}, the number of groups"
                f"{' outside the held-out region' if len(allowed) < len(positions) else ''}; choose a smaller number"
            )
        centers = np.sort(rng.choice(centers, count, replace=False))
    return allowed[find_nearest_groups(positions[allowed], gridsize, centers)]


class HoldoutSplit(NamedTuple):
    """Positions for training, positions for validation, and a description of the held-out region."""

    training: Indices
    validation: Indices
    region: str


def hold_out_region(positions: NDArray[np.float64], share: float = 0.05, at_least: int = 1) -> HoldoutSplit:
    """Hold out the positions at the far end of the longest axis of the field.

    A region is held out rather than random positions, because neighboring patterns share most of their object patch:
    only patterns far from the training positions test new parts of the object. A whole row at the end of the axis is
    held out if it is at most twice the share; of a longer row, only its end.

    Args:
        positions: (n, 2) (y, x) in pixels.
        share: share of the positions to hold out.
        at_least: smallest number of positions to hold out.

    Raises:
        ConfigError: no position would remain for training.
    """
    count = max(math.ceil(share * (len(positions) - 1)), at_least, 1)
    if count >= len(positions):
        raise ConfigError(
            f"none of {len(positions)} positions remains for training if {count} are held out; expected at least one; "
            f"set `test_data_file`{' or choose a smaller `gridsize`' if at_least > 1 else ''}"
        )
    height, width = np.ptp(positions, axis=0)
    axis = 1 if width > LONGEST_AXIS_RATIO * height else 0
    along, across = positions[:, axis], positions[:, 1 - axis]
    order = np.lexsort([across, along])
    bound = along[order[-count]]
    in_region = along >= bound
    whole_rows = in_region.sum() <= max(count, 2 * share * len(positions))
    if not whole_rows:
        in_region[:] = False
        in_region[order[-count:]] = True
    region = f"{'yx'[axis]} >= {bound:.2f} px ({in_region.sum()} of {len(positions)} positions)"
    if not whole_rows:
        region += f", the end of the row along {'yx'[1 - axis]}"
    return HoldoutSplit(np.flatnonzero(~in_region), np.flatnonzero(in_region), region)
