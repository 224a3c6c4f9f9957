"""Conversion of scans and results to the quantities that files of other programs hold."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.files import atomic_write
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.lattice import RELATIVE_ROUNDING_ERROR
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.hdf5 import Hdf5File

COMPRESSED_BYTES = 1 << 12
"""Smallest array that is compressed."""

GEOMETRY_SETTINGS = {
    "wavelength_m": "the wavelength (`energy_ev`, `voltage_kv` or `wavelength`)",
    "distance_m": "the distance (`distance`)",
    "detector_pixel_m": "the detector pixel (`detector_pixel`)",
    "object_pixel_m": "the object pixel (`pixel_size`)",
}
"""Quantities of a geometry, with the settings that give them."""

ORIGIN_ATTRIBUTE = "ptycho_torch_origin_yx"
"""Attribute of the root of a result: ``origin_yx``, which the formats of other programs have no place for."""


def compute_photons(scan: Scan) -> NDArray[Any]:
    """Return the photons of every pattern: integers where all are whole numbers within rounding, otherwise float32.

    Masked pixels whose amplitude is not finite are 0.

    Args:
        scan: the scan; an unknown photon scale is estimated.

    Returns:
        (n, N, N), zero frequency at [N//2, N//2].
    """
    photons = np.square(scan.amplitudes, dtype=np.float64) * photon_scale(scan).photons_per_unit
    photons[~np.isfinite(photons)] = 0
    whole = np.rint(photons)
    if (np.abs(photons - whole) <= 2 * RELATIVE_ROUNDING_ERROR * (photons + 1)).all() and whole.max() < 1 << 32:
        return whole.astype(np.uint16 if whole.max() < 1 << 16 else np.uint32)
    return photons.astype(np.float32)


def solve_geometry(geometry: Geometry | None, size: int, name: str) -> Geometry:
    """Return the geometry with its one unknown quantity computed from the others.

    Args:
        geometry: wavelength, distance, detector pixel and object pixel, of which one may be unknown.
        size: N, side of a pattern in pixels.
        name: file to write, for errors.

    Raises:
        DataError: two or more of the quantities are unknown.
    """
    known = geometry or Geometry()
    missing = [each for each in GEOMETRY_SETTINGS if getattr(known, each) is None]
    if len(missing) > 1:
        raise DataError(
            f"{name}: {', '.join(GEOMETRY_SETTINGS[each] for each in missing)} unknown; expected all but one of them "
            "for this format; set them"
        )
    wavelength, distance = known.wavelength_m, known.distance_m
    detector, pixel = known.detector_pixel_m, known.object_pixel_m
    if pixel is None:
        return known.complete(size)
    if detector is None and wavelength is not None and distance is not None:
        product = wavelength * distance / size
        return replace(known, detector_pixel_m=(product / pixel[0], product / pixel[1]))
    if detector is not None and distance is None and wavelength is not None:
        return replace(known, distance_m=size * detector[0] * pixel[0] / wavelength)
    if detector is not None and distance is not None and wavelength is None:
        return replace(known, wavelength_m=size * detector[0] * pixel[0] / distance)
    return known


def require_object_pixel(geometry: Geometry | None, size: int, name: str) -> tuple[float, float]:
    """Return the sides (y, x) of an object pixel in meters.

    Args:
        geometry: geometry of the scan or result.
        size: N, side of a pattern in pixels.
        name: file to write, for errors.

    Raises:
        DataError: the object pixel is unknown.
    """
    pixel = (geometry or Geometry()).complete(size).object_pixel_m
    if pixel is None:
        raise DataError(
            f"{name}: the object pixel is unknown, and this format holds positions in meters; set `pixel_size`, or "
            "`energy_ev`, `distance` and `detector_pixel`"
        )
    return pixel


def require_photon_energy(geometry: Geometry, name: str) -> float:
    """Return the photon energy in electronvolts.

    Args:
        geometry: geometry of the scan or result.
        name: file to write, for errors.

    Raises:
        DataError: the radiation is electrons, or the energy is unknown.
    """
    if geometry.radiation == "electron":
        raise DataError(f"{name}: the patterns are of electrons; expected photons, which this format describes")
    if geometry.energy_ev is None:
        raise DataError(f"{name}: the photon energy is unknown; expected a known one; set `energy_ev` or `wavelength`")
    return geometry.energy_ev


def compute_result_positions(result: Reconstruction) -> NDArray[np.float64]:
    """Return the positions (n, 2) of a result in pixels of its object array, whose first pixel is (0, 0)."""
    positions: NDArray[np.float64] = np.asarray(result.positions, np.float64) - np.asarray(result.origin_yx)
    return positions


def get_position_numbers(result: Reconstruction) -> NDArray[np.int64]:
    """Return the number (n,) of each position among the patterns of the file that was reconstructed."""
    count = len(result.positions)
    for key in ("source_index", "indices"):
        values = result.metadata.get(key)
        if isinstance(values, list) and len(values) == count:
            return np.asarray(values, np.int64)
    return np.arange(count)


def make_object_canvas(scan: Scan) -> tuple[NDArray[np.complex64], NDArray[np.int64]]:
    """Return the object of a scan and the pixel (row, column) of its first element.

    A scan without object gets one of ones that covers all patches.
    """
    if scan.truth is not None:
        return scan.truth, np.zeros(2, np.int64)
    origin = np.floor(scan.positions.min(0)).astype(np.int64) - scan.size // 2 - 1
    end = np.ceil(scan.positions.max(0)).astype(np.int64) + (scan.size + 1) // 2 + 1
    return np.ones(tuple(end - origin), np.complex64), origin


class Hdf5Writer:
    """An HDF5 file to write, whose bytes depend on its content alone."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def put(self, path: str, value: Any, attributes: Mapping[str, Any] | None = None) -> None:
        """Write a dataset: a number, a text or an array, with attributes; large arrays are compressed.

        Args:
            path: path of the dataset; missing groups are created.
            value: its value.
            attributes: attributes by name.
        """
        options: dict[str, Any] = {}
        shape = np.shape(value)
        if isinstance(value, np.ndarray) and value.nbytes >= COMPRESSED_BYTES and shape:
            options = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
            if len(shape) > 2:
                options["chunks"] = (*[1] * (len(shape) - 2), *shape[-2:])
        dataset = self.handle.create_dataset(path, data=value, track_times=False, **options)
        for key, entry in (attributes or {}).items():
            dataset.attrs[key] = entry

    def set_attributes(self, path: str, **attributes: Any) -> None:
        """Set attributes of a group, which is created if it is missing."""
        group = self.handle.require_group(path)
        for key, value in attributes.items():
            group.attrs[key] = value


def put_result_origin(writer: Hdf5Writer, result: Reconstruction) -> None:
    """Store ``origin_yx`` of a result as an attribute of the root, which other programs ignore."""
    writer.set_attributes("/", **{ORIGIN_ATTRIBUTE: np.asarray(result.origin_yx, np.int64)})


def read_result_origin(tree: Hdf5File | None) -> dict[str, Any]:
    """Return the stored ``origin_yx`` of a result as an entry of metadata; empty if there is none.

    Raises:
        DataError: the attribute is not two integers.
    """
    value = None if tree is None else tree.get_attributes("/").get(ORIGIN_ATTRIBUTE)
    if tree is None or value is None:
        return {}
    if not isinstance(value, np.ndarray) or value.shape != (2,) or value.dtype.kind not in "iu":
        raise DataError(f"{tree.path}: the attribute {ORIGIN_ATTRIBUTE} is {value!r}; expected two integers (y, x)")
    return {"origin_yx": value.tolist()}


@contextmanager
def write_hdf5(path: Path) -> Iterator[Hdf5Writer]:
    """Yield an HDF5 file to write; it appears at ``path`` whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    import h5py

    with atomic_write(path) as temp_path, h5py.File(temp_path, "w") as handle:
        yield Hdf5Writer(handle)
