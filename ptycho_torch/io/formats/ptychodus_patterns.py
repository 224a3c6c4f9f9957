"""Diffraction files of Ptychodus (``diffraction.h5``, ``diffraction.npz``): counts by frame number."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.export import write_hdf5
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.members import list_members, read_bad_pixels, read_member, read_vector
from ptycho_torch.io.parts import InputReport, ScanParts


class PtychodusPatternsFormat(Format):
    """Diffraction files of Ptychodus, with the product beside them."""

    name = "ptychodus_diffraction"
    title = "Ptychodus diffraction file (.h5, .npz), with its product"

    def matches(self, file: InputFile) -> bool:
        names = list_members(file)
        return "indexes" in names and not names.isdisjoint({"patterns", "bad_pixels"})

    def list_partners(self, path: Path) -> Sequence[Path]:
        return list_diffraction_files(path)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        report = InputReport(self.name)
        names = list_members(file)
        patterns = read_member(file, "patterns", kinds="biuf", ndim=3)
        report.add("patterns", "patterns", "counts")
        numbers = read_member(file, "indexes", kinds="iu", ndim=1).astype(np.int64)
        if len(numbers) != len(patterns):
            raise DataError(f"{file.path}: indexes has {len(numbers)} values for {len(patterns)} patterns")
        mask = None
        if "bad_pixels" in names:
            mask = read_bad_pixels(file, patterns.shape[1:])
            report.add("mask", "bad_pixels", "", "True is bad: inverted")
        else:
            report.assumptions.append("the file has no bad_pixels: all pixels count")
        photons = read_vector(file, "probe_photon_counts", len(patterns)) if "probe_photon_counts" in names else None
        return ScanParts(
            patterns=patterns,
            pattern_numbers=numbers,
            mask=None if mask is None or mask.all() else mask,
            intensities=None if photons is None or not (photons > 0).all() else photons,
            geometry=_read_detector_pixel(file, report),
            report=report,
        )


def list_diffraction_files(path: Path) -> list[Path]:
    """Return the paths of the other file of a product or of a diffraction file.

    ``product.h5`` and its checkpoints ``product.000010.h5`` belong to ``diffraction.h5``; ``NAME.h5`` belongs to
    ``NAME_diffraction.h5``.
    """
    stem = re.sub(r"\.\d+$", "", path.stem)
    if "product" in stem:
        others = [stem.replace("product", "diffraction")]
    elif stem.endswith("_diffraction"):
        others = [stem.removesuffix("_diffraction"), stem.replace("diffraction", "product")]
    elif "diffraction" in stem:
        others = [stem.replace("diffraction", "product")]
    else:
        others = [f"{stem}_diffraction"]
    suffixes = dict.fromkeys((path.suffix, ".h5", ".hdf5", ".npz"))
    return [path.with_name(other + suffix) for other in others for suffix in suffixes]


def write_patterns(path: Path, photons: NDArray[Any], mask: NDArray[np.bool_] | None, geometry: Geometry) -> None:
    """Write a diffraction file.

    Args:
        path: file to write.
        photons: (n, N, N).
        mask: (N, N) or (n, N, N), True where a pixel counts; a pixel that is masked in any pattern is bad.
        geometry: geometry with the detector pixel.

    Raises:
        DataError: the file cannot be written.
    """
    counting = np.broadcast_to(True if mask is None else mask, photons.shape).all(0)
    sides = {}
    if geometry.detector_pixel_m is not None:
        names = ("detector_pixel_height_m", "detector_pixel_width_m")
        sides = dict(zip(names, geometry.detector_pixel_m, strict=True))
    with write_hdf5(path) as writer:
        writer.put("indexes", np.arange(len(photons)))
        writer.put("patterns", photons, sides)
        writer.put("bad_pixels", ~counting)


def _read_detector_pixel(file: InputFile, report: InputReport) -> Geometry:
    if file.hdf5 is None:
        return Geometry()
    attributes = file.hdf5.get_attributes("/patterns")
    sides = [attributes.get(f"detector_pixel_{side}_m") for side in ("height", "width")]
    if any(not isinstance(side, np.ndarray) or side.size != 1 or side.dtype.kind not in "iuf" for side in sides):
        return Geometry()
    values = [float(np.asarray(side).reshape(-1)[0]) for side in sides]
    if not all(np.isfinite(value) and value > 0 for value in values):
        report.assumptions.append(f"patterns: the detector pixel {values} m is unknown")
        return Geometry()
    report.add("detector pixel", "patterns: detector_pixel_height_m, detector_pixel_width_m", "m")
    return Geometry(detector_pixel_m=(values[0], values[1]))
