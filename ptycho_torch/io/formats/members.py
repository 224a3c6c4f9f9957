"""Arrays at the root of an HDF5 or NPZ file, by name: the programs of one family write both kinds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.npz import read_arrays


def list_members(file: InputFile) -> set[str]:
    """Return the names of the arrays at the root of a file; empty for other kinds of files."""
    if file.hdf5 is not None:
        return set(file.hdf5.list_members("/"))
    return set(file.npz_headers)


def read_member(file: InputFile, name: str, *, kinds: str, ndim: int | tuple[int, ...] | None = None) -> NDArray[Any]:
    """Read an array at the root of a file.

    Args:
        file: HDF5 or NPZ file.
        name: name of the array.
        kinds: accepted kinds of dtype.
        ndim: accepted number of axes; None: any.

    Raises:
        DataError: the array is missing, damaged, or of another kind or rank.
    """
    if file.hdf5 is not None:
        return file.hdf5.read(f"/{name}", kinds=kinds, ndim=ndim)
    headers = file.npz_headers
    if name not in headers:
        raise DataError(f"{file.path}: there is no {name} (found {', '.join(sorted(headers))}); expected an array")
    shape, dtype = headers[name].shape, headers[name].dtype
    if dtype.kind not in kinds:
        raise DataError(f"{file.path}: {name} is {dtype} of shape {shape}; expected another kind of numbers")
    if ndim is not None and len(shape) not in ((ndim,) if isinstance(ndim, int) else ndim):
        raise DataError(f"{file.path}: {name} has shape {shape}; expected {ndim} axes")
    array: NDArray[Any] = read_arrays(file.path, [name])[name]
    return array


def read_vector(file: InputFile, name: str, count: int | None = None) -> NDArray[np.float64]:
    """Read real numbers of one axis.

    Args:
        file: HDF5 or NPZ file.
        name: name of the array.
        count: required number of values; None: any.

    Raises:
        DataError: the array is missing, damaged, or of another shape.
    """
    values = read_member(file, name, kinds="biuf", ndim=1)
    if count is not None and len(values) != count:
        raise DataError(f"{file.path}: {name} has {len(values)} values; expected {count}")
    return values.astype(np.float64)


def read_scalar(file: InputFile, name: str) -> float:
    """Read one finite number.

    Raises:
        DataError: the array is missing, damaged, or not one finite number.
    """
    if file.hdf5 is not None:
        return file.hdf5.read_number(f"/{name}")
    values = read_member(file, name, kinds="biuf").reshape(-1)
    if values.size != 1 or not np.isfinite(values[0]):
        raise DataError(f"{file.path}: {name} is {values}; expected one finite number")
    return float(values[0])


def read_bad_pixels(file: InputFile, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Read ``bad_pixels``, True where a pixel does not count, as a mask that is True where it counts.

    Args:
        file: HDF5 or NPZ file.
        shape: (rows, columns) of a pattern.

    Raises:
        DataError: the array is damaged, of another shape, or holds values other than 0 and 1.
    """
    bad = read_member(file, "bad_pixels", kinds="biuf", ndim=2)
    if bad.shape != shape or not np.isin(bad, (0, 1)).all():
        raise DataError(f"{file.path}: bad_pixels is {bad.dtype} of shape {bad.shape}; expected 0 and 1 of {shape}")
    return ~bad.astype(bool)
