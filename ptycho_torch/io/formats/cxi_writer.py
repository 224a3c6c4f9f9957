"""Write CXI files, plain and with the classes and units of NeXus."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.geometry import ELEMENTARY_CHARGE_C, Geometry
from ptycho_torch.io.export import Hdf5Writer, require_photon_energy
from ptycho_torch.io.formats.ptychodus_product import compute_centered_origin

CXI_VERSION = 160
ENTRY = "/entry_1"
DETECTOR = f"{ENTRY}/instrument_1/detector_1"
SOURCE = f"{ENTRY}/instrument_1/source_1"
TRANSLATION = f"{ENTRY}/sample_1/geometry_1/translation"
BAD_PIXEL = 1
"""Bit of the mask of an invalid pixel."""

NEXUS_CLASSES = {
    ENTRY: "NXentry",
    f"{ENTRY}/instrument_1": "NXinstrument",
    DETECTOR: "NXdetector",
    SOURCE: "NXsource",
    f"{ENTRY}/instrument_1/beam_1": "NXbeam",
    f"{ENTRY}/data_1": "NXcollection",
    f"{ENTRY}/sample_1": "NXsample",
    f"{ENTRY}/sample_1/geometry_1": "NXcollection",
}


@dataclass(frozen=True, kw_only=True)
class CxiContent:
    """The content of a CXI file: a scan, or a result without patterns."""

    positions: NDArray[np.float64]
    """(n, 2) in pixels of ``object``."""

    size: int
    """N, side of a pattern in pixels."""

    geometry: Geometry
    """Complete geometry."""

    position_numbers: NDArray[np.int64] | None = None
    """(n,) number of the pattern of each position; None: 0, 1, …"""

    patterns: NDArray[Any] | None = None
    """(n, N, N) photons."""

    mask: NDArray[np.bool_] | None = None
    probe: NDArray[np.complex64] | None = None
    object: NDArray[np.complex64] | None = None


def write_cxi(writer: Hdf5Writer, content: CxiContent, name: str, *, nexus: bool = False) -> None:
    """Write a scan or a result.

    Args:
        writer: the file.
        content: scan or result.
        name: the file, for errors.
        nexus: add the classes and units of NXptycho.

    Raises:
        DataError: the radiation is electrons, or the photon energy is unknown.
    """
    import h5py

    energy_ev = require_photon_energy(content.geometry, name)
    writer.put("/cxi_version", CXI_VERSION)
    writer.put("/number_of_entries", 1)
    writer.put(f"{ENTRY}/title", "ptycho_torch")
    writer.put(f"{SOURCE}/energy", energy_ev * ELEMENTARY_CHARGE_C, {"units": "J"})
    writer.put(f"{SOURCE}/wavelength", content.geometry.wavelength_m, {"units": "m"})
    _write_detector(writer, content)
    _write_positions(writer, content)
    _write_images(writer, content)
    writer.handle.require_group(f"{ENTRY}/data_1")
    if content.patterns is not None:
        writer.handle[f"{ENTRY}/data_1/data"] = h5py.SoftLink(f"{DETECTOR}/data")
        writer.handle[f"{DETECTOR}/translation"] = h5py.SoftLink(TRANSLATION)
    writer.handle[f"{ENTRY}/data_1/translation"] = h5py.SoftLink(TRANSLATION)
    if nexus:
        writer.put(f"{ENTRY}/definition", "NXptycho")
        writer.put(f"{ENTRY}/instrument_1/beam_1/incident_beam_energy", energy_ev, {"units": "eV"})
        for path, label in NEXUS_CLASSES.items():
            writer.set_attributes(path, NX_class=label)


def _write_detector(writer: Hdf5Writer, content: CxiContent) -> None:
    geometry = content.geometry
    assert geometry.detector_pixel_m is not None  # complete
    y, x = geometry.detector_pixel_m
    writer.put(f"{DETECTOR}/distance", geometry.distance_m, {"units": "m"})
    writer.put(f"{DETECTOR}/x_pixel_size", x, {"units": "m"})
    writer.put(f"{DETECTOR}/y_pixel_size", y, {"units": "m"})
    writer.put(f"{DETECTOR}/basis_vectors", np.array([[0.0, -y, 0.0], [-x, 0.0, 0.0]]))
    if content.patterns is not None:
        writer.put(f"{DETECTOR}/data", content.patterns)
    if content.mask is not None:
        writer.put(f"{DETECTOR}/mask", np.where(content.mask, 0, BAD_PIXEL).astype(np.uint32))


def _write_positions(writer: Hdf5Writer, content: CxiContent) -> None:
    """Write the positions from the middle of the object, whose row and column steps are -y and -x of the laboratory.

    The sample moves against the probe, so both signs cancel.
    """
    pixel = content.geometry.object_pixel_m
    assert pixel is not None  # complete
    origin = np.zeros(2)
    if content.object is not None:
        shape = content.object.shape
        origin = np.asarray(compute_centered_origin(shape, content.size, pixel))
        for side, value in (("height", pixel[0]), ("width", pixel[1])):
            writer.put(f"{ENTRY}/ptychodus/object_pixel_{side}_m", value)
            writer.put(f"{ENTRY}/ptychodus/probe_pixel_{side}_m", value)
        writer.put(f"{ENTRY}/ptychodus/object_center_x_m", 0.0)
        writer.put(f"{ENTRY}/ptychodus/object_center_y_m", 0.0)
    row, column = (content.positions * np.asarray(pixel) + origin).T
    attributes = {"units": "m", "axes": "translation:x:y:z"}
    writer.put(TRANSLATION, np.stack([column, row, np.zeros_like(row)], 1), attributes)
    writer.put(f"{ENTRY}/sample_1/name", "sample")
    numbers = np.arange(len(row)) if content.position_numbers is None else content.position_numbers
    writer.put(f"{ENTRY}/ptychodus/probe_position_indexes", numbers)


def _write_images(writer: Hdf5Writer, content: CxiContent) -> None:
    import h5py

    images = (
        (1, content.probe, "coherent:incoherent:y:x", "amplitude"),
        (2, content.object, "layer:y:x", "electron density"),
    )
    for number, image, axes, kind in images:
        if image is not None:
            path = f"{ENTRY}/image_{number}"
            writer.put(f"{path}/data", image[None].astype(np.complex64), {"axes": axes})
            writer.put(f"{path}/data_type", kind)
            writer.put(f"{path}/data_space", "real")
    if content.probe is not None:
        writer.handle[f"{SOURCE}/illumination"] = h5py.SoftLink(f"{ENTRY}/image_1/data")
