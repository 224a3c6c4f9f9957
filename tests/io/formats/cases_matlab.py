"""Files of MATLAB programs: fold_slice, PtychoShelves and NSLS-II."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from cases import Case, Truth

from ptycho_torch.data.geometry import ELEMENTARY_CHARGE_C, PLANCK_TIMES_LIGHT_SPEED_J_M

PIXEL_GEOMETRY = ("wavelength_m", "object_pixel_m")


def write_pair(folder: Path, truth: Truth) -> Path:
    """Write a pair of fold_slice and return the path of its patterns, which MATLAB wrote if they are of electrons."""
    electrons = truth.geometry.radiation == "electron"
    length = 1e-10 if electrons else 1.0
    y, x = truth.positions_m.T / length
    with h5py.File(folder / "data_roi0_dp.hdf5", "w") as file:
        counts = truth.counts.astype(np.float32)
        file["dp"] = counts.swapaxes(1, 2) if electrons else counts
    with h5py.File(folder / "data_roi0_para.hdf5", "w") as file:
        file["ppX"], file["ppY"] = x, y
        file["dx"], file["lambda"] = truth.pixel_m[0] / length, (truth.geometry.wavelength_m or 0) / length
    return folder / "data_roi0_dp.hdf5"


def make_result_variables(truth: Truth) -> dict[str, Any]:
    """Return the variables of a result of fold_slice."""
    sides = np.array(truth.object.shape)
    centered = truth.positions - truth.size // 2 + 1 - np.ceil(sides / 2 - truth.size / 2)
    return {
        "object": truth.object,
        "probe": np.moveaxis(truth.probe, 0, 2)[:, :, :, None],
        "outputs": {"probe_positions": centered[:, ::-1]},
        "p": {"dx_spec": truth.pixel_m, "lambda": truth.geometry.wavelength_m, "z": 2.0, "ds": 172e-6},
    }


def write_mat73(path: Path, values: dict[str, Any]) -> Path:
    """Write variables as MATLAB 7.3 does: reversed axes, complex compounds, structures as groups."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            members = (
                {f"{name}/{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
            )
            for place, each in members.items():
                array = np.atleast_2d(each).T
                if array.dtype.kind == "c":
                    compound = np.empty(array.shape, [("real", "<f8"), ("imag", "<f8")])
                    compound["real"], compound["imag"] = array.real, array.imag
                    array = compound
                file[place] = array
    with open(path, "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


def write_mat(path: Path, values: dict[str, Any], version: str) -> Path:
    """Write variables as MATLAB 6 (without compression), 7 or 7.3 does."""
    if version == "7.3":
        return write_mat73(path, values)
    from scipy.io import savemat

    savemat(path, values, do_compression=version == "7")
    return path


def save_result(version: str) -> Callable[[Path, Truth], Path]:
    """Return the writer of a result of fold_slice, with its patterns beside it."""

    def write(folder: Path, truth: Truth) -> Path:
        write_pair(folder, truth)
        return write_mat(folder / "Niter100.mat", make_result_variables(truth), version)

    return write


def write_h5_result(folder: Path, truth: Truth) -> Path:
    """Write a result of PtychoShelves as HDF5, with patterns beside it."""
    write_pair(folder, truth)
    path = folder / "S00001_recons.h5"
    with h5py.File(path, "w") as file:
        parameters = file.create_group("reconstruction/p")
        parameters["objects/object_0"], parameters["probes/probe_0"] = truth.object, truth.probe
        parameters["positions"] = truth.positions - truth.size // 2
        parameters["dx_spec"], parameters["lambda"] = truth.pixel_m[:, None], truth.geometry.wavelength_m
        parameters["z"], parameters["ds"] = 2.0, 172e-6
        file["reconstruction/object"] = h5py.SoftLink("/reconstruction/p/objects/object_0")
        file["reconstruction/probes"] = h5py.SoftLink("/reconstruction/p/probes/probe_0")
    return path


def write_prepared(folder: Path, truth: Truth) -> Path:
    """Write prepared data of PtychoShelves."""
    path = folder / "S00001_data.h5"
    with h5py.File(path, "w") as file:
        file["measurement/n0/data"] = truth.counts.astype(np.float32)
        file["measurement/n0/positions"] = truth.positions - truth.size // 2
        file["measurement/n0"].attrs["detector"] = np.uint32(0)
        file["detector/n0/modules"] = np.array([[truth.size, truth.size, 0, 0]], np.uint32)
        file["detector/n0/bad_pixels"] = np.argwhere(~truth.mask).astype(np.uint32)
    return path


def write_older_prepared(folder: Path, truth: Truth) -> Path:
    """Write prepared data of earlier versions of PtychoShelves: amplitudes, one group per pattern."""
    path = folder / "S00001_data.h5"
    with h5py.File(path, "w") as file:
        for number, (counts, position) in enumerate(zip(truth.counts, truth.positions, strict=True)):
            group = file.create_group(f"measurements/measurement_{number}")
            group["diff_pat"] = np.sqrt(counts).astype(np.float32)
            group["bad_pixels"] = np.argwhere(~truth.mask).astype(np.uint32)
            group.attrs["position"], group.attrs["detector"] = position - truth.size // 2, np.uint32(0)
        file["measurements"].attrs["max_power"] = 1.0
        file["detectors/detector_0/modules"] = np.array([[truth.size, truth.size, 0, 0]], np.uint32)
    return path


def save_nsls(version: str) -> Callable[[Path, Truth], Path]:
    """Return the writer of a file of NSLS-II; version 7.3 has (n, rows, columns) in HDF5."""

    def write(folder: Path, truth: Truth) -> Path:
        reverse = version == "7.3"
        counts, positions = truth.counts.astype(np.float32), truth.positions_m[:, ::-1] * 1e6
        energy = PLANCK_TIMES_LIGHT_SPEED_J_M / ((truth.geometry.wavelength_m or 1) * ELEMENTARY_CHARGE_C)
        values = {
            "det_data": counts.T if reverse else counts,
            "pos_xy": positions,
            "det_pixel_size": 172.0,
            "det_dist": 2e6,
            "energy": energy / 1e3,
        }
        return write_mat(folder / "scan.mat", values, version)

    return write


PARTNER = {"patterns_file": Path("data_roi0_dp.hdf5")}
EXPERIMENT = {"energy_ev": 8000.0, "distance": 2.0, "detector_pixel": 172e-6}

MATLAB_CASES = [
    Case(
        "fold_slice",
        write_pair,
        probe=False,
        object=False,
        mask=False,
        geometry=PIXEL_GEOMETRY,
        patterns_path="/dp",
        positions_path="data_roi0_para.hdf5:/ppX",
    ),
    Case(
        "fold_slice electrons",
        write_pair,
        probe=False,
        object=False,
        mask=False,
        geometry=PIXEL_GEOMETRY,
        electrons=True,
    ),
    Case("ptychoshelves mat6", save_result("6"), settings=PARTNER, mask=False),
    Case("ptychoshelves mat7", save_result("7"), settings=PARTNER, mask=False),
    Case(
        "ptychoshelves mat7.3",
        save_result("7.3"),
        settings=PARTNER,
        mask=False,
        patterns_path="data_roi0_dp.hdf5:/dp",
        positions_path="/outputs/probe_positions",
    ),
    Case(
        "ptychoshelves h5",
        write_h5_result,
        settings=PARTNER,
        mask=False,
        patterns_path="data_roi0_dp.hdf5:/dp",
        positions_path="/reconstruction/p/positions",
    ),
    Case(
        "ptychoshelves_data",
        write_prepared,
        settings=EXPERIMENT,
        probe=False,
        object=False,
        patterns_path="/measurement/n0/data",
        positions_path="/measurement/n0/positions",
    ),
    Case(
        "ptychoshelves_data older",
        write_older_prepared,
        settings=EXPERIMENT,
        probe=False,
        object=False,
        patterns_path="/measurements/measurement_7/diff_pat",
    ),
    Case("nsls_mat 7", save_nsls("7"), probe=False, object=False, mask=False),
    Case(
        "nsls_mat 7.3",
        save_nsls("7.3"),
        probe=False,
        object=False,
        mask=False,
        patterns_path="/det_data",
        positions_path="/pos_xy",
    ),
]
