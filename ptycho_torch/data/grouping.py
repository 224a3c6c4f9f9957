"""Which positions are computed together: groups of neighbours, compact batches of groups, a region held out."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError

Indices = NDArray[np.intp]


def find_nearest_groups(positions: NDArray[np.float64], gridsize: int, centers: Indices) -> Indices:
    """Groups of a position and its ``gridsize² − 1`` nearest neighbours.

    Args:
        positions: (n, 2) (y, x) in pixels.
        gridsize: g.
        centres: (m,) indices of the positions that each have a group.

    Returns:
        (m, g²) indices into ``positions``, each group's own position first, the others by distance.

    Raises:
        ConfigError: there are fewer than g² positions.
    """
    members = gridsize**2
    check_group_size(gridsize, len(positions))
    if members == 1:
        return centers[:, None]
    from scipy.spatial import cKDTree

    # One more than needed, because a position that stands twice may come before the centre itself.
    _, near = cKDTree(positions).query(positions[centers], k=min(members + 1, len(positions)))
    groups = np.empty((len(centers), members), dtype=np.intp)
    for row, (center, candidates) in enumerate(zip(centers, near, strict=True)):
        groups[row, 0] = center
        groups[row, 1:] = candidates[candidates != center][: members - 1]
    return groups


def check_group_size(gridsize: int, positions: int) -> None:
    """Raise ConfigError unless ``positions`` are enough for one group of ``gridsize``²."""
    if gridsize**2 > positions:
        raise ConfigError(
            f"--gridsize {gridsize} needs groups of {gridsize**2} positions, and there are {positions}: "
            "choose a smaller --gridsize"
        )


def make_compact_batches(
    positions: NDArray[np.float64], batch_size: int, spread: int, rng: np.random.Generator
) -> list[Indices]:
    """Deal all positions into batches of neighbours, each position once.

    The field is cut into compact cells of ``spread`` × ``batch_size`` positions by repeated bisection along random
    directions, and each cell is dealt at random into ``spread`` batches. ``spread`` 1 gives the most compact batches;
    a larger one gives batches that reach further for the same cost.

    Args:
        positions: (n, 2) (y, x) in pixels.
        batch_size: positions a batch; the last of a cell may be smaller.
        spread: batches that share a cell.
        rng: source of the directions, the dealing and the order of the batches.

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
    """Groups among the ``allowed`` positions: all of them, or ``count`` drawn without replacement.

    Args:
        positions: (n, 2) (y, x) in pixels.
        gridsize: g.
        allowed: (k,) indices of positions that centres and neighbours are taken from.
        count: number of groups, or None for all.
        rng: source of the draw.

    Returns:
        (m, g²) indices into ``positions``, by rising centre.

    Raises:
        ConfigError: more groups are asked for than there are, or a group is larger than the field.
    """
    centers = np.arange(len(allowed))
    if count is not None:
        if count > len(allowed):
            raise ConfigError(
                f"--n_images is {count}, and there are {len(allowed)} groups to choose from"
                f"{' outside the held-out region' if len(allowed) < len(positions) else ''}; choose at most that many"
            )
        centers = np.sort(rng.choice(centers, count, replace=False))
    return allowed[find_nearest_groups(positions[allowed], gridsize, centers)]


class HoldoutSplit(NamedTuple):
    """Positions to train on, positions held out, and the region that the latter lie in."""

    training: Indices
    validation: Indices
    region: str


def hold_out_region(positions: NDArray[np.float64], share: float = 0.05, at_least: int = 1) -> HoldoutSplit:
    """Hold out the positions of the lowest rows of the field: ``share`` of them, and at least ``at_least``.

    A region rather than a random choice, because neighbouring patterns see the same piece of the object: only
    patterns at its far side say something about new ground.

    Raises:
        ConfigError: that would be all of them.
    """
    rows = positions[:, 0]
    bound = min(np.quantile(rows, 1 - share, method="higher"), np.sort(rows)[-min(at_least, len(rows))])
    in_region = rows >= bound
    if in_region.all():
        raise ConfigError(
            f"of {len(positions)} positions none is left when the lowest rows are held out for validation: "
            f"give --test_data_file{' or choose a smaller --gridsize' if at_least > 1 else ''}"
        )
    region = f"y >= {bound:.2f} px ({in_region.sum()} of {len(positions)} positions)"
    return HoldoutSplit(np.flatnonzero(~in_region), np.flatnonzero(in_region), region)
