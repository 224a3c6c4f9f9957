"""Pairs ``*_dp.hdf5`` and ``*_para.hdf5`` of fold_slice (MATLAB)."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import InputFile, open_input
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.lengths import guess_length, guess_radiation
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.parts import InputReport, ScanParts

MAX_SCAN_RANGE_M = 0.1
"""Largest range of scan positions in meters; a larger one is in ångströms."""

POSITION_PATHS = ("/ppY", "/ppX")
"""Row and column coordinates."""

PATTERN_SUFFIX = "_dp"
POSITION_SUFFIX = "_para"

logger = logging.getLogger(__name__)


class FoldSliceFormat(Format):
    """Patterns in ``dp`` and positions in ``ppX``, ``ppY``, in two files of one name."""

    name = "fold_slice"
    title = "pair *_dp.hdf5 and *_para.hdf5 of fold_slice (MATLAB) and Ptychodus"

    def matches(self, file: InputFile) -> bool:
        tree = file.hdf5
        if tree is None:
            return False
        if tree.find(*POSITION_PATHS):
            return True
        others = ("/probe_position_x_m", "/positions", "/encoder")
        if not tree.is_dataset("/dp") or tree.find(*others):
            return False
        partner = self._find_partner(file.path)
        return partner is None or _has_fold_slice_positions(partner)

    def list_partners(self, path: Path) -> Sequence[Path]:
        return list_pair(path)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        tree, report = file.tree, InputReport(self.name)
        parts: dict[str, Any] = {}
        if tree.find(*POSITION_PATHS):
            parts |= _read_positions(tree, report)
        if tree.has("/dp"):
            parts["patterns"] = self._read_patterns(tree, settings, report)
        if not parts:
            raise DataError(f"{file.path}: neither /dp nor /ppX is in the file; expected one of them; change `format`")
        return ScanParts(**parts, report=report)

    def _find_partner(self, path: Path) -> Path | None:
        return next((each for each in self.list_partners(path) if each.is_file()), None)

    def _read_patterns(self, tree: Hdf5File, settings: InputSettings, report: InputReport) -> NDArray[Any]:
        patterns = tree.read("/dp", kinds="biuf", ndim=(2, 3))
        patterns = patterns.reshape(math.prod(patterns.shape[:-2]), *patterns.shape[-2:])
        if self._has_exchanged_axes(tree.path, settings, report):
            patterns = patterns.swapaxes(1, 2)
            report.add("patterns", "/dp", "counts", "axes (n, kx, ky) exchanged to (n, ky, kx)")
        else:
            report.add("patterns", "/dp", "counts", "axes (n, ky, kx)")
        return patterns

    def _has_exchanged_axes(self, path: Path, settings: InputSettings, report: InputReport) -> bool:
        """Return True if the patterns have the axes (n, kx, ky), as the radiation decides.

        Files of electrons are written by MATLAB and not transposed by fold_slice. Files of X-rays are written in C
        order: fold_slice transposes them for its X-ray detectors, and Ptychodus reads and writes them as they are.
        """
        given = settings.positions_file
        partner = self._find_partner(path) if given is None else given
        if partner is not None and _has_fold_slice_positions(partner):
            with open_input(partner) as file:
                return _has_electrons(_read_coordinates(file.tree))
        if given is not None and _has_positions(given, "/probe_position_x_m"):  # of PtychoViT, with rows first
            return False
        if settings.voltage_kv is not None or settings.energy_ev is not None:
            return settings.voltage_kv is not None
        if given is not None and settings.format != self.name:
            raise ConfigError(
                f"{path}: /dp may have the axes (n, kx, ky) of MATLAB or (n, ky, kx); expected a *_para.hdf5 beside "
                "the file, which decides; set `voltage_kv` for (n, kx, ky) or `energy_ev` for (n, ky, kx)"
            )
        report.assumptions.append(
            "/dp: electrons, with the axes (n, kx, ky) of MATLAB; `energy_ev` selects (n, ky, kx)"
        )
        logger.warning("%s: %s", path, report.assumptions[-1])
        return True


def list_pair(path: Path) -> list[Path]:
    """Return the path of the other file of a pair ``*_dp.*`` and ``*_para.*``; empty for other names."""
    for own, other in ((PATTERN_SUFFIX, POSITION_SUFFIX), (POSITION_SUFFIX, PATTERN_SUFFIX)):
        if path.stem.endswith(own):
            stem = path.stem.removesuffix(own) + other
            return [path.with_name(stem + suffix) for suffix in dict.fromkeys((path.suffix, ".hdf5", ".h5"))]
    return []


def _has_fold_slice_positions(path: Path) -> bool:
    return _has_positions(path, *POSITION_PATHS)


def _has_positions(path: Path, *places: str) -> bool:
    with open_input(path) as file:
        return file.hdf5 is not None and file.hdf5.find(*places) is not None


def _read_coordinates(tree: Hdf5File) -> NDArray[np.float64]:
    """Return the scan positions (row, column) of a ``*_para.hdf5`` as stored."""
    columns = [tree.read(path, kinds="iuf", ndim=(1, 2)).astype(np.float64).reshape(-1) for path in POSITION_PATHS]
    if len(columns[0]) != len(columns[1]):
        raise DataError(
            f"{tree.path}: /ppY has {len(columns[0])} values and /ppX {len(columns[1])}; expected equal numbers"
        )
    if not np.isfinite(columns).all(0).any():
        raise DataError(f"{tree.path}: /ppX and /ppY hold no finite position; expected one per pattern")
    return np.stack(columns, 1)


def _has_electrons(positions: NDArray[np.float64]) -> bool:
    """Return True if the coordinates are in ångströms, by their range."""
    finite = positions[np.isfinite(positions).all(1)]
    return bool(np.ptp(finite, axis=0).max() > MAX_SCAN_RANGE_M)


def _read_positions(tree: Hdf5File, report: InputReport) -> dict[str, Any]:
    """Return positions, their unit, and the geometry of a ``*_para.hdf5``."""
    positions = _read_coordinates(tree)
    electrons = _has_electrons(positions)
    report.add("positions", "/ppY, /ppX", "Å" if electrons else "m", "(row, column) = (ppY, ppX)")
    report.assumptions.append(
        f"/ppX, /ppY: {'ångströms' if electrons else 'meters'}, by their range; files differ in the signs of the "
        "coordinates: `negate_y`, `negate_x` and `swap_xy` change them"
    )
    lengths: dict[str, float | None] = {}
    for path, label, limit in (("/lambda", "wavelength", 1e-6), ("/dx", "object pixel", 1e-3)):
        lengths[label] = guess_length(tree.read_mean(path), limit, label, path, report) if tree.has(path) else None
    side = lengths["object pixel"]
    geometry = Geometry(
        wavelength_m=lengths["wavelength"],
        object_pixel_m=None if side is None else (side, side),
        radiation="electron" if electrons else guess_radiation(lengths["wavelength"]),
    )
    metadata = {"rotation_angle_deg": tree.read_mean("/angle")} if tree.has("/angle") else {}
    unit = "angstrom" if electrons else "meter"
    return {"positions": positions, "position_unit": unit, "geometry": geometry, "metadata": metadata}
