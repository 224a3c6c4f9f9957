"""How ptypy, Ptychodus, PtychoViT, PtyLab and xptycho store the scan of ``cases.py``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from cases import Case, Truth

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.io.reconstruction import save_reconstruction
from ptycho_torch.io.scan import save_scan

Write = Callable[[Path, Truth], Path]


def save(name: str, format: str | None = None, *, named: str | None = None) -> Write:
    """Return a writer that saves the scan as ``name``; the file ``named`` is read."""

    def write(folder: Path, truth: Truth) -> Path:
        save_scan(folder / name, truth.make_scan(), format=format)
        return folder / (named or name)

    return write


def write_ptypy_result(folder: Path, truth: Truth) -> Path:
    """Write a result and the prepared data beside it."""
    save_scan(folder / "scan.ptyd", truth.make_scan())
    result = Reconstruction(
        object=truth.object.astype(np.complex64),
        coverage=np.ones(truth.object.shape, np.float32),
        origin_yx=np.zeros(2, np.int64),
        probe=truth.probe.astype(np.complex64),
        positions=truth.positions,
        geometry=truth.geometry,
    )
    save_reconstruction(folder / "scan.ptyr", result)
    return folder / "scan.ptyr"


def compute_middle(truth: Truth) -> np.ndarray[Any, Any]:
    """Return the position in our pixels of the middle of the object in files of Ptychodus."""
    return (np.array(truth.object.shape) - 1) / 2 + (0.5 if truth.size % 2 == 0 else 0.0)


def write_ptychodus_npz(folder: Path, truth: Truth) -> Path:
    center = np.array([2.1e-6, -1.3e-6])
    y, x = ((truth.positions - compute_middle(truth)) * truth.pixel_m + center).T
    numbers = np.arange(len(y)) + 3
    geometry = truth.geometry
    np.savez(
        folder / "product.npz",
        photon_energy_eV=np.array(geometry.energy_ev),
        detector_object_distance_m=np.array(geometry.distance_m),
        probe_position_indexes=numbers[::-1],
        probe_position_y_m=y[::-1],
        probe_position_x_m=x[::-1],
        probe=truth.probe[None],
        object=truth.object[None],
        object_pixel_height_m=truth.pixel_m[0],
        object_pixel_width_m=truth.pixel_m[1],
        object_center_y_m=center[0],
        object_center_x_m=center[1],
    )
    np.savez(folder / "diffraction.npz", patterns=truth.counts, indexes=numbers, bad_pixels=~truth.mask)
    return folder / "product.npz"


def write_training(folder: Path, truth: Truth) -> Path:
    y, x = (truth.positions - (0.5 if truth.size % 2 == 0 else 0.0)).T
    content = {
        "patterns": truth.counts,
        "bad_pixels": ~truth.mask,
        "probe": truth.probe,
        "object": truth.object,
        "probe_position_y_px": y,
        "probe_position_x_px": x,
        "object_pixel_height_m": truth.pixel_m[0],
        "object_pixel_width_m": truth.pixel_m[1],
        "photon_energy_eV": truth.geometry.energy_ev,
        "detector_object_distance_m": truth.geometry.distance_m,
    }
    with h5py.File(folder / "train.h5", "w") as file:
        for key, value in content.items():
            file[key] = value
    return folder / "train.h5"


def write_pinn(folder: Path, truth: Truth) -> Path:
    y, x = (truth.positions - (0.5 if truth.size % 2 == 0 else 0.0)).T
    np.savez(
        folder / "scan.npz",
        xcoords=x,
        ycoords=y,
        xcoords_start=x,
        ycoords_start=y,
        diff3d=np.where(truth.mask, truth.counts, 0),
        bad_pixels=~truth.mask,
        probeGuess=truth.probe,
        objectGuess=truth.object,
        scan_index=np.zeros(len(x), int),
    )
    return folder / "scan.npz"


def write_xptycho(folder: Path, truth: Truth) -> Path:
    geometry, origin = truth.geometry, np.array([3e-6, -1e-6])
    assert geometry.detector_pixel_m is not None
    with h5py.File(folder / "scan.h5", "w") as file:
        file.attrs["format_version"] = 1
        file["scan/frames"] = truth.counts
        file["scan/probe_positions"] = truth.positions_m + origin
        file["scan/probe_positions"].attrs.update({"units": "m", "order": "row, column"})
        facts = {"wavelength": geometry.wavelength_m, "det_distance": geometry.distance_m}
        file["scan"].attrs.update(facts | {"det_pixel_pitch": geometry.detector_pixel_m[0]})
        file["sample/object"], file["sample/probe"] = truth.object, truth.probe
        file["sample"].attrs.update({"pixel_pitch": truth.pixel_m[0], "origin": origin})
    return folder / "scan.h5"


PIXEL_ONLY = ("object_pixel_m",)
WITHOUT_DETECTOR = ("wavelength_m", "distance_m", "object_pixel_m")

PHOTON_CASES = [
    Case(
        "ptyd",
        save("scan.ptyd"),
        probe=False,
        object=False,
        patterns_path="/chunks/0/data",
        positions_path="/chunks/0/positions",
    ),
    Case("ptyr", write_ptypy_result, patterns_path="scan.ptyd:/chunks/0/data"),
    Case(
        "ptychodus",
        save("product.h5", "ptychodus"),
        patterns_path="diffraction.h5:/patterns",
        positions_path="/probe_position_x_m",
    ),
    Case(
        "ptychodus_diffraction",
        save("product.h5", "ptychodus", named="diffraction.h5"),
        patterns_path="/patterns",
        positions_path="product.h5:/probe_position_y_m",
    ),
    Case("ptychodus arrays in NPZ", write_ptychodus_npz, geometry=WITHOUT_DETECTOR),
    Case(
        "ptychodus_training",
        write_training,
        geometry=WITHOUT_DETECTOR,
        patterns_path="/patterns",
        positions_path="/probe_position_x_px",
    ),
    Case("ptychopinn", write_pinn, geometry=()),
    Case(
        "ptychovit",
        save("scan_dp.hdf5", "ptychovit", named="scan_para.hdf5"),
        mask=False,
        geometry=PIXEL_ONLY,
        patterns_path="scan_dp.hdf5:/dp",
        positions_path="/probe_position_x_m",
    ),
    Case(
        "ptylab",
        save("scan.hdf5", "ptylab"),
        probe=False,
        object=False,
        mask=False,
        patterns_path="/ptychogram",
        positions_path="/encoder",
    ),
    Case(
        "xptycho",
        write_xptycho,
        mask=False,
        patterns_path="/scan/frames",
        positions_path="/scan/probe_positions",
    ),
]
"""Cases of files of photons."""
