"""The scan as arrays by key in Zarr, TIFF, NPY and MATLAB files, with tables of positions, and in Eiger masters."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from cases import Case, Truth
from cases_beamlines import GIVEN, write_eiger

COUNTS: dict[str, Any] = {**GIVEN, "measurement": "counts"}


def write_table(folder: Path, truth: Truth) -> None:
    """Write ``positions.csv`` with names and units of columns, x before y."""
    header = "# a comment\nframe,x (um),y (um)\n"
    rows = [f"{index},{x!r},{y!r}\n" for index, (y, x) in enumerate((truth.positions_m * 1e6).tolist())]
    (folder / "positions.csv").write_text(header + "".join(rows))


def write_eiger_and_table(folder: Path, truth: Truth) -> Path:
    write_table(folder, truth)
    return write_eiger(folder, truth)


def write_tiff(folder: Path, truth: Truth) -> Path:
    import tifffile

    write_table(folder, truth)
    tifffile.imwrite(folder / "scan.tif", truth.counts, photometric="minisblack")
    return folder / "scan.tif"


def write_tiff_series(folder: Path, truth: Truth) -> Path:
    import tifffile

    write_table(folder, truth)
    (folder / "frames").mkdir()
    for index, frame in enumerate(truth.counts):
        tifffile.imwrite(folder / "frames" / f"run2_{index + 5}.tif", frame)
    return folder / "frames"


def write_npy(folder: Path, truth: Truth) -> Path:
    write_table(folder, truth)
    np.save(folder / "scan.npy", truth.counts)
    return folder / "scan.npy"


def write_zarr(folder: Path, truth: Truth, version: int) -> Path:
    import zarr

    group = zarr.open_group(str(folder / "scan.zarr"), mode="w", zarr_format=version)
    for key, values in (("entry/frames", truth.counts), ("entry/positions", truth.positions_m)):
        array = group.create_array(key, shape=values.shape, dtype=values.dtype, chunks=values.shape)
        array[...] = values
    return folder / "scan.zarr"


def write_zarr_2(folder: Path, truth: Truth) -> Path:
    return write_zarr(folder, truth, 2)


def write_zarr_3(folder: Path, truth: Truth) -> Path:
    return write_zarr(folder, truth, 3)


def write_mat5(folder: Path, truth: Truth) -> Path:
    import scipy.io

    counts = np.moveaxis(truth.counts, 0, 2).astype(np.float64)
    scipy.io.savemat(folder / "scan.mat", {"I": counts, "pos": truth.positions_m})
    return folder / "scan.mat"


def write_mat73(folder: Path, truth: Truth) -> Path:
    path = folder / "scan.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["I"] = np.moveaxis(truth.counts, 0, 2).T
        file["pos"] = truth.positions_m.T
    with open(path, "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(128))
    return path


def make_case(name: str, write: Any, **changes: Any) -> Case:
    options: dict[str, Any] = {"format": "generic", "settings": COUNTS, "probe": False, "object": False, "mask": False}
    return Case(name, write, **(options | changes))


TABLE = {"positions_name": "positions.csv"}
ZARR = {
    "settings": {**COUNTS, "diffraction_key": "entry/frames", "positions_key": "entry/positions", "position_unit": "m"}
}
MAT = {
    "settings": {**COUNTS, "diffraction_key": "I", "positions_key": "pos", "position_unit": "m", "axis_order": "hwn"}
}

CASES = [
    make_case("TIFF of pages", write_tiff, **TABLE),
    make_case("TIFF series", write_tiff_series, **TABLE),
    make_case("NPY", write_npy, **TABLE),
    make_case("Zarr 2", write_zarr_2, **ZARR),
    make_case("Zarr 3", write_zarr_3, **ZARR),
    make_case("MAT 5", write_mat5, **MAT),
    make_case("MAT 7.3", write_mat73, **MAT, patterns_path="/I", positions_path="/pos"),
    make_case(
        "eiger",
        write_eiger_and_table,
        **TABLE,
        format="",
        settings={},
        mask=True,
        patterns_path="scan_data_000001.h5:/entry/data/data",
    ),
]
