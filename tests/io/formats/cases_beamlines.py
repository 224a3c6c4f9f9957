"""The scan in CXI, NeXus, Eiger and beamline files."""

from pathlib import Path

import h5py
import numpy as np
from cases import Case, Truth, save_as


def write_cxi_by_specification(folder: Path, truth: Truth) -> Path:
    """Write the frames in ``data_1`` only, a rotated detector, translations of the sample, and the energy in joules."""
    path = folder / "specification.cxi"
    pixel = truth.geometry.detector_pixel_m
    assert pixel is not None
    # Rows step along +x and columns along -y of the laboratory; the sample moves against the probe.
    basis = np.array([[pixel[0], 0, 0], [0, -pixel[1], 0]])
    row, column = truth.positions_m.T
    with h5py.File(path, "w") as file:
        file["entry_1/data_1/data"] = truth.counts.astype(">i4")
        file["entry_1/data_1/translation"] = np.stack([-row, column, np.zeros_like(row)], 1)
        file["entry_1/instrument_1/source_1/energy"] = np.array([truth.geometry.energy_ev]) * 1.602176634e-19
        file["entry_1/instrument_1/detector_1/basis_vectors"] = basis.T
        file["entry_1/instrument_1/detector_1/distance"] = [[2.0]]
        file["entry_1/instrument_1/detector_1/mask"] = np.where(truth.mask, 0x1000, 0x8).astype(np.uint32)
    return path


def write_nexus_of_positioners(folder: Path, truth: Truth) -> Path:
    """Write the layout with ``instrument/detector`` and positioners in micrometers."""
    path = folder / "positioners.nxs"
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry["definition"] = "NXptycho"
        entry["instrument/detector/data"] = truth.counts.reshape(7, 9, truth.size, truth.size)
        for name, value, unit in (("distance", 2000.0, "mm"), ("x_pixel_size", 172.0, "um")):
            entry[f"instrument/detector/{name}"] = value
            entry[f"instrument/detector/{name}"].attrs["units"] = unit
        entry["instrument/beam/energy"] = 8.0
        entry["instrument/beam/energy"].attrs["units"] = "keV"
        for number, (name, axis) in enumerate((("stage_y", 0), ("stage_x", 1)), 1):
            entry[f"sample/positioner_{number}/name"] = name
            entry[f"sample/positioner_{number}/raw_value"] = truth.positions_m[:, axis] * 1e6
            entry[f"sample/positioner_{number}/raw_value"].attrs["units"] = "um"
    return path


def write_eiger(folder: Path, truth: Truth) -> Path:
    """Write a master with two data files, and the positions in a table."""
    path = folder / "scan_master.h5"
    with h5py.File(path, "w") as file:
        for number, rows in enumerate((slice(0, 40), slice(40, None)), 1):
            name = f"scan_data_{number:06d}.h5"
            with h5py.File(folder / name, "w") as data:
                data["entry/data/data"] = truth.counts[rows]
            file[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
        detector = file.create_group("entry/instrument/detector")
        detector["detector_distance"] = 2.0
        detector["x_pixel_size"] = detector["y_pixel_size"] = 172e-6
        detector["beam_center_x"] = detector["beam_center_y"] = float(truth.size // 2)
        detector["detectorSpecific/photon_energy"] = 8000.0
        detector["detectorSpecific/pixel_mask"] = np.where(truth.mask, 0, 8).astype(np.uint32)
    return path


def write_hxn(folder: Path, truth: Truth) -> Path:
    """Write the layout of HXN: amplitudes, and points (x, y) in micrometers."""
    path = folder / "hxn.h5"
    with h5py.File(path, "w") as file:
        file["diffamp"] = np.sqrt(truth.counts)
        file["points"] = truth.positions_m[:, ::-1].T * 1e6
        file["lambda_nm"] = truth.geometry.wavelength_m * 1e9
        file["z_m"], file["ccd_pixel_um"] = 2.0, 172.0
    return path


def write_nanomax(folder: Path, truth: Truth) -> Path:
    """Write the layout of NanoMAX, without any geometry."""
    path = folder / "nanomax.h5"
    with h5py.File(path, "w") as file:
        file["entry/measurement/Eiger/data"] = truth.counts
        for name, axis in (("x", 1), ("y", 0)):
            file[f"entry/measurement/pseudo/{name}"] = truth.positions_m[:, axis] * 1e6
    return path


GIVEN = {"energy_ev": 8000.0, "distance": 2.0, "detector_pixel": 172e-6}
DETECTOR = "/entry_1/instrument_1/detector_1/data"
TRANSLATION = "/entry_1/sample_1/geometry_1/translation"

CASES = [
    Case("cxi", save_as("scan.cxi"), patterns_path=DETECTOR, positions_path=TRANSLATION),
    Case(
        "cxi of another detector basis",
        write_cxi_by_specification,
        probe=False,
        object=False,
        patterns_path="/entry_1/data_1/data",
        positions_path="/entry_1/data_1/translation",
    ),
    Case("nexus", save_as("scan.nxs"), patterns_path=DETECTOR, positions_path=TRANSLATION),
    Case(
        "nexus of positioners",
        write_nexus_of_positioners,
        probe=False,
        object=False,
        mask=False,
        patterns_path="/entry/instrument/detector/data",
        positions_path="/entry/sample/positioner_1/raw_value",
    ),
    Case(
        "beamline HXN",
        write_hxn,
        settings={"photons_per_unit": 1.0},
        probe=False,
        object=False,
        mask=False,
        patterns_path="/diffamp",
        positions_path="/points",
    ),
    Case(
        "beamline NanoMAX",
        write_nanomax,
        settings=GIVEN,
        probe=False,
        object=False,
        mask=False,
        patterns_path="/entry/measurement/Eiger/data",
        positions_path="/entry/measurement/pseudo/x",
    ),
]
