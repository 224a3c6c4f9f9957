"""Geometry of an experiment: wavelength, distance and pixel sizes, in SI units."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from ptycho_torch.core.errors import ConfigError, DataError

PLANCK_TIMES_LIGHT_SPEED_J_M = 1.98644586e-25
"""Planck constant times speed of light (CODATA 2018)."""

ELEMENTARY_CHARGE_C = 1.602176634e-19
"""Elementary charge (exact, SI 2019); one electronvolt in joules."""

ELECTRON_WAVELENGTH_M_SQRT_V = 12.2642597e-10
"""h / sqrt(2 m e) for electrons."""

ELECTRON_RELATIVISTIC_PER_V = 0.978476e-6
"""e / (2 m c²) for electrons."""

MAX_PIXEL_MISMATCH = 0.01
"""Largest relative difference of a stored object pixel from wavelength × distance / (N × detector pixel)."""

GEOMETRY_KEYS = ("geometry", "pixel_size")
"""Entries of the metadata of a scan file that give the geometry."""

Propagation = Literal["far_field", "near_field"]
Radiation = Literal["photon", "electron"]


def compute_photon_wavelength(energy_ev: float) -> float:
    """Return the wavelength in meters of photons of ``energy_ev`` electronvolts."""
    return PLANCK_TIMES_LIGHT_SPEED_J_M / (energy_ev * ELEMENTARY_CHARGE_C)


def compute_electron_wavelength(voltage_v: float) -> float:
    """Return the relativistic wavelength in meters of electrons accelerated by ``voltage_v`` volts.

    λ = h / sqrt(2 m e V (1 + e V / 2 m c²)), as in Reimer and Kohl, Transmission Electron Microscopy, eq. 2.12.
    """
    return ELECTRON_WAVELENGTH_M_SQRT_V / math.sqrt(voltage_v * (1 + ELECTRON_RELATIVISTIC_PER_V * voltage_v))


class GeometryError(DataError):
    """A quantity of a geometry that is not a positive finite number; the reader of its file adds the name."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Geometry of an experiment in SI units; None where a quantity is unknown.

    Args:
        wavelength_m: wavelength in meters.
        distance_m: distance from object to detector in meters.
        detector_pixel_m: sides (y, x) of a pixel of the patterns in meters.
        object_pixel_m: sides (y, x) of an object pixel in meters.
        propagation: ``far_field`` or ``near_field``.
        radiation: ``photon`` or ``electron``.

    Raises:
        GeometryError: a quantity is not a positive finite number.
    """

    wavelength_m: float | None = None
    distance_m: float | None = None
    detector_pixel_m: tuple[float, float] | None = None
    object_pixel_m: tuple[float, float] | None = None
    propagation: Propagation = "far_field"
    radiation: Radiation = "photon"

    def __post_init__(self) -> None:
        for name in ("wavelength_m", "distance_m"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _require_length(name, value))
        for name in ("detector_pixel_m", "object_pixel_m"):
            pair = getattr(self, name)
            if pair is not None:
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    raise GeometryError(f"geometry: {name} is {pair!r}; expected two lengths (y, x) in meters")
                object.__setattr__(self, name, tuple(_require_length(name, side) for side in pair))
        if self.propagation not in ("far_field", "near_field") or self.radiation not in ("photon", "electron"):
            raise GeometryError(
                f"geometry: propagation is {self.propagation!r} and radiation {self.radiation!r}; expected far_field "
                "or near_field, and photon or electron"
            )

    @property
    def energy_ev(self) -> float | None:
        """Photon energy in electronvolts; None if it is unknown, and for electrons."""
        if self.wavelength_m is None or self.radiation != "photon":
            return None
        return PLANCK_TIMES_LIGHT_SPEED_J_M / (self.wavelength_m * ELEMENTARY_CHARGE_C)

    @property
    def mean_object_pixel_m(self) -> float | None:
        """Geometric mean of the sides of an object pixel in meters; None: unknown."""
        return None if self.object_pixel_m is None else math.sqrt(self.object_pixel_m[0] * self.object_pixel_m[1])

    def compute_far_field_pixel(self, size: int) -> tuple[float, float] | None:
        """Return the sides (y, x) of an object pixel, wavelength × distance / (N × detector pixel), in meters.

        Args:
            size: N, side of a pattern in pixels.

        Returns:
            None if one of the quantities is unknown.
        """
        if self.wavelength_m is None or self.distance_m is None or self.detector_pixel_m is None:
            return None
        product = self.wavelength_m * self.distance_m / size
        return product / self.detector_pixel_m[0], product / self.detector_pixel_m[1]

    def complete(self, size: int) -> Self:
        """Return the geometry with the object pixel of patterns of ``size`` pixels, if it can be computed.

        A stored object pixel has priority over the computed one.
        """
        if self.object_pixel_m is not None or self.propagation == "near_field":
            return self
        return replace(self, object_pixel_m=self.compute_far_field_pixel(size))

    def scale_pixels(self, object_factor: float = 1.0, detector_factor: float = 1.0) -> Self:
        """Return the geometry with object and detector pixels enlarged by the factors."""

        def scale(pair: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
            return None if pair is None else (pair[0] * factor, pair[1] * factor)

        return replace(
            self,
            object_pixel_m=scale(self.object_pixel_m, object_factor),
            detector_pixel_m=scale(self.detector_pixel_m, detector_factor),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the known quantities by name, as values of JSON."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return the geometry that :meth:`to_dict` wrote; unknown names are passed over.

        Raises:
            GeometryError: ``values`` is not a mapping, or holds an invalid quantity.
        """
        if not isinstance(values, dict):
            raise GeometryError(f"geometry is {type(values).__name__}; expected an object of names and values")
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None})


def _require_length(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise GeometryError(f"geometry: {name} is {value!r}; expected a positive finite length in meters")
    return float(value)


def make_wavelength(
    wavelength: float | None, energy_ev: float | None, voltage_kv: float | None
) -> tuple[float | None, Radiation | None]:
    """Return the wavelength in meters and the radiation that at most one of three settings gives.

    Args:
        wavelength: wavelength in meters.
        energy_ev: photon energy in electronvolts.
        voltage_kv: acceleration voltage of electrons in kilovolts.

    Raises:
        ConfigError: more than one is given.
    """
    given = {"wavelength": wavelength, "energy_ev": energy_ev, "voltage_kv": voltage_kv}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(f'`{name}`' for name in names)} are given; expected one of them")
    if wavelength is not None:
        return wavelength, None
    if energy_ev is not None:
        return compute_photon_wavelength(energy_ev), "photon"
    if voltage_kv is not None:
        return compute_electron_wavelength(voltage_kv * 1e3), "electron"
    return None, None


def read_geometry(metadata: dict[str, Any]) -> Geometry | None:
    """Return the geometry that the metadata of a scan file give; None if they give none.

    Files of earlier versions hold the object pixel alone, as ``pixel_size`` of the metadata or of their entry
    ``converted``.

    Raises:
        GeometryError: the entry ``geometry`` is invalid.
    """
    if metadata.get("geometry") is not None:
        return Geometry.from_dict(metadata["geometry"])
    converted = metadata.get("converted")
    for source in (metadata, converted if isinstance(converted, dict) else {}):
        side = source.get("pixel_size")
        if isinstance(side, int | float) and not isinstance(side, bool) and 0 < side < math.inf:
            return Geometry(object_pixel_m=(float(side), float(side)))
    return None
