"""A probe from a file: that of a scan, or the one that a reconstruction ended with."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.npz import read_arrays


class ProbeFile(NamedTuple):
    """What a file says of its probe."""

    modes: NDArray[np.complex64]
    """(M, N, N)."""

    scan_digest: str
    """Fingerprint of the scan that it was found from; empty where the file is no reconstruction."""

    photons_per_unit: float
    """Photons for one squared unit of that scan's amplitude: the modes are in √photons. 1 where that is not known."""


def read_probe(path: Path, size: int, flag: str) -> ProbeFile:
    """The probe in ``path``: ``probe`` of a reconstruction.npz, else ``probeGuess`` of a scan file.

    Args:
        path: NPZ file.
        size: N, the side of the patterns that it is to light.
        flag: the flag that named the file, for errors.

    Raises:
        DataError: the file cannot be read, or holds no finite probe of ``size`` × ``size`` pixels.
    """
    arrays = read_arrays(path, ("probe", "probeGuess", "metadata"))
    key = next((key for key in ("probe", "probeGuess") if key in arrays), None)
    if key is None:
        found = ", ".join(sorted(read_arrays(path))) or "nothing"
        raise DataError(f"{path}: no probe in it (found {found}); check {flag}")
    modes = arrays[key]
    modes = modes.reshape(-1, *modes.shape[-2:]).astype(np.complex64) if modes.ndim >= 2 else modes
    if modes.shape[1:] != (size, size) or not np.isfinite(modes).all() or not modes.any():
        raise DataError(
            f"{path}: its probe is {arrays[key].shape}, expected finite modes of {size} × {size} pixels "
            f"like the patterns; check {flag}"
        )
    digest, photons = "", 1.0
    if key == "probe" and "metadata" in arrays:
        try:
            extra = json.loads(str(arrays["metadata"]))
            digest, photons = str(extra["metadata"].get("scan_digest", "")), float(extra["photons_per_unit"])
        except (AttributeError, KeyError, TypeError, ValueError):
            digest, photons = "", 1.0  # another program's: its power is not known
    return ProbeFile(modes, digest, photons)


def read_probe_size(path: Path, flag: str) -> int:
    """N of the probe in ``path``.

    Raises:
        DataError: the file cannot be read, or holds no probe.
    """
    arrays = read_arrays(path, ("probe", "probeGuess"))
    for key in ("probe", "probeGuess"):
        if key in arrays and arrays[key].ndim >= 2:
            return int(arrays[key].shape[-1])
    raise DataError(f"{path}: no probe in it; check {flag}")
