"""Raw files of the EMPAD detector, with the XML of the microscope or the JSON of phaser."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import compute_electron_wavelength
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.calibrated_raster import Calibration, make_raster_parts
from ptycho_torch.io.formats.empad_metadata import EmpadMetadata, find_metadata, parse_metadata
from ptycho_torch.io.parts import InputReport, ScanParts, merge_geometry
from ptycho_torch.io.size_limits import check_array_size

SIDE_PX = 128
"""Rows and columns of a frame."""

FOOTER_ROWS = 2
"""Rows after each frame that hold no intensities."""

BORDER_PX = 2
"""Width of the border of a frame whose pixels are unreliable."""

PIXEL_BYTES = 4


class EmpadFormat(Format):
    """Raw frames of an EMPAD; the raw file or its metadata may be named."""

    name = "empad"
    title = "raw file of an EMPAD detector, with its XML or the JSON of phaser"

    def matches(self, file: InputFile) -> bool:
        if file.kind == "text":
            return parse_metadata(file.path) is not None
        if file.kind != "binary" or not _list_frame_counts(file.path):
            return False
        metadata = find_metadata(file.path)
        return metadata.path is not None or _fits(metadata, file.path)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        raw, metadata = file.path, None
        if file.kind == "text":
            metadata = parse_metadata(file.path)
            if metadata is None or metadata.raw_name is None:
                raise DataError(f"{file.path}: the file names no raw file; expected an element raw_file")
            raw = file.path.with_name(metadata.raw_name)
            if not raw.is_file():
                raise DataError(f"{file.path}: raw_file is {raw.name}, which does not exist; copy it to {raw.parent}")
        metadata = metadata or find_metadata(raw)
        report = InputReport(self.name)
        frames = _read_frames(raw, metadata, settings, report)
        return _make_parts(frames, metadata, settings, report)


def _list_frame_counts(path: Path) -> dict[int, int]:
    """Return the possible numbers of frames by the number of rows of a stored frame."""
    size = os.stat(path).st_size
    counts = {rows: divmod(size, rows * SIDE_PX * PIXEL_BYTES) for rows in (SIDE_PX + FOOTER_ROWS, SIDE_PX)}
    return {rows: count for rows, (count, rest) in counts.items() if count and not rest}


def _fits(metadata: EmpadMetadata, path: Path) -> bool:
    if metadata.shape is None:
        return False
    return metadata.shape[0] * metadata.shape[1] in _list_frame_counts(path).values()


def _read_frames(
    path: Path, metadata: EmpadMetadata, settings: InputSettings, report: InputReport
) -> NDArray[np.float32]:
    """Return the frames (n, 128, 128), oriented, without footers."""
    counts = _list_frame_counts(path)
    expected = None if metadata.shape is None else metadata.shape[0] * metadata.shape[1]
    rows = next((rows for rows, count in counts.items() if expected in (None, count)), None)
    if rows is None:
        found = " or ".join(map(str, counts.values())) or f"{os.stat(path).st_size} bytes, no whole number of"
        raise DataError(
            f"{path}: found {found} frames of {SIDE_PX} × {SIDE_PX} pixels (float32); expected "
            f"{expected or 'a whole number'}"
            + (
                ""
                if metadata.shape is None
                else f", {metadata.shape[0]} rows × {metadata.shape[1]} columns of the scan"
            )
        )
    shape = (counts[rows], rows, SIDE_PX)
    if settings.frames is None:
        check_array_size(str(path), shape, np.dtype(np.float32))
    try:  # the frames that `frames` leaves out are never read
        frames = np.asarray(np.memmap(path, "<f4", "r", shape=shape))[:, :SIDE_PX]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again") from error
    flip_rows, flip_columns, transpose = metadata.flips
    axes = tuple(axis for axis, flipped in ((1, flip_rows), (2, flip_columns)) if flipped)
    frames = np.flip(frames, axes)
    frames = frames.swapaxes(1, 2) if transpose else frames
    named = [name for name, used in (("rows", flip_rows), ("columns", flip_columns)) if used]
    report.add("patterns", path.name, "counts", f"{shape[0]} frames of {SIDE_PX} of {rows} rows × {SIDE_PX} columns")
    if metadata.path is None or metadata.path.suffix.lower() != ".json":
        report.assumptions.append(
            f"frames: {' and '.join(named)} reversed, the usual orientation of EMPADs; `flip_y`, `flip_x` and "
            "`transpose` change it"
        )
    report.assumptions.append(f"mask: a border of {BORDER_PX} pixels is masked")
    return frames


def _make_parts(
    frames: NDArray[np.float32], metadata: EmpadMetadata, settings: InputSettings, report: InputReport
) -> ScanParts:
    source = "file name" if metadata.path is None else metadata.path.name
    wavelength = None
    if metadata.voltage_v is not None and metadata.voltage_v > 0:
        wavelength = compute_electron_wavelength(metadata.voltage_v)
        report.add("wavelength", source, "V", f"{metadata.voltage_v / 1e3:g} kV")
    shape = metadata.shape if metadata.shape and metadata.shape[0] * metadata.shape[1] == len(frames) else None
    calibration = Calibration(source, metadata.step_m, "m", metadata.pixel_mrad, "mrad", metadata.rotation)
    parts = make_raster_parts(frames, shape, calibration, wavelength, settings, report)
    mask = np.zeros(frames.shape[1:], bool)
    mask[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
    values: dict[str, Any] = vars(parts) | {"mask": mask}
    if metadata.counts_per_electron:
        values["photons_per_unit"] = 1 / metadata.counts_per_electron
        report.add("photons per count", source, "", f"1 / {metadata.counts_per_electron:g}")
    elif settings.photons_per_unit is None:
        report.missing.append("electrons per count: set `photons_per_unit` to 1 / (counts per electron)")
    if metadata.camera_length_m and metadata.pixel_mrad is None:
        known = parts.geometry.__class__(distance_m=metadata.camera_length_m)
        values["geometry"] = merge_geometry(parts.geometry, known)
        report.add("distance", source, "m", "nominal camera length")
        report.missing.append("object pixel: set `pixel_size`, or `detector_pixel` for the nominal camera length")
    return ScanParts(**values)
