"""Write a datacube of EMD 1.0 with emdfile, under the names and classes of py4DSTEM; see `peer_xray.py`."""

from pathlib import Path

import emdfile
import numpy as np
from peer_electron import fold_scan, get_scan_step, simulate_raster
from peer_xray import Intensities
from truth import Truth

_emd_hook = True  # emdfile then finds the classes of this module


class DataCube(emdfile.Array):  # type: ignore[misc]
    """The class whose name py4DSTEM writes."""


class Calibration(emdfile.Metadata):  # type: ignore[misc]
    """The class whose name py4DSTEM writes."""


def write_emdfile(folder: Path, truth: Truth) -> Path:
    """Write a datacube and its calibration."""
    path = folder / f"emdfile_{truth.side}.h5"
    path.unlink(missing_ok=True)
    step, frequency = get_scan_step(truth), truth.electron_detector_pixel_per_angstrom
    cube = DataCube(
        fold_scan(truth.counts),
        name="datacube",
        units="pixel intensity",
        dims=[[0, step], [0, step], [0, frequency], [0, frequency]],
        dim_units=["A", "A", "A^-1", "A^-1"],
        dim_names=["Rx", "Ry", "Qx", "Qy"],
    )
    root = emdfile.Root("datacube_root")
    root.add_to_tree(cube)
    root.metadata = Calibration(
        "calibration",
        {
            "R_pixel_size": step,
            "R_pixel_units": "A",
            "Q_pixel_size": frequency,
            "Q_pixel_units": "A^-1",
            "QR_rotation": 0.0,
            "QR_flip": False,
        },
    )
    emdfile.save(str(path), root)
    return path


def simulate_emdfile(path: Path, truth: Truth) -> Intensities:
    """Read the datacube back and compute the patterns of its raster."""
    cube = emdfile.read(str(path))
    calibration = cube.root.metadata["calibration"]
    if not np.array_equal(cube.data.reshape(truth.counts.shape), truth.counts):
        raise RuntimeError("the datacube differs")
    return simulate_raster(calibration["R_pixel_size"], 1 / (truth.side * calibration["Q_pixel_size"]), truth)
