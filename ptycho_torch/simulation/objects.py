"""Test objects by name: complex transmissions whose amplitude and phase differ, so that cross-talk can be seen."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
Object = NDArray[np.complex128]
Shape = tuple[int, int]


def letters(shape: Shape, rng: np.random.Generator) -> Object:
    """Letters in the phase, cells and texture in the amplitude, and a slow phase across the field."""
    text = text_mask("PTY\nCHO", shape)
    cells = ellipse_field(shape, rng, count=24, smallest=0.02, largest=0.05)
    fine, slow = band_limited_noise(shape, rng, period=6), band_limited_noise(shape, rng, period=60)
    amplitude = 0.92 - 0.22 * cells - 0.08 * text + 0.025 * fine
    phase = 0.9 * text - 0.25 * cells + 0.05 * fine + 0.12 * slow
    return transmission(amplitude, phase)


def star(shape: Shape, rng: np.random.Generator) -> Object:
    """A Siemens star with one spoke missing, so that its orientation shows; texture on top."""
    rows, columns = centred_grid(shape)
    angle, radius = np.arctan2(rows, columns), np.hypot(rows, columns)
    spokes = 0.5 + 0.5 * np.tanh(4 * np.sin(18 * angle)) * np.tanh(radius * 60)
    spokes *= soft_step(0.26 - radius, shape) * soft_step(np.abs(angle - 0.7) - 0.18, shape)
    fine = band_limited_noise(shape, rng, period=6)
    return transmission(0.95 - 0.25 * spokes + 0.01 * fine, 0.8 * spokes + 0.03 * fine)


def cells(shape: Shape, rng: np.random.Generator) -> Object:
    """Overlapping smooth ellipses, different ones in amplitude and phase."""
    absorbing = ellipse_field(shape, rng, count=60, smallest=0.02, largest=0.08)
    bending = ellipse_field(shape, rng, count=60, smallest=0.02, largest=0.08)
    return transmission(1 - 0.3 * absorbing, 0.8 * bending)


def texture(shape: Shape, rng: np.random.Generator) -> Object:
    """Random fields without edges, of several lengths."""
    fields = [band_limited_noise(shape, rng, period) for period in (8, 20, 8, 20)]
    return transmission(0.85 + 0.04 * (fields[0] + fields[1]), 0.25 * (fields[2] + fields[3]))


def flat(shape: Shape, rng: np.random.Generator) -> Object:
    """Vacuum: the object that says nothing."""
    del rng
    return np.ones(shape, dtype=np.complex128)


OBJECTS: dict[str, Callable[[Shape, np.random.Generator], Object]] = {
    "letters": letters,
    "star": star,
    "cells": cells,
    "texture": texture,
    "flat": flat,
}
"""Each makes an object of ``shape`` (rows, columns), drawing from ``rng``."""


def transmission(amplitude: Field, phase: Field) -> Object:
    """The complex transmission of an amplitude and a phase in rad; the amplitude is kept within 0.3 and 1.1."""
    return np.clip(amplitude, 0.3, 1.1) * np.exp(1j * phase)


def centred_grid(shape: Shape) -> tuple[Field, Field]:
    """Row and column coordinates from the centre, in units of the shorter side."""
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in shape)
    return np.meshgrid(rows / min(shape), columns / min(shape), indexing="ij")


def soft_step(distance: Field, shape: Shape) -> Field:
    """0 where ``distance`` (in shorter sides) is negative and 1 where positive, over about two pixels."""
    return 0.5 + 0.5 * np.tanh(distance * min(shape))


def ellipse_field(shape: Shape, rng: np.random.Generator, count: int, smallest: float, largest: float) -> Field:
    """Ellipses with soft edges, 0 outside and up to 1 where they overlap; radii in shorter sides."""
    rows, columns = centred_grid(shape)
    field = np.zeros(shape)
    for _ in range(count):
        centre_y, centre_x = rng.uniform(-0.4, 0.4, 2)
        radii = rng.uniform(smallest, largest, 2)
        turn = rng.uniform(0, np.pi)
        y, x = rows - centre_y, columns - centre_x
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        reach = np.hypot(along / radii[0], across / radii[1])
        field += rng.uniform(0.4, 1.0) * soft_step((1 - reach) * radii.min(), shape)
    return np.tanh(field)


def band_limited_noise(shape: Shape, rng: np.random.Generator, period: float) -> Field:
    """A random field of unit variance without features shorter than about ``period`` pixels."""
    ky, kx = np.meshgrid(*(np.fft.fftfreq(side) for side in shape), indexing="ij")
    smooth = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * np.exp(-((ky**2 + kx**2) * period**2))).real
    smooth -= smooth.mean()
    return smooth / smooth.std()


def text_mask(text: str, shape: Shape) -> Field:
    """``text`` in the middle half of a picture of ``shape``, 1 on the letters and 0 beside them, edges smoothed."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath
    from scipy.ndimage import gaussian_filter

    font = FontProperties(family="DejaVu Sans", weight="bold")
    lines = text.split("\n")
    paths = [TextPath((0, 0), line, size=1.0, prop=font) for line in lines]
    mask = np.zeros(shape)
    oversampling = 4
    height = 0.5 * shape[0] / len(lines)
    for number, path in enumerate(paths):
        box = path.get_extents()
        scale = min(0.8 * height / box.height, 0.5 * shape[1] / box.width)
        middle_y = shape[0] / 2 + (number - (len(lines) - 1) / 2) * height
        sub = (np.arange(oversampling) + 0.5) / oversampling - 0.5
        for dy in sub:
            for dx in sub:
                rows, columns = np.meshgrid(np.arange(shape[0]) + dy, np.arange(shape[1]) + dx, indexing="ij")
                x = (columns - shape[1] / 2) / scale + (box.x0 + box.x1) / 2
                y = -(rows - middle_y) / scale + (box.y0 + box.y1) / 2  # letters stand upright in rows that go down
                points = np.stack([x.ravel(), y.ravel()], 1)
                # Even-odd over the outlines, so that the holes of P and O stay open.
                crossed = sum(Path(outline).contains_points(points).astype(int) for outline in path.to_polygons())
                inside = np.reshape(crossed, shape) % 2
                mask += inside / oversampling**2
    return np.asarray(gaussian_filter(np.minimum(mask, 1.0), 0.6))
