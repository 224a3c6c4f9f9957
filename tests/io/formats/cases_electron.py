"""Files of electron microscopes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from cases import COLUMNS, ROWS, STEP_PX, Case, Truth

ANGSTROM_M = 1e-10
PIXEL_GEOMETRY = ("wavelength_m", "object_pixel_m")
PATTERNS = {"patterns_file": Path("patterns.npy"), "measurement": "counts"}

XML = """<?xml version="1.0"?>
<root name="scan"><raw_file filename="C:\\data\\{name}" width="128" height="130"/>
<scan_parameters mode="search"><scan_resolution_x>9</scan_resolution_x></scan_parameters>
<scan_parameters mode="acquire"><scan_resolution_x>{columns}</scan_resolution_x>
<scan_resolution_y>{rows}</scan_resolution_y><scan_size>1</scan_size></scan_parameters>
<iom_measurements><scan_rotation>{rotation}</scan_rotation><high_voltage>200000</high_voltage>
<nominal_camera_length>0.3</nominal_camera_length>
<full_scan_field_of_view><x>{width}</x><y>{height}</y></full_scan_field_of_view></iom_measurements></root>"""
"""Metadata of an EMPAD."""


def write_emd(folder: Path, truth: Truth) -> Path:
    """Write EMD 1.0 with the steps of the axes."""
    path = folder / "scan.h5"
    steps = [(step * truth.pixel_m[0] / ANGSTROM_M, "A") for step in STEP_PX]
    steps += [(ANGSTROM_M / (truth.size * truth.pixel_m[0]), "A^-1")] * 2
    with h5py.File(path, "w") as file:
        file.attrs.update({"emd_group_type": "file", "version_major": 1, "version_minor": 0})
        group = file.create_group("datacube_root/datacube")
        group.attrs.update({"emd_group_type": "array", "python_class": "DataCube"})
        group["data"] = truth.counts.reshape(ROWS, COLUMNS, truth.size, truth.size).astype(np.float32)
        for axis, (step, unit) in enumerate(steps):
            group[f"dim{axis}"] = [0.0, step]
            group[f"dim{axis}"].attrs["units"] = unit
    return path


def write_empad(folder: Path, truth: Truth) -> Path:
    """Write the frames of an EMPAD, whose rows are reversed, and its XML; return the path of the XML."""
    frames = np.full((len(truth.counts), 130, 128), 7e7, "<f4")
    frames[:, :128] = truth.counts[:, ::-1]
    frames.tofile(folder / "acquisition.raw")
    fields = [step * truth.pixel_m[0] * max(ROWS, COLUMNS) for step in STEP_PX]
    text = XML.format(name="acquisition.raw", rows=ROWS, columns=COLUMNS, height=fields[0], width=fields[1], rotation=0)
    (folder / "acquisition.xml").write_text(text)
    return folder / "acquisition.xml"


def save_ptyrad(layout: int) -> Callable[[Path, Truth], Path]:
    """Return the writer of a result of PtyRAD, with its patterns beside it."""
    places = {
        1: ("optimizable_tensors/{}", "obja", "objp", "probe", "probe_pos_shifts", "model_attributes/{}"),
        2: ("components/{}", "object/tensors/amp", "object/tensors/phase", "probe/tensors/modes", "", "model_meta/{}"),
    }
    tensors, amplitude, phase, probe, shifts, model = places[layout]
    corners = model.format("crop_pos")
    if layout == 2:
        corners, shifts = "components/positions/tensors/crop_pos", "positions/tensors/shifts"

    def write(folder: Path, truth: Truth) -> Path:
        path = folder / "model_iter0100.hdf5"
        np.save(folder / "patterns.npy", truth.counts.astype(np.float32))
        first = np.floor(truth.positions).astype(np.int32) - truth.size // 2
        values: dict[str, Any] = {
            tensors.format(amplitude): np.abs(truth.object)[None, None],
            tensors.format(phase): np.angle(truth.object)[None, None],
            tensors.format(probe): truth.probe,
            tensors.format(shifts): truth.positions - np.floor(truth.positions),
            corners: first,
            model.format("dx"): truth.pixel_m[0] / ANGSTROM_M,
            model.format("lambd"): (truth.geometry.wavelength_m or 0) / ANGSTROM_M,
        }
        with h5py.File(path, "w") as file:
            for name, value in values.items():
                file[name] = value
        return path

    return write


def save_phaser(version: str) -> Callable[[Path, Truth], Path]:
    """Return the writer of a state of phaser, with its patterns beside it."""

    def write(folder: Path, truth: Truth) -> Path:
        path = folder / "iter100.h5"
        np.save(folder / "patterns.npy", truth.counts.astype(np.float32))
        sampling, corner = truth.pixel_m / ANGSTROM_M, np.array([-5.5, 7.25])
        # The first pixel of a window is (position − corner) / sampling − (N − 1)/2.
        positions = (truth.positions - truth.size // 2 + (truth.size - 1) / 2) * sampling + corner
        with h5py.File(path, "w") as file:
            file["type"], file["version"] = "phaser_state", version
            file["wavelength"] = (truth.geometry.wavelength_m or 0) / ANGSTROM_M
            file["probe/data"], file["probe/sampling"] = truth.probe, sampling
            file["object/data"], file["object/sampling"], file["object/corner"] = truth.object[None], sampling, corner
            file["scan" if version == "0.1" else "scan/data"] = positions.reshape(ROWS, COLUMNS, 2)
        return path

    return write


ELECTRON_CASES = [
    Case(
        "emd",
        write_emd,
        settings={"voltage_kv": 200.0},
        probe=False,
        object=False,
        mask=False,
        geometry=PIXEL_GEOMETRY,
        kind="raster",
        electrons=True,
        patterns_path="/datacube_root/datacube/data",
    ),
    Case(
        "empad",
        write_empad,
        settings={"pixel_size": 0.3e-10},
        probe=False,
        object=False,
        mask=2,
        geometry=PIXEL_GEOMETRY,
        kind="raster",
        electrons=True,
        sizes=(128,),
    ),
    Case(
        "ptyrad 1",
        save_ptyrad(1),
        settings=PATTERNS,
        mask=False,
        geometry=PIXEL_GEOMETRY,
        electrons=True,
        positions_path="/model_attributes/crop_pos",
    ),
    Case("ptyrad 2", save_ptyrad(2), settings=PATTERNS, mask=False, geometry=PIXEL_GEOMETRY, electrons=True),
    Case("phaser 0.1", save_phaser("0.1"), settings=PATTERNS, mask=False, geometry=PIXEL_GEOMETRY, electrons=True),
    Case(
        "phaser 0.2",
        save_phaser("0.2"),
        settings=PATTERNS,
        mask=False,
        geometry=PIXEL_GEOMETRY,
        electrons=True,
        positions_path="/scan/data",
    ),
]
