"""A small fixture cut out of a big scan: which positions are kept, what that covers, and a record of how it was made.

The same source gives the same bytes on any day: nothing is drawn but by a seed, and neither file holds a clock or a
folder's name.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.data import SubsetConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.core.files import atomic_write, write_json
from ptycho_torch.data import contract
from ptycho_torch.data.grouping import find_nearest_groups
from ptycho_torch.data.photons import PhotonScale, photon_scale
from ptycho_torch.data.resample import bin_scan, check_resampled_size, compute_probe_power, crop_scan
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import make_scan_from_arrays, read_arrays, save_scan
from ptycho_torch.io.profile import compute_median_step, compute_probe_diameter

Indices = NDArray[np.intp]
Positions = NDArray[np.float64]

GENERATOR = "ptycho_torch.subset"
RECORD_SCHEMA = "ptycho_torch subset"
RECORD_VERSION = 1

GRIDSIZE = 2
GROUP_SIZE = GRIDSIZE**2
MIN_SUBSET_SIZE = 2 * GROUP_SIZE
"""Two groups of neighbours that share no position."""

ABSOLUTE_FOLDER_PATTERN = re.compile(r"(?:file://|(?<![\w./\\~:]))(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\\"']+[/\\])+")


def write_subset(config: SubsetConfig) -> dict[str, Any]:
    """Cut ``config.source`` down to ``config.output``, write the record of it, and return that record.

    Raises:
        ConfigError: a setting is out of range for the source, or two of the files are one.
        DataError: a file cannot be read or written. Then nothing new is left, and what was there before stays.
        ContractError: the source breaks the contract.
    """
    output, sidecar = config.output, _make_sidecar_path(config)
    _check_distinct_paths(config.source, output, sidecar)
    arrays = read_arrays(config.source)
    source = make_scan_from_arrays(
        arrays,
        name=str(config.source),
        axis_order=config.axis_order,
        measurement=config.measurement,
        photons_per_unit=config.photons_per_unit,
        source=config.source,
    )
    scale = photon_scale(source, config.photons_per_unit)
    fixture = make_subset(source, config, None if scale.origin == "assumed" else scale.photons_per_unit)
    with (
        _restore_on_failure(output, sidecar),
        atomic_write(sidecar) as record_temp_path,
        atomic_write(output) as temp_path,
    ):
        save_scan(temp_path, fixture)
        record = {
            "schema": RECORD_SCHEMA,
            "version": RECORD_VERSION,
            "generator": {"name": GENERATOR, "version": version("ptycho-torch")},
            "source": {"name": config.source.name, "sha256": _compute_digest(config.source), "patterns": len(source)},
            "strategy": _describe_strategy(config),
            "transformations": [*_describe_conversions(arrays, config), *_describe_steps(source, fixture, config)],
            **_describe_subset(source, fixture, scale, config.crop),
            **_describe_written_file(temp_path, output.name),
        }
        write_json(record_temp_path, record)
    return record


def make_subset(source: Scan, config: SubsetConfig, photons_per_unit: float | None) -> Scan:
    """The patterns of ``source`` that ``config`` asks for, on as many pixels as it asks for.

    Args:
        source: the whole scan.
        config: which patterns, and the factors of crop and bin.
        photons_per_unit: photons for one squared unit of amplitude, None where that is not known.

    Raises:
        ConfigError: the subset is too small or larger than the source, or a factor does not fit.
        DataError: a crop or bin leaves no light.
    """
    check_resampled_size(source.size, config.crop, config.bin)
    rng = np.random.default_rng(config.seed)
    chosen = select_positions(source.positions, config.subset_size, config.strategy, rng)
    origin = source.source_index if source.source_index is not None else np.arange(len(source), dtype=np.int64)
    made: dict[str, Any] = _describe_strategy(config) | {"of": len(source), "crop": config.crop, "bin": config.bin}
    cut = replace(
        source.select(chosen),
        source_index=origin[chosen],
        photons_per_unit=photons_per_unit,
        metadata=strip_folders(source.metadata) | {"subset": made},
    )
    return bin_scan(crop_scan(cut, config.crop), config.bin)


def select_positions(
    positions: Positions, size: int, strategy: Literal["even", "compact", "seeded"], rng: np.random.Generator
) -> Indices:
    """Indices of ``size`` of the ``positions`` (n, 2), rising: the same for the same positions (and generator).

    ``even``: neighbourhoods of four spread over the field; ``compact``: a contiguous window in the middle of it;
    ``seeded``: drawn by ``rng`` without replacement.

    Raises:
        ConfigError: fewer positions are asked for than two groups at gridsize 2 need, or more than there are.
    """
    if size < MIN_SUBSET_SIZE:
        raise ConfigError(
            f"--subset_size is {size}: two groups at gridsize {GRIDSIZE} need at least {MIN_SUBSET_SIZE} positions"
        )
    if size > len(positions):
        raise ConfigError(f"--subset_size is {size}, and the source has {len(positions)} patterns; choose fewer")
    if strategy == "seeded":
        return np.sort(rng.choice(len(positions), size, replace=False))
    return np.sort(_select_spread(positions, size) if strategy == "even" else _select_window(positions, size))


def _compute_middle(positions: Positions) -> Positions:
    """The middle (2,) of the box that holds the positions."""
    middle: Positions = (positions.min(0) + positions.max(0)) / 2
    return middle


def _select_window(positions: Positions, size: int) -> Indices:
    """The positions nearest to the middle of the field, in the larger of the two distances."""
    away = np.abs(positions - _compute_middle(positions)).max(1)
    return np.argsort(away, kind="stable")[:size]


def _select_spread(positions: Positions, size: int) -> Indices:
    """Neighbourhoods of four, each round the position that lies farthest from all kept before it.

    The first starts at an edge of the field. What is left over four times their number makes the first ones larger: a
    position of its own would have no neighbour to overlap with.
    """
    free = np.ones(len(positions), dtype=bool)
    away = np.full(len(positions), np.inf)
    seed = np.argmax(_compute_squared_distance(positions, _compute_middle(positions)))
    for part in np.array_split(np.arange(size), size // GROUP_SIZE):
        near = np.where(free, _compute_squared_distance(positions, positions[seed]), np.inf)
        group = np.argsort(near, kind="stable")[: len(part)]
        free[group] = False
        for index in group:
            away = np.minimum(away, _compute_squared_distance(positions, positions[index]))
        seed = np.argmax(np.where(free, away, -1.0))
    return np.flatnonzero(~free)


def _compute_squared_distance(positions: Positions, point: Positions) -> Positions:
    distance: Positions = np.square(positions - point).sum(1)
    return distance


def compute_field_coverage(selected: Positions, field: Positions, reach: float) -> dict[str, float]:
    """How much of the ``field`` (n, 2) the ``kept`` positions (m, 2) cover.

    Returns:
        ``y``, ``x``: share of each axis' range between the outermost kept positions. ``positions``: share of the
        field's positions that lie within ``reach`` pixels of a kept one.
    """
    from scipy.spatial import cKDTree

    spans, whole = np.ptp(selected, axis=0), np.ptp(field, axis=0)
    y, x = (float(span / full) if full > 0 else 1.0 for span, full in zip(spans, whole, strict=True))
    distances, _ = cKDTree(selected).query(field)
    return {"y": y, "x": x, "positions": float((distances <= reach).mean())}


def compute_overlap(scan: Scan) -> dict[str, float | None]:
    """Step, probe diameter and the overlap of neighbours, as in a scan's profile, and how far groups reach.

    Returns:
        ``step``, ``probe_diameter`` in pixels; ``overlap``: 1 − step / diameter; ``group_reach``: median distance in
        pixels from a position to the farthest of its group at gridsize 2.
    """
    step, diameter = compute_median_step(scan.positions), compute_probe_diameter(scan.probe)
    groups = scan.positions[find_nearest_groups(scan.positions, GRIDSIZE, np.arange(len(scan)))]
    reach = np.sqrt(np.square(groups[:, 1:] - groups[:, :1]).sum(2)).max(1)
    return {
        "step": step,
        "probe_diameter": diameter,
        "overlap": None if step is None or not diameter > 0 else 1 - step / diameter,
        "group_reach": float(np.median(reach)),
    }


def strip_folders(value: Any) -> Any:
    """``value`` (JSON) with the folders of absolute paths left out: a fixture tells nobody where its source lay."""
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


def _describe_strategy(config: SubsetConfig) -> dict[str, Any]:
    seed = {"seed": config.seed} if config.strategy == "seeded" else {}
    return {"name": config.strategy, "subset_size": config.subset_size} | seed


def _describe_conversions(arrays: dict[str, NDArray[Any]], config: SubsetConfig) -> list[str]:
    """What reading the source changed, and what of it no scan file holds."""
    found = contract.find_violations(arrays, config.axis_order, config.measurement)
    known = {*contract.CANONICAL_DTYPES, "mask", "scan_index", "source_index", "metadata", "_metadata"}
    left_out = sorted(set(arrays) - known)
    reading = [violation.message for violation in found if violation.rule == "R22"]
    return reading + ([f"left out, for the contract knows them not: {', '.join(left_out)}"] if left_out else [])


def _describe_steps(source: Scan, fixture: Scan, config: SubsetConfig) -> list[str]:
    """What the cut itself did, in words."""
    steps = [f"kept {len(fixture)} of {len(source)} patterns, with all that belongs to each"]
    for name, factor, done in (
        ("crop", config.crop, "the central detector pixels are kept, and of probe and object the band they see"),
        ("bin", config.bin, "counts of neighbouring detector pixels are summed, and the probe is cut to its middle"),
    ):
        if factor > 1:
            steps.append(f"{name} {factor}: {done}")
    if config.crop * config.bin > 1:
        share = compute_probe_power(fixture.probe) / compute_probe_power(source.probe)
        steps.append(f"patterns {source.size} -> {fixture.size} pixels a side, with {share:.2%} of the probe's power")
    if strip_folders(source.metadata) != source.metadata:
        steps.append("folders of absolute paths are left out of the metadata")
    return steps


def _describe_subset(source: Scan, fixture: Scan, scale: PhotonScale, crop: int) -> dict[str, Any]:
    """What the fixture covers, how its patterns overlap, its photons, and a fingerprint of the indices."""
    indices = np.asarray(fixture.source_index, dtype="<i8")
    before, after = compute_overlap(source), compute_overlap(fixture)
    known = scale.origin != "assumed"
    return {
        "indices": {"count": len(indices), "sha256": hashlib.sha256(indices.tobytes()).hexdigest()},
        "coverage": compute_field_coverage(
            fixture.positions * crop, source.positions, (before["probe_diameter"] or 0.0) / 2
        ),
        "overlap": {"fixture": after, "source": before},
        "groups": {"gridsize": GRIDSIZE, "apart": len(fixture) // GROUP_SIZE, "with_overlap": len(fixture)},
        "photons": {
            "origin": scale.origin,
            "per_unit": scale.photons_per_unit if known else None,
            "per_pattern": photon_scale(fixture).photons_per_pattern if known else None,
        },
    }


def _describe_written_file(path: Path, name: str) -> dict[str, Any]:
    """What stands in the fixture just written to ``path``, called ``name``, and how far it keeps the contract."""
    arrays = read_arrays(path)
    found = contract.find_violations(arrays)
    shapes = {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in sorted(arrays.items())}
    valid = all(violation.level != "MUST" for violation in found)
    return {
        "fixture": {"name": name, "sha256": _compute_digest(path), "arrays": shapes},
        "contract": {"valid": valid, "violations": [violation._asdict() for violation in found]},
    }


def _compute_digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _make_sidecar_path(config: SubsetConfig) -> Path:
    for path, setting in ((config.output, "--output"), (config.metadata_out, "--metadata_out")):
        if path is not None and path.is_dir():
            raise DataError(f"{path}: this is a folder; give {setting} the name of a file")
    return config.metadata_out or config.output.with_suffix(".json")


def _check_distinct_paths(source: Path, output: Path, sidecar: Path) -> None:
    if _is_same_file(output, source):
        raise ConfigError(f"{output}: the output is the source itself; choose another --output")
    for other, what in ((output, "the fixture"), (source, "the source")):
        if _is_same_file(sidecar, other):
            raise ConfigError(f"{sidecar}: the record would replace {what}; choose another --metadata_out")


def _is_same_file(first: Path, second: Path) -> bool:
    """Whether two paths are one file, by whatever links; also of files that are not there yet."""
    return first.resolve() == second.resolve() or (first.exists() and second.exists() and first.samefile(second))


@contextmanager
def _restore_on_failure(output: Path, sidecar: Path) -> Iterator[None]:
    """Make the folders of both files; on failure take them away again, and put back what ``output`` was before.

    Each file appears whole, but the second may fail to when the first has: then the first must go.
    """
    made: list[Path] = []
    earlier = _read_bytes(output)
    done = False
    try:
        for path, setting in ((output, "--output"), (sidecar, "--metadata_out")):
            _make_folder(path.parent, setting, made)
        yield
        done = True
    finally:
        if not done:
            _restore_file(output, earlier)
            for folder in reversed(made):
                with suppress(OSError):  # someone else may have put a file there
                    folder.rmdir()


def _read_bytes(path: Path) -> bytes | None:
    """What stands in the file at ``path``; None where there is none."""
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:
        raise DataError(f"{path}: cannot be replaced ({error.strerror}); choose another --output") from error


def _restore_file(path: Path, content: bytes | None) -> None:
    if _read_bytes(path) == content:
        return
    if content is None:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temp_path:
        temp_path.write_bytes(content)


def _make_folder(folder: Path, setting: str, made: list[Path]) -> None:
    """Make ``folder`` with its parents, each noted in ``made``."""
    try:
        for level in reversed([folder, *folder.parents]):
            if not level.exists():
                level.mkdir()
                made.append(level)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be made ({error.strerror}); choose another {setting}") from error
