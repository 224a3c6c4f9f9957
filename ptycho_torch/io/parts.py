"""The content of a scan file before its conversion to a scan, and the record of its origin."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import Measurement
from ptycho_torch.config.input import PositionUnit
from ptycho_torch.data.geometry import Geometry


class Mapping(NamedTuple):
    """A quantity of a scan and its place in the file."""

    field: str
    """Quantity: ``patterns``, ``positions``, ``probe``, ``mask``, ``wavelength``, …"""

    path: str
    """Key or path in the file, or the name of another file."""

    unit: str = ""
    """Unit in the file."""

    conversion: str = ""
    """Conversion to the scan."""


@dataclass
class InputReport:
    """Record of a read file: format, origin of each quantity, assumptions, and missing quantities."""

    format: str = ""
    mapping: list[Mapping] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Each is a text that names the quantity and the setting that gives it."""

    def add(self, field: str, path: str, unit: str = "", conversion: str = "") -> None:
        """Record the place of a quantity in the file."""
        self.mapping.append(Mapping(field, path, unit, conversion))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as values of JSON."""
        return {
            "format": self.format,
            "mapping": [entry._asdict() for entry in self.mapping],
            "assumptions": list(self.assumptions),
            "missing": list(self.missing),
        }


@dataclass(frozen=True, kw_only=True)
class ScanParts:
    """The content of a scan file in the file's own arrays, with the facts that a conversion to a scan needs.

    A reader fills the parts that its file has and leaves the others None; files of one pair are merged.
    """

    patterns: NDArray[Any] | None = None
    """(n, rows, columns), any real dtype, as stored."""

    measurement: Measurement | None = "counts"
    """Quantity in ``patterns``; None: the setting decides."""

    photons_per_unit: float | None = None
    """Photons per count, or per squared unit of amplitude; None: 1 for counts."""

    pattern_numbers: NDArray[np.int64] | None = None
    """(n,) number of each pattern, which pairs it with its position; None: the order pairs them."""

    positions: NDArray[np.float64] | None = None
    """(n, 2) (row, column) of the probe on the object, in ``position_unit``, growing with the axes of the object."""

    position_unit: PositionUnit = "meter"

    position_numbers: NDArray[np.int64] | None = None
    """(n,) number of each position; None: the order pairs them."""

    nominal_positions: NDArray[np.float64] | None = None
    """(n, 2) commanded positions, as ``positions``."""

    scan_index: NDArray[np.int64] | None = None
    """(n,) number of the scan of each pattern."""

    source_index: NDArray[np.int64] | None = None
    """(n,) index of each pattern in the file that the scan was cut from."""

    probe: NDArray[np.complexfloating] | None = None
    """(M, N, N) probe modes in real space on the object pixels of the patterns."""

    object: NDArray[np.complexfloating] | None = None
    """(rows, columns) object; a reference, never used for computing."""

    object_origin: tuple[float, float] | None = None
    """Position (row, column) of the center of ``object[0, 0]`` in ``position_unit``; None: (0, 0)."""

    labels: NDArray[np.complexfloating] | None = None
    """(n, N, N) object patches."""

    mask: NDArray[np.bool_] | None = None
    """(rows, columns) or (n, rows, columns), True where a pixel counts."""

    center: tuple[float, float] | None = None
    """Pixel (row, column) of zero frequency in ``patterns``; None: unknown."""

    dark: NDArray[Any] | None = None
    """(rows, columns) mean dark frame, in the unit of ``patterns``."""

    flat: NDArray[Any] | None = None
    """(rows, columns) relative efficiency of the pixels."""

    intensities: NDArray[np.float64] | None = None
    """(n,) incident photons of each pattern, in any unit: the power of the probe of a result; of a scan, its variation
    is recorded and the patterns stay as measured."""

    geometry: Geometry = field(default_factory=Geometry)
    """Wavelength, distance and pixel sizes; the detector pixel is of ``patterns`` as stored."""

    background: NDArray[np.floating] | None = None
    """(N, N) photons of a result, zero frequency at [N//2, N//2]."""

    uncertainty: NDArray[np.floating] | None = None
    """(rows, columns) standard deviation of the object of a result."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """Further facts, JSON."""

    report: InputReport = field(default_factory=InputReport)

    def merge(self, other: Self) -> Self:
        """Return these parts with those that are missing here taken from ``other``."""
        taken: dict[str, Any] = {}
        skipped = {"measurement", "photons_per_unit", "position_unit", "geometry", "metadata", "report"}
        for entry in fields(self):
            if entry.name not in skipped and getattr(self, entry.name) is None:
                taken[entry.name] = getattr(other, entry.name)
        if self.patterns is None and other.patterns is not None:
            taken |= {"measurement": other.measurement, "photons_per_unit": other.photons_per_unit}
        if self.positions is None and other.positions is not None:
            taken["position_unit"] = other.position_unit
        report = InputReport(
            " + ".join(dict.fromkeys([*self.report.format.split(" + "), other.report.format])),
            self.report.mapping + other.report.mapping,
            self.report.assumptions + other.report.assumptions,
            self.report.missing + other.report.missing,
        )
        return replace(
            self,
            **taken,
            geometry=merge_geometry(self.geometry, other.geometry),
            metadata=other.metadata | self.metadata,
            report=report,
        )


def merge_geometry(first: Geometry, second: Geometry) -> Geometry:
    """Return ``first`` with unknown quantities taken from ``second``."""
    names = ("wavelength_m", "distance_m", "detector_pixel_m", "object_pixel_m")
    taken = {name: getattr(second, name) for name in names if getattr(first, name) is None}
    near = "near_field" in (first.propagation, second.propagation)
    known = first.wavelength_m is not None or (second.wavelength_m is None and first.radiation == "electron")
    radiation = first.radiation if known else second.radiation
    return replace(first, **taken, propagation="near_field" if near else "far_field", radiation=radiation)
