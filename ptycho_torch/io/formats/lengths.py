"""Lengths of files whose unit depends on the radiation, and reciprocal pixels of electron microscopes."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.data.geometry import Geometry, Radiation, make_wavelength
from ptycho_torch.io.parts import InputReport
from ptycho_torch.io.units import UNIT_FACTORS

ANGSTROM_M = 1e-10

MAX_ELECTRON_WAVELENGTH_M = 8e-12
"""Wavelength of electrons at 23 kV; photons of this wavelength have 155 keV."""


def guess_length(value: float, limit_m: float, label: str, path: str, report: InputReport) -> float | None:
    """Return a length in meters of a file that stores meters for photons and ångströms for electrons.

    Args:
        value: number in the file.
        limit_m: largest plausible length in meters; a larger number is in ångströms.
        label: name of the quantity.
        path: its place in the file.
        report: record of the file.
    """
    if not 0 < value < math.inf:
        return None
    in_angstrom = value > limit_m
    report.add(label, path, "Å" if in_angstrom else "m")
    return value * ANGSTROM_M if in_angstrom else value


def guess_radiation(wavelength_m: float | None) -> Radiation:
    """Return the radiation that a wavelength belongs to in practice."""
    return "photon" if wavelength_m is None or wavelength_m > MAX_ELECTRON_WAVELENGTH_M else "electron"


def parse_number(value: Any) -> float | None:
    """Return a finite number of an attribute or text; None if it is none."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size == 1 and value.dtype.kind in "biuf" else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def parse_length(value: float | None, unit: str | None) -> float | None:
    """Return a positive length in meters; None if value or unit is unknown."""
    factor = UNIT_FACTORS.get((unit or "").strip().lower())
    return value * factor if value is not None and value > 0 and factor is not None else None


def find_wavelength(settings: InputSettings, wavelength_m: float | None) -> float | None:
    """Return the wavelength in meters of the settings, otherwise ``wavelength_m``."""
    given, _ = make_wavelength(settings.wavelength, settings.energy_ev, settings.voltage_kv)
    return given or wavelength_m


def compute_electron_pixel(size: int, step: float | None, unit: str | None, wavelength_m: float | None) -> float | None:
    """Return the object pixel in meters of patterns with a reciprocal pixel: 1 / (N dk).

    Args:
        size: N of the patterns.
        step: reciprocal pixel or angle per pixel.
        unit: unit of ``step``: a reciprocal length such as ``A^-1`` or ``1/nm``, or ``mrad`` or ``rad``.
        wavelength_m: wavelength in meters, for angles.

    Returns:
        The object pixel; None if it cannot be computed.
    """
    text = (unit or "").strip().lower().replace(" ", "")
    if step is None or step <= 0:
        return None
    if text in ("mrad", "rad"):
        scale = 1e-3 if text == "mrad" else 1.0
        return None if wavelength_m is None else wavelength_m / (size * step * scale)
    length = text.removeprefix("1/")
    for suffix in ("^-1", "^{-1}", "**-1", "⁻¹", "-1"):
        length = length.removesuffix(suffix)
    if length == text or length not in UNIT_FACTORS:
        return None
    return UNIT_FACTORS[length] / (size * step)


def make_electron_geometry(wavelength_m: float | None, side_m: float | None) -> Geometry:
    """Return the geometry of electrons with a square object pixel of ``side_m`` meters."""
    pair = None if side_m is None else (side_m, side_m)
    return Geometry(wavelength_m=wavelength_m, object_pixel_m=pair, radiation="electron")


def make_raster(
    shape: tuple[int, int], step: tuple[float, float] = (1.0, 1.0), rotation: float = 0.0
) -> NDArray[np.float64]:
    """Return the positions (row, column) of a raster scan, row after row.

    Args:
        shape: rows and columns of the scan.
        step: steps (y, x).
        rotation: angle in radians from the row axis to the column axis, about the first position.
    """
    rows, columns = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    y, x = rows * float(step[0]), columns * float(step[1])
    rotated = (y * math.cos(rotation) - x * math.sin(rotation), y * math.sin(rotation) + x * math.cos(rotation))
    return np.stack(rotated, 1)
