"""NeXus files of ptychography: NXptycho and NXcxi_ptycho, with the paths of CXI or with those of an area detector."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.cxi import CxiWriter
from ptycho_torch.io.formats.cxi_layout import read_center, read_cxi, read_length, read_patterns, read_wavelength
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts
from ptycho_torch.io.units import UNIT_FACTORS

DEFINITIONS = ("NXptycho", "NXcxi_ptycho")

AXIS_WORDS = (
    (("y", "vertical", "vert", "row", "slow"), (0.0, 1.0, 0.0)),
    (("x", "horizontal", "hor", "column"), (1.0, 0.0, 0.0)),
)
"""Words in the name of a positioner, with the direction of its axis: x to the left seen downstream, y up."""


class NexusFormat(CxiWriter):
    """NXptycho and NXcxi_ptycho."""

    name = "nexus"
    title = "NeXus NXptycho and NXcxi_ptycho (.nxs): NX-cxi-ptycho, ALS, APS, Diamond"
    scan_suffixes = (".nxs",)
    result_suffixes = (".nxs",)
    nexus = True

    def matches(self, file: InputFile) -> bool:
        return file.hdf5 is not None and _find_entry(file.hdf5) is not None

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree = file.tree
        entry = _find_entry(tree) or "/entry_1"
        if tree.is_group(f"{entry}/instrument"):
            return _read_entry(tree, entry, settings)
        return read_cxi(tree, settings, self.name)


def _find_entry(tree: Hdf5File) -> str | None:
    """Return the path of the first entry of NXptycho; None if there is none."""
    for entry in tree.list_groups("/"):
        definition = f"{entry}/definition"
        is_text = tree.is_dataset(definition) and tree.get_dtype(definition).kind in "OSU"
        if is_text and tree.read_text(definition).strip() in DEFINITIONS:
            return entry
        is_cxi = tree.is_group(f"{entry}/instrument_1") or tree.is_group(f"{entry}/data_1")
        if entry == "/entry_1" and is_cxi and tree.get_text_attribute(entry, "NX_class") == "NXentry":
            return entry
    return None


def _read_entry(tree: Hdf5File, entry: str, settings: InputSettings) -> ScanParts:
    """Read the layout with ``instrument/detector`` and ``sample/positioner_k``."""
    report = InputReport(NexusFormat.name)
    detector, beam = f"{entry}/instrument/detector", f"{entry}/instrument/beam"
    parts: dict[str, Any] = read_patterns(tree, (f"{detector}/data", f"{entry}/data/data"), report)
    energies = (f"{beam}/incident_beam_energy", f"{beam}/energy", f"{entry}/instrument/source/energy")
    sides = [read_length(tree, (f"{detector}/{axis}_pixel_size",), f"detector pixel {axis}", report) for axis in "yx"]
    y, x = sides[0] or sides[1], sides[1] or sides[0]
    center = read_center(tree, [f"{detector}/beam_center_{axis}" for axis in "yx"], report)
    if center is not None:
        parts["center"] = center
    for path in (f"{detector}/pixel_mask", f"{detector}/mask"):
        if "mask" not in parts and tree.has(path):
            parts["mask"] = tree.read(path, kinds="biu", ndim=(2, 3)) == 0
            report.add("mask", path, "bits", "0 counts")
    parts["positions"] = _read_positioners(tree, f"{entry}/sample", report)
    return ScanParts(
        **parts,
        geometry=Geometry(
            wavelength_m=read_wavelength(tree, settings, f"{beam}/wavelength", energies, report),
            distance_m=read_length(tree, (f"{detector}/distance",), "distance", report),
            detector_pixel_m=None if y is None or x is None else (y, x),
        ),
        report=report,
    )


def _read_positioners(tree: Hdf5File, sample: str, report: InputReport) -> NDArray[np.float64] | None:
    """Return the positions of the probe in meters from the read-back values of two positioners of the sample.

    Rows step along -y and columns along -x of the laboratory, and the probe moves against the sample: both signs
    cancel.
    """
    paths = [f"{sample}/positioner_{number}" for number in (1, 2)]
    values = [tree.find(f"{path}/raw_value", f"{path}/value", f"{path}/target_value") for path in paths]
    translation: NDArray[np.float64] | None = None
    for number, (path, value) in enumerate(zip(paths, values, strict=True)):
        if value is None:
            report.missing.append(f"positions: expected at {path}/raw_value; set `positions_file`")
            return None
        numbers = tree.read(value, kinds="iuf", ndim=(1, 2)).astype(np.float64).reshape(-1)
        unit = tree.get_unit(value, "m")
        axis = _find_axis(tree, path, value, number, report)
        moved = numbers[:, None] * UNIT_FACTORS[unit.lower()] * axis
        if translation is not None and len(moved) != len(translation):
            raise DataError(f"{tree.path}: {value} has {len(moved)} values; expected {len(translation)}, as the other")
        translation = moved if translation is None else translation + moved
        report.add("positions", value, unit, f"translation of the sample along {axis.tolist()}")
    assert translation is not None  # two paths
    return translation[:, [1, 0]]


def _find_axis(tree: Hdf5File, path: str, value: str, number: int, report: InputReport) -> NDArray[np.float64]:
    """Return the direction of a positioner, from its vector, from its name, or from its number."""
    vector = tree.get_attributes(value).get("vector")
    if isinstance(vector, np.ndarray) and vector.shape == (3,) and np.linalg.norm(vector) > 0:
        return np.asarray(vector / np.linalg.norm(vector), np.float64)
    name = tree.read_text(f"{path}/name").lower() if tree.has(f"{path}/name") else ""
    for words, axis in AXIS_WORDS:
        if (
            name in words
            or any(name.endswith(f"{mark}{word}") for word in words for mark in "_- .")
            or (name and name[-1] == words[0])
        ):
            return np.array(axis)
    report.assumptions.append(f"{path} moves the sample along {'x' if number == 0 else 'y'}: its name is {name!r}")
    return np.array(AXIS_WORDS[1 - number][1])
