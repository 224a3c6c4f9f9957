"""The scan that every format stores, and the description of how a format stores it.

One asymmetric object, one asymmetric probe, 7 × 9 positions and Poisson counts, for even and odd N. A format adds its
cases to the list of ``test_all_formats.py`` from its own module ``cases_NAME.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.geometry import Geometry, compute_electron_wavelength, compute_photon_wavelength
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import save_scan

ROWS, COLUMNS = 7, 9
"""Positions of the scan along the row axis and along the column axis."""

STEP_PX = (2.5, 3.25)
"""Step (row, column) of the scan in object pixels."""

PHOTONS = 1e5
"""Mean photons per pattern."""

Kind = Literal["jittered", "raster"]


@dataclass(frozen=True, eq=False)
class Truth:
    """A simulated scan in the convention of the package."""

    size: int
    """N."""

    object: NDArray[np.complex128]
    """(rows, columns), without any symmetry."""

    probe: NDArray[np.complex128]
    """(1, N, N), without any symmetry, in square roots of photons per pixel of the exit wave."""

    positions: NDArray[np.float64]
    """(63, 2) (row, column) in pixels of ``object``: row by row, the column index runs fastest."""

    counts: NDArray[np.uint32]
    """(63, N, N) photons, zero frequency at [N//2, N//2]."""

    mask: NDArray[np.bool_]
    """(N, N), True where a pixel counts; the pixels [2, 5:9] do not."""

    geometry: Geometry

    @property
    def pixel_m(self) -> NDArray[np.float64]:
        """Sides (row, column) of an object pixel in meters."""
        return np.asarray(self.geometry.object_pixel_m)

    @property
    def positions_m(self) -> NDArray[np.float64]:
        """Positions in meters from the center of ``object[0, 0]``."""
        return self.positions * self.pixel_m

    def make_scan(self) -> Scan:
        """Return the scan with all that it holds."""
        return Scan(
            amplitudes=np.sqrt(self.counts).astype(np.float32),
            positions=self.positions,
            probe=self.probe.astype(np.complex64),
            mask=self.mask,
            truth=self.object.astype(np.complex64),
            photons_per_unit=1.0,
            geometry=self.geometry,
        )


@cache
def make_truth(size: int, kind: Kind = "jittered", electrons: bool = False, square_pixels: bool = True) -> Truth:
    """Simulate the scan.

    Args:
        size: N.
        kind: positions on an exact raster, or moved by up to 0.8 pixel each.
        electrons: 200 kV electrons with an object pixel of 0.3 Å, instead of 8 keV photons with 172 µm pixels at 2 m.
        square_pixels: False: detector pixels of 172 µm × 150 µm (y, x).
    """
    generator = np.random.default_rng(size)
    grid = np.stack(np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij"), -1).reshape(-1, 2)
    positions = grid * np.array(STEP_PX) + size // 2 + 2.0
    if kind == "jittered":
        positions = positions + generator.uniform(-0.8, 0.8, positions.shape)
    shape = (size + 22, size + 34)
    waves = [_smooth(generator.standard_normal(shape), 2.0) for _ in range(2)]
    obj = (1 + 0.4 * waves[0]) * np.exp(1.2j * waves[1])
    y, x = np.indices((size, size)) - size // 2
    probe = np.exp(-((y + 0.6) ** 2 / (0.022 * size**2) + (x - 0.9) ** 2 / (0.04 * size**2)))
    probe = probe * np.exp(1j * (0.5 * y + 0.06 * y * x + 0.05 * x**2)) * (1 + 0.3 * (y > x))
    probe = probe[None] * np.sqrt(PHOTONS / np.sum(np.abs(probe) ** 2))
    if electrons:
        geometry = Geometry(
            wavelength_m=compute_electron_wavelength(200e3), object_pixel_m=(0.3e-10, 0.3e-10), radiation="electron"
        )
    else:
        geometry = Geometry(
            wavelength_m=compute_photon_wavelength(8000.0),
            distance_m=2.0,
            detector_pixel_m=(172e-6, 172e-6 if square_pixels else 150e-6),
        ).complete(size)
    counts = generator.poisson(predict_counts(obj, probe, positions)).astype(np.uint32)
    mask = np.ones((size, size), bool)
    mask[2, 5:9] = False
    return Truth(size, obj, probe, positions, counts, mask, geometry)


def _smooth(noise: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Return ``noise`` after a Gaussian filter, with standard deviation 1."""
    frequencies = [np.fft.fftfreq(side) for side in noise.shape]
    squared = frequencies[0][:, None] ** 2 + frequencies[1][None] ** 2
    smooth = np.fft.ifft2(np.fft.fft2(noise) * np.exp(-2 * (np.pi * radius) ** 2 * squared)).real
    scaled: NDArray[np.float64] = (smooth - smooth.mean()) / smooth.std()
    return scaled


def predict_counts(obj: NDArray[Any], probe: NDArray[Any], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean photons (n, N, N) of probe modes (M, N, N) at positions (row, column) in object pixels.

    The object patch is cut at the nearest pixel; the probe is moved by the rest.
    """
    size = probe.shape[-1]
    whole = np.floor(positions + 0.5).astype(int)
    frequency = np.fft.fftfreq(size)
    spectrum = np.fft.fft2(probe)
    patterns = []
    for (row, column), (dy, dx) in zip(whole, positions - whole, strict=True):
        moved = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (frequency[:, None] * dy + frequency[None] * dx)))
        top, left = row - size // 2, column - size // 2
        patch = obj[top : top + size, left : left + size]
        patterns.append(np.sum(np.abs(np.fft.fft2(moved * patch, norm="ortho")) ** 2, 0))
    return np.fft.fftshift(np.asarray(patterns), axes=(1, 2))


def compute_misfit(
    counts: NDArray[Any], predicted: NDArray[np.float64], mask: NDArray[np.bool_] | None = None
) -> float:
    """Return the mean squared deviation in units of the variance of counting; about 1 for the right prediction."""
    kept = np.ones(counts.shape[1:], bool) if mask is None else mask
    deviation = (counts.astype(np.float64) - predicted) ** 2 / np.maximum(predicted, 1)
    return float(deviation[:, kept].mean())


ALL_GEOMETRY = ("wavelength_m", "distance_m", "detector_pixel_m", "object_pixel_m")


@dataclass(frozen=True)
class Case:
    """A way of storing the scan in a file."""

    name: str
    write: Callable[[Path, Truth], Path]
    """Writes the scan into an empty folder and returns the path that is read."""

    format: str = ""
    """Name of the format that the content of the file selects; empty: the first word of ``name``."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of reading; paths are relative to the folder of the file."""

    positions_name: str = ""
    """Name of the file of the positions beside the file that is read; empty: the format finds it."""

    probe: bool = True
    """The file holds the probe, up to a complex factor."""

    object: bool = True
    """The file holds the object, and the place of the positions on it."""

    mask: bool | int = True
    """The file holds the mask; a number is the width in pixels of a border that is masked instead."""

    geometry: tuple[str, ...] = ALL_GEOMETRY
    """Quantities of the geometry that are in the file or in ``settings``."""

    kind: Kind = "jittered"
    electrons: bool = False
    sizes: tuple[int, ...] = (16, 15)
    patterns_path: str = ""
    """Path of the patterns, ``FILE:/path`` or ``/path`` in the file that is read, for the tests of bad files; empty:
    not HDF5, or another file has them too."""

    positions_path: str = ""
    """Path of the positions, as ``patterns_path``."""

    def make_truth(self, size: int) -> Truth:
        """Return the scan that the file stores."""
        return make_truth(size, self.kind, self.electrons)

    def get_settings(self, path: Path) -> dict[str, Any]:
        """Return the settings of reading the file at ``path``."""
        added = {"positions_file": Path(self.positions_name)} if self.positions_name else {}
        settings = self.settings | added
        return {name: path.parent / each if isinstance(each, Path) else each for name, each in settings.items()}

    def make_mask(self, size: int) -> NDArray[np.bool_]:
        """Return the mask that the scan of the file has."""
        if self.mask is True:
            return self.make_truth(size).mask
        mask = np.zeros((size, size), bool)
        mask[self.mask : size - self.mask, self.mask : size - self.mask] = True
        return mask

    @property
    def format_name(self) -> str:
        """Name of the format."""
        return self.format or self.name.partition(" ")[0]


def save_as(name: str) -> Callable[[Path, Truth], Path]:
    """Return the writer of a case that :func:`~ptycho_torch.io.scan.save_scan` writes to a file ``name``."""

    def write(folder: Path, truth: Truth) -> Path:
        path = folder / name
        save_scan(path, truth.make_scan())
        return path

    return write
