"""Make the scans with known answers which the files of other programs hold.

Only NumPy is imported, because the module also runs in the environment of the other programs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PLANCK_TIMES_LIGHT_SPEED_EV_M = 1.23984198e-6
PHOTON_ENERGY_EV = 8000.0
DISTANCE_M = 2.0
DETECTOR_PIXEL_M = 172e-6
VOLTAGE_V = 200e3
ELECTRON_PIXEL_ANGSTROM = 0.3
SCAN_SHAPE = (7, 9)
PHOTONS_PER_PATTERN = 1e5
MARGIN_PIXELS = 4


@dataclass(frozen=True)
class Truth:
    """A scan and its answer: positions (y, x) in object pixels, as in `docs/conventions.md`."""

    obj: NDArray[np.complex128]  # (rows, columns)
    probe: NDArray[np.complex128]  # (side, side), its power is in photons
    positions: NDArray[np.float64]  # (n, 2)
    intensities: NDArray[np.float64]  # (n, side, side), zero frequency at [side // 2, side // 2]
    counts: NDArray[np.uint32]  # the same with Poisson noise

    @property
    def side(self) -> int:
        """Return the number of rows of a pattern."""
        return self.probe.shape[-1]

    @property
    def wavelength_m(self) -> float:
        """Return the wavelength of the photons."""
        return PLANCK_TIMES_LIGHT_SPEED_EV_M / PHOTON_ENERGY_EV

    @property
    def object_pixel_m(self) -> float:
        """Return the object pixel of the far field."""
        return self.wavelength_m * DISTANCE_M / (self.side * DETECTOR_PIXEL_M)

    @property
    def electron_wavelength_angstrom(self) -> float:
        """Return the relativistic wavelength of the electrons."""
        return 12.2643 / np.sqrt(VOLTAGE_V * (1 + 0.978476e-6 * VOLTAGE_V))

    @property
    def electron_detector_pixel_per_angstrom(self) -> float:
        """Return the detector pixel in reciprocal space."""
        return 1 / (self.side * ELECTRON_PIXEL_ANGSTROM)


def make_truth(side: int, layout: str = "jittered", seed: int = 14) -> Truth:
    """Make a scan of an asymmetric object with an asymmetric probe.

    Args:
        side: Rows and columns of a pattern.
        layout: "jittered" (non-integer positions), "integer" (the same, rounded: programs that round positions
            reproduce these patterns exactly) or "raster" (one non-integer step for both axes).
        seed: Seed of the object, the jitter and the counting noise.
    """
    rng = np.random.default_rng(seed)
    shape = (side + 58, side + 78)
    obj = make_object(shape, rng)
    probe = make_probe(side)
    positions = make_positions(shape, side, layout, rng)
    intensities = compute_intensities(obj, probe, positions)
    scale = PHOTONS_PER_PATTERN / intensities.sum((1, 2)).mean()
    intensities *= scale
    counts = rng.poisson(intensities).astype(np.uint32)
    return Truth(obj, probe * np.sqrt(scale), positions, intensities, counts)


def make_object(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.complex128]:
    """Make a smooth complex object without any symmetry, of amplitude 0.6 to 1 and phase -0.8 to 0.8."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    envelope = np.exp(-((frequency / 0.12) ** 2))
    noise = np.fft.ifft2(envelope * np.fft.fft2(rng.standard_normal((2, *shape))), axes=(-2, -1)).real
    low, high = noise.min((1, 2), keepdims=True), noise.max((1, 2), keepdims=True)
    amplitude, phase = (noise - low) / (high - low)
    return (0.6 + 0.4 * amplitude) * np.exp(1j * (1.6 * phase - 0.8))


def make_probe(side: int) -> NDArray[np.complex128]:
    """Make a defocused probe of three unequal spots, which no flip or transposition leaves unchanged."""
    rows, columns = np.meshgrid(np.arange(side) - side // 2, np.arange(side) - side // 2, indexing="ij")
    probe = np.zeros((side, side), complex)
    for row, column, width, weight in ((0, 0, 3.0, 1.0), (-5, 1, 2.0, 0.7), (2, 4, 1.8, 0.5j)):
        probe += weight * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
    return probe * np.exp(0.03j * rows**2 + 0.015j * columns**2 + 0.02j * rows * columns)


def make_positions(shape: tuple[int, int], side: int, layout: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Make the positions of 7 rows and 9 columns, row by row."""
    rows, columns = np.meshgrid(*(np.arange(count, dtype=float) for count in SCAN_SHAPE), indexing="ij")
    index = np.stack([rows.ravel(), columns.ravel()], axis=1)
    start = side // 2 + MARGIN_PIXELS
    if layout == "raster":
        return start + 7.7 * index
    steps = (np.array(shape) - side - 2 * MARGIN_PIXELS) / (np.array(SCAN_SHAPE) - 1)
    positions = start + steps * index + rng.uniform(-1.5, 1.5, index.shape)
    return np.round(positions) if layout == "integer" else positions


def compute_intensities(
    obj: NDArray[np.complex128], probe: NDArray[np.complex128], positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the far-field intensities by a literal reading of `docs/conventions.md`."""
    side = probe.shape[-1]
    corners = np.floor(positions - side // 2 + 0.5).astype(int)
    frequency = np.fft.fftfreq(side)
    result = np.empty((len(positions), side, side))
    for index, ((row, column), remainder) in enumerate(zip(corners, positions - side // 2 - corners, strict=True)):
        ramp = np.exp(-2j * np.pi * (frequency[:, None] * remainder[0] + frequency * remainder[1]))
        moved = np.fft.ifft2(np.fft.fft2(probe) * ramp)
        exit_wave = moved * obj[row : row + side, column : column + side]
        result[index] = np.abs(np.fft.fftshift(np.fft.fft2(exit_wave, norm="ortho"))) ** 2
    return result


def describe_geometry(truth: Truth, radiation: str) -> dict[str, float | None]:
    """Return the geometry of a truth for photons or for electrons."""
    if radiation == "electron":
        return {
            "object_pixel_m": ELECTRON_PIXEL_ANGSTROM * 1e-10,
            "wavelength_m": truth.electron_wavelength_angstrom * 1e-10,
            "distance_m": None,
            "detector_pixel_m": None,
        }
    return {
        "object_pixel_m": truth.object_pixel_m,
        "wavelength_m": truth.wavelength_m,
        "distance_m": DISTANCE_M,
        "detector_pixel_m": DETECTOR_PIXEL_M,
    }


def save_truth(path: Path, truth: Truth, facts: dict[str, object]) -> None:
    """Save the arrays of a truth (`path`, NPZ) and facts of its file (the same name with `.json`)."""
    np.savez_compressed(
        path,
        object=truth.obj,
        probe=truth.probe,
        positions_yx=truth.positions,
        counts=truth.counts,
        intensities=truth.intensities,
    )
    photons = float(truth.counts.sum((1, 2), dtype=np.int64).mean())
    path.with_suffix(".json").write_text(json.dumps({**facts, "photons_per_pattern": photons}, indent=1))
