"""Small subsets of a scan: choice of patterns, crop and bin, and the coverage that remains.

The same source and settings give the same subset: random choices take a seed.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter
from ptycho_torch.data.grouping import find_nearest_groups
from ptycho_torch.data.photons import PhotonScale, photon_scale
from ptycho_torch.data.resample import bin_scan, check_resampled_size, compute_probe_power, crop_scan
from ptycho_torch.data.scan import Scan

Indices = NDArray[np.intp]
Positions = NDArray[np.float64]
Strategy = Literal["even", "compact", "seeded"]

GRIDSIZE = 2
GROUP_SIZE = GRIDSIZE**2
MIN_SUBSET_SIZE = 2 * GROUP_SIZE
"""Number of positions in two groups of neighbors that share no position."""

ABSOLUTE_FOLDER_PATTERN = re.compile(r"(?:file://|(?<![\w./\\~:]))(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\\"']+[/\\])+")


def make_subset(
    source: Scan,
    photons_per_unit: float | None = None,
    *,
    subset_size: int = 64,
    strategy: Strategy = "even",
    seed: int = 0,
    crop: int = 1,
    bin: int = 1,
) -> Scan:
    """Return a subset of the patterns of a scan, on fewer pixels if requested.

    Args:
        source: the whole scan.
        photons_per_unit: photons per squared unit of amplitude; None if unknown.
        subset_size: number of patterns.
        strategy: choice of the patterns; see :func:`select_positions`.
        seed: seed of the strategy ``seeded``.
        crop: factor by which the detector is cropped; see :func:`~ptycho_torch.data.resample.crop_scan`.
        bin: factor by which detector pixels are binned; see :func:`~ptycho_torch.data.resample.bin_scan`.

    Raises:
        ConfigError: the subset is too small or larger than the source, or a factor does not fit the patterns.
        DataError: no photons remain after crop and bin.
    """
    check_resampled_size(source.size, crop, bin)
    chosen = select_positions(source.positions, subset_size, strategy, np.random.default_rng(seed))
    origin = source.source_index if source.source_index is not None else np.arange(len(source), dtype=np.int64)
    record: dict[str, Any] = describe_strategy(strategy, subset_size, seed)
    record |= {"of": len(source), "crop": crop, "bin": bin}
    selection = replace(
        source.select(chosen),
        source_index=origin[chosen],
        photons_per_unit=photons_per_unit,
        metadata=strip_folders(source.metadata) | {"subset": record},
    )
    return bin_scan(crop_scan(selection, crop), bin)


def select_positions(positions: Positions, size: int, strategy: Strategy, rng: np.random.Generator) -> Indices:
    """Choose ``size`` of the positions.

    Args:
        positions: (n, 2) (y, x) in pixels.
        size: number of positions.
        strategy: ``even``: neighborhoods of four spread over the field; ``compact``: a contiguous window in the middle
            of the field; ``seeded``: drawn from ``rng`` without replacement.
        rng: random generator of the strategy ``seeded``.

    Returns:
        (size,) ascending indices.

    Raises:
        ConfigError: ``size`` is smaller than two groups at gridsize 2, or larger than n.
    """
    if size < MIN_SUBSET_SIZE:
        raise ConfigError(
            f"`subset_size` is {size}; expected at least {MIN_SUBSET_SIZE}, the positions of two groups at gridsize "
            f"{GRIDSIZE}; choose a larger one"
        )
    if size > len(positions):
        raise ConfigError(
            f"`subset_size` is {size}; expected at most {len(positions)}, the number of patterns; choose a smaller one"
        )
    if strategy == "seeded":
        return np.sort(rng.choice(len(positions), size, replace=False))
    return np.sort(_select_spread(positions, size) if strategy == "even" else _select_window(positions, size))


def _compute_middle(positions: Positions) -> Positions:
    """Return the middle (2,) of the bounding box of the positions."""
    middle: Positions = (positions.min(0) + positions.max(0)) / 2
    return middle


def _select_window(positions: Positions, size: int) -> Indices:
    """Return the positions nearest to the middle of the field in the maximum norm."""
    distance = np.abs(positions - _compute_middle(positions)).max(1)
    return np.argsort(distance, kind="stable")[:size]


def _select_spread(positions: Positions, size: int) -> Indices:
    """Return neighborhoods of four, each around the position farthest from all positions chosen before.

    The first neighborhood starts at an edge of the field. The remainder of ``size`` divided by four enlarges the first
    neighborhoods, because a single position would have no neighbor to overlap with.
    """
    free = np.ones(len(positions), dtype=bool)
    distance = np.full(len(positions), np.inf)
    center = np.argmax(_compute_squared_distance(positions, _compute_middle(positions)))
    for part in np.array_split(np.arange(size), size // GROUP_SIZE):
        near = np.where(free, _compute_squared_distance(positions, positions[center]), np.inf)
        group = np.argsort(near, kind="stable")[: len(part)]
        free[group] = False
        for index in group:
            distance = np.minimum(distance, _compute_squared_distance(positions, positions[index]))
        center = np.argmax(np.where(free, distance, -1.0))
    return np.flatnonzero(~free)


def _compute_squared_distance(positions: Positions, point: Positions) -> Positions:
    distance: Positions = np.square(positions - point).sum(1)
    return distance


def compute_field_coverage(selected: Positions, field: Positions, reach: float) -> dict[str, float]:
    """Compute the share of the scanned field that a selection of positions covers.

    Args:
        selected: (m, 2) (y, x) in pixels.
        field: (n, 2) (y, x) of all positions in pixels.
        reach: distance in pixels that a selected position covers.

    Returns:
        ``y``, ``x``: share of the range of each axis between the outermost selected positions. ``positions``: share of
        the positions of the field within ``reach`` of a selected position.
    """
    from scipy.spatial import cKDTree

    spans, full_spans = np.ptp(selected, axis=0), np.ptp(field, axis=0)
    y, x = (float(span / full) if full > 0 else 1.0 for span, full in zip(spans, full_spans, strict=True))
    distances, _ = cKDTree(selected).query(field)
    return {"y": y, "x": x, "positions": float((distances <= reach).mean())}


def compute_overlap(scan: Scan) -> dict[str, float | None]:
    """Compute step, probe diameter and overlap of neighbors, and the extent of groups.

    Returns:
        ``step`` and ``probe_diameter`` in pixels; ``overlap``: 1 − step / diameter; ``group_reach``: median distance in
        pixels from a position to the farthest position of its group at gridsize 2.
    """
    step = compute_median_step(scan.positions)
    diameter = None if scan.probe is None else compute_probe_diameter(scan.probe)
    groups = scan.positions[find_nearest_groups(scan.positions, GRIDSIZE, np.arange(len(scan)))]
    reach = np.sqrt(np.square(groups[:, 1:] - groups[:, :1]).sum(2)).max(1)
    return {
        "step": step,
        "probe_diameter": diameter,
        "overlap": None if step is None or not diameter else 1 - step / diameter,
        "group_reach": float(np.median(reach)),
    }


def strip_folders(value: Any) -> Any:
    """Return a JSON value without the folders of absolute paths, which may be private."""
    if isinstance(value, dict):
        return {strip_folders(key): strip_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strip_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute():
            return kind(value).name
    return ABSOLUTE_FOLDER_PATTERN.sub("", value)


def describe_strategy(strategy: Strategy, subset_size: int, seed: int) -> dict[str, Any]:
    """Return the record of the strategy: its name, the number of patterns, and the seed if it is used."""
    return {"name": strategy, "subset_size": subset_size} | ({"seed": seed} if strategy == "seeded" else {})


def describe_steps(source: Scan, subset: Scan, crop: int, bin: int) -> list[str]:
    """Return a description of each step from ``source`` to ``subset``."""
    steps = [f"kept {len(subset)} of {len(source)} patterns, with all arrays that have one entry per pattern"]
    for name, factor, description in (
        ("crop", crop, "the central detector pixels are kept, and the band of probe and object that they resolve"),
        ("bin", bin, "counts of neighboring detector pixels are summed, and the probe is cropped to its middle"),
    ):
        if factor > 1:
            steps.append(f"{name} {factor}: {description}")
    if crop * bin > 1 and subset.probe is None:
        steps.append(f"patterns {source.size} -> {subset.size} pixels per side")
    elif crop * bin > 1 and source.probe is not None and subset.probe is not None:
        share = compute_probe_power(subset.probe) / compute_probe_power(source.probe)
        steps.append(f"patterns {source.size} -> {subset.size} pixels per side, with {share:.2%} of the probe's power")
    if strip_folders(source.metadata) != source.metadata:
        steps.append("folders of absolute paths are removed from the metadata")
    return steps


def describe_subset(source: Scan, subset: Scan, scale: PhotonScale, crop: int) -> dict[str, Any]:
    """Return coverage, overlap, groups and photons of ``subset``, and a digest of its indices.

    Args:
        source: the whole scan.
        subset: the scan that :func:`make_subset` returned.
        scale: photon scale of ``source``.
        crop: crop factor of ``subset``.
    """
    indices = np.asarray(subset.source_index, dtype="<i8")
    before, after = compute_overlap(source), compute_overlap(subset)
    is_known = scale.origin != "assumed"
    return {
        "indices": {"count": len(indices), "sha256": hashlib.sha256(indices.tobytes()).hexdigest()},
        "coverage": compute_field_coverage(
            subset.positions * crop, source.positions, (before["probe_diameter"] or 0.0) / 2
        ),
        "overlap": {"fixture": after, "source": before},
        "groups": {"gridsize": GRIDSIZE, "apart": len(subset) // GROUP_SIZE, "with_overlap": len(subset)},
        "photons": {
            "origin": scale.origin,
            "per_unit": scale.photons_per_unit if is_known else None,
            "per_pattern": photon_scale(subset).photons_per_pattern if is_known else None,
        },
    }
