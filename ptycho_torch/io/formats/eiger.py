"""Master files of Eiger detectors, whose frames are in files beside them."""

from typing import Any

import numpy as np

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.cxi_layout import read_center, read_length, read_wavelength
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts
from ptycho_torch.io.size_limits import check_array_size

DATA = "/entry/data"
DETECTOR = "/entry/instrument/detector"
BEAM = "/entry/instrument/beam"
MASK_PATHS = (f"{DETECTOR}/detectorSpecific/pixel_mask", f"{DETECTOR}/pixel_mask")


class EigerFormat(Format):
    """Eiger master files, read through links relative to the folder of the file."""

    name = "eiger"
    title = "Eiger master file (.h5) with its data files"

    def matches(self, file: InputFile) -> bool:
        return file.hdf5 is not None and bool(_list_stacks(file.hdf5))

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        parts = _read_frames(tree, report)
        path = tree.find(*MASK_PATHS)
        if path is not None:
            parts["mask"] = tree.read(path, kinds="biu", ndim=2) == 0
            report.add("mask", path, "bits", "0 counts")
        center = read_center(tree, [f"{DETECTOR}/beam_center_{axis}" for axis in "yx"], report)
        if center is not None:
            parts["center"] = center
        sides = [
            read_length(tree, (f"{DETECTOR}/{axis}_pixel_size",), f"detector pixel {axis}", report) for axis in "yx"
        ]
        y, x = sides[0] or sides[1], sides[1] or sides[0]
        energy = (f"{DETECTOR}/detectorSpecific/photon_energy", f"{BEAM}/incident_energy")
        wavelength = read_wavelength(tree, settings, "", energy, report, "eV")
        if wavelength is None and not (settings.energy_ev or settings.wavelength):
            wavelength = read_length(tree, (f"{BEAM}/incident_wavelength",), "wavelength", report, "angstrom")
        distance = read_length(tree, (f"{DETECTOR}/detector_distance", f"{DETECTOR}/distance"), "distance", report)
        report.missing.append("positions: set `positions_file`, which may be a table")
        return ScanParts(
            **parts,
            geometry=Geometry(
                wavelength_m=wavelength,
                distance_m=distance,
                detector_pixel_m=None if y is None or x is None else (y, x),
            ),
            report=report,
        )


def _list_stacks(tree: Hdf5File) -> list[str]:
    """Return the names ``data_000001``, … of the stacks of frames in the order of their numbers."""
    names = [name for name in tree.list_members(DATA) if name.startswith("data_") and name[5:].isdecimal()]
    return sorted(names, key=lambda name: int(name[5:]))


def _read_frames(tree: Hdf5File, report: InputReport) -> dict[str, Any]:
    """Read all stacks of frames."""
    paths = [f"{DATA}/{name}" for name in _list_stacks(tree)]
    if not paths:
        raise DataError(f"{tree.path}: {DATA} holds no data_000001; expected links to the data files")
    shapes = [tree.get_shape(path) for path in paths]
    for path, shape in zip(paths, shapes, strict=True):
        if len(shape) != 3 or shape[1:] != shapes[0][1:]:
            raise DataError(f"{tree.path}: {path} has shape {shape}; expected (n, rows, columns) of one detector")
    total = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    check_array_size(f"{tree.path}: {DATA}", total, tree.get_dtype(paths[0]))
    frames = np.concatenate([tree.read(path, kinds="biuf", ndim=3) for path in paths])
    report.add("patterns", f"{paths[0]} to {paths[-1]}" if len(paths) > 1 else paths[0], "counts")
    return {"patterns": frames, "pattern_numbers": np.arange(len(frames))}
