"""Profile of a scan file of any supported format, read from disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings, make_input_settings
from ptycho_torch.core.errors import ContractError, PtychoError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.layout import ArrayHeader
from ptycho_torch.data.profile import Profile, make_profile
from ptycho_torch.data.scan import Scan, scan_to_arrays
from ptycho_torch.io.assemble import assemble_scan
from ptycho_torch.io.container import InputFile, open_input
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.parts import ScanParts
from ptycho_torch.io.scan import is_read_directly, read_parts


def profile_scan_file(path: str | Path, *, stats: bool = True, **settings: Any) -> Profile:
    """Return the profile of the scan file at ``path``, which may break the contract.

    Args:
        path: scan file of any supported format.
        stats: read the arrays and compute statistics; otherwise read headers and metadata only, of a file of the
            contract.
        **settings: settings of reading, as of :func:`~ptycho_torch.io.scan.load_scan`.

    Raises:
        ConfigError: a setting is unknown.
        DataError: the file cannot be read.
    """
    path, options = Path(path), make_input_settings(settings)
    with open_input(path) as file:
        if is_read_directly(file, options):
            return _profile_contract_file(file, stats, options)
        parts = read_parts(file, options)
    try:
        scan = assemble_scan(parts, options, path)
    except PtychoError as error:
        return _profile_incomplete(path, parts, error)
    profile = make_profile(path.name, _make_headers(scan), _make_arrays(scan), stats=stats)
    return replace(profile, input=parts.report.to_dict())


def _profile_contract_file(file: InputFile, stats: bool, options: InputSettings) -> Profile:
    path, headers = file.path, file.npz_headers
    plain = [key for key, header in headers.items() if not header.dtype.hasobject]
    loaded = read_arrays(path, plain if stats else [key for key in plain if key in ("metadata", "_metadata")])
    return make_profile(
        path.name, headers, loaded, stats=stats, axis_order=options.axis_order, measurement=options.measurement
    )


def _make_arrays(scan: Scan) -> dict[str, NDArray[Any]]:
    """Return the arrays of a canonical file of the scan, with the metadata that declare its layout."""
    declared: dict[str, Any] = scan.metadata | {"axis_order": "nhw", "measurement": "amplitude"}
    if scan.photons_per_unit is not None:
        declared["photons_per_unit"] = scan.photons_per_unit
    if scan.geometry is not None:
        declared["geometry"] = scan.geometry.to_dict()
    return scan_to_arrays(scan) | {"metadata": np.array(json.dumps(declared, default=str))}


def _make_headers(scan: Scan) -> dict[str, ArrayHeader]:
    return {key: ArrayHeader(array.shape, array.dtype, False) for key, array in _make_arrays(scan).items()}


def _profile_incomplete(path: Path, parts: ScanParts, error: PtychoError) -> Profile:
    """Return the profile of a file that cannot become a scan without further settings."""
    names = ("patterns", "positions", "probe", "object", "mask")
    arrays = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype)}
        for name, value in ((name, getattr(parts, name)) for name in names)
        if value is not None
    }
    missing = [each for each in parts.report.missing if each.partition(":")[0] not in arrays]
    rule = error.rule if isinstance(error, ContractError) else ""
    message = str(error).removeprefix(f"{path}: ")
    return Profile(
        file=path.name,
        arrays=arrays,
        axis_order={"order": "nhw", "reason": f"the format {parts.report.format}"},
        measurement={"kind": parts.measurement, "reason": f"the format {parts.report.format}"},
        photons=None,
        geometry=None,
        object=None,
        metadata=parts.metadata,
        violations=[{"rule": rule, "level": "MUST", "message": message}],
        input=parts.report.to_dict() | {"missing": missing},
        geometry_m=None if parts.geometry == Geometry() else parts.geometry.to_dict(),
    )
