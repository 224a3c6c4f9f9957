"""Files of a subset: a small scan file and the JSON record of its origin.

Equal sources and settings give equal bytes: neither file holds a time or the name of a folder.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.core.files import atomic_write, write_json
from ptycho_torch.data.contract import find_violations
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.recommended_rules import CANONICAL_DTYPES
from ptycho_torch.data.subset import Strategy, describe_steps, describe_strategy, describe_subset, make_subset
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.parts import InputReport
from ptycho_torch.io.scan import read_input, save_scan

GENERATOR = "ptycho_torch.subset"
RECORD_SCHEMA = "ptycho_torch subset"
RECORD_VERSION = 1


def write_subset(
    source: Path,
    output: Path,
    *,
    metadata_out: Path | None = None,
    subset_size: int = 64,
    strategy: Strategy = "even",
    seed: int = 0,
    crop: int = 1,
    bin: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """Write a subset of the scan file ``source`` to ``output``, with a JSON record.

    Args:
        source: scan file of any supported format.
        output: canonical scan file to write.
        metadata_out: JSON file to write; None: ``output`` with the suffix ``.json``.
        subset_size: number of patterns.
        strategy: choice of the patterns; see :func:`~ptycho_torch.data.subset.select_positions`.
        seed: seed of the strategy ``seeded``.
        crop: factor by which the detector is cropped.
        bin: factor by which detector pixels are binned.
        **settings: settings of reading, as of :func:`~ptycho_torch.io.scan.load_scan`.

    Returns:
        The record.

    Raises:
        ConfigError: a setting is out of range for the source, or two of the files are the same.
        DataError: a file cannot be read or written; then no new file remains and existing files are unchanged.
        ContractError: the source breaks the contract.
    """
    sidecar = _make_sidecar_path(output, metadata_out)
    _check_distinct_paths(source, output, sidecar)
    scan, report = read_input(source, **settings)
    scale = photon_scale(scan, settings.get("photons_per_unit"))
    fixture = make_subset(
        scan,
        None if scale.origin == "assumed" else scale.photons_per_unit,
        subset_size=subset_size,
        strategy=strategy,
        seed=seed,
        crop=crop,
        bin=bin,
    )
    with (
        _restore_on_failure(output, sidecar),
        atomic_write(sidecar) as record_temp_path,
        atomic_write(output) as temp_path,
    ):
        save_scan(temp_path, fixture)
        conversions = _describe_conversions(source, report, settings)
        record = {
            "schema": RECORD_SCHEMA,
            "version": RECORD_VERSION,
            "generator": {"name": GENERATOR, "version": version("ptycho-torch")},
            "source": {"name": source.name, "sha256": _compute_digest(source), "patterns": len(scan)},
            "strategy": describe_strategy(strategy, subset_size, seed),
            "transformations": [*conversions, *describe_steps(scan, fixture, crop, bin)],
            **describe_subset(scan, fixture, scale, crop),
            **_describe_written_file(temp_path, output.name),
        }
        write_json(record_temp_path, record)
    return record


def _describe_conversions(source: Path, report: InputReport, settings: dict[str, Any]) -> list[str]:
    """Return the conversions of the reader, and the arrays that a canonical file does not hold."""
    if report.format != "npz":
        conversions = [f"{each.field}: {each.conversion}" for each in report.mapping if each.conversion]
        return [f"read as {report.format}", *conversions, *report.assumptions]
    arrays = read_arrays(source)
    violations = find_violations(arrays, settings.get("axis_order"), settings.get("measurement"))
    canonical_keys = {*CANONICAL_DTYPES, "mask", "scan_index", "source_index", "metadata", "_metadata"}
    left_out = sorted(set(arrays) - canonical_keys)
    conversions = [violation.message for violation in violations if violation.rule == "R22"]
    return conversions + ([f"left out, not keys of the contract: {', '.join(left_out)}"] if left_out else [])


def _describe_written_file(path: Path, name: str) -> dict[str, Any]:
    """Return arrays, digest and broken rules of the file just written to ``path``, recorded as ``name``."""
    arrays: dict[str, NDArray[np.generic]] = read_arrays(path)
    violations = find_violations(arrays)
    shapes = {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in sorted(arrays.items())}
    valid = all(violation.level != "MUST" for violation in violations)
    return {
        "fixture": {"name": name, "sha256": _compute_digest(path), "arrays": shapes},
        "contract": {"valid": valid, "violations": [violation._asdict() for violation in violations]},
    }


def _compute_digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _make_sidecar_path(output: Path, metadata_out: Path | None) -> Path:
    for path, setting in ((output, "output"), (metadata_out, "metadata_out")):
        if path is not None and path.is_dir():
            raise DataError(f"{path}: this is a folder; expected the name of a file; change `{setting}`")
    return metadata_out or output.with_suffix(".json")


def _check_distinct_paths(source: Path, output: Path, sidecar: Path) -> None:
    if _is_same_file(output, source):
        raise ConfigError(f"{output}: the output is the source itself; choose another `output`")
    for other, description in ((output, "the fixture"), (source, "the source")):
        if _is_same_file(sidecar, other):
            raise ConfigError(f"{sidecar}: the record would replace {description}; choose another `metadata_out`")


def _is_same_file(first: Path, second: Path) -> bool:
    """Return True if two paths name the same file, also through links and before the file exists."""
    return first.resolve() == second.resolve() or (first.exists() and second.exists() and first.samefile(second))


@contextmanager
def _restore_on_failure(output: Path, sidecar: Path) -> Iterator[None]:
    """Create the folders of both files; on failure remove them and restore the earlier content of ``output``.

    Each file appears whole, but writing the second may fail after the first; then the first must be undone.
    """
    created: list[Path] = []
    earlier = _read_bytes(output)
    done = False
    try:
        for path, setting in ((output, "output"), (sidecar, "metadata_out")):
            _make_folder(path.parent, setting, created)
        yield
        done = True
    finally:
        if not done:
            _restore_file(output, earlier)
            for folder in reversed(created):
                with suppress(OSError):  # another program may have written a file there
                    folder.rmdir()


def _read_bytes(path: Path) -> bytes | None:
    """Return the content of the file at ``path``; None if there is no file."""
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:
        raise DataError(f"{path}: cannot be replaced ({error.strerror}); choose another `output`") from error


def _restore_file(path: Path, content: bytes | None) -> None:
    if _read_bytes(path) == content:
        return
    if content is None:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temp_path:
        temp_path.write_bytes(content)


def _make_folder(folder: Path, setting: str, created: list[Path]) -> None:
    """Create ``folder`` with its parents and append each new folder to ``created``."""
    try:
        for level in reversed([folder, *folder.parents]):
            if not level.exists():
                level.mkdir()
                created.append(level)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be created ({error.strerror}); change `{setting}`") from error
