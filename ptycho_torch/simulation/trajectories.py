"""Scan positions by name, centered on the origin, in pixels."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.float64]


def make_grid(count: int, step: float, jitter: float, rng: np.random.Generator) -> Positions:
    """Make a square grid with spacing ``step``, row by row; the last row may be short. Jitter is ignored."""
    del jitter, rng
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    positions = np.stack([y.ravel(), x.ravel()], 1)[:count].astype(np.float64)
    return (positions - [(rows - 1) / 2, (columns - 1) / 2]) * step


def make_raster(count: int, step: float, jitter: float, rng: np.random.Generator) -> Positions:
    """Make a grid with random displacements of up to ``jitter`` steps along each axis.

    The displacements break the periodicity, which would leave a lattice artifact in the reconstructed object.
    """
    return make_grid(count, step, 0.0, rng) + rng.uniform(-jitter, jitter, (count, 2)) * step


def make_spiral(count: int, step: float, jitter: float, rng: np.random.Generator) -> Positions:
    """Make a Fermat spiral (Huang et al., Opt. Express 22, 12634 (2014)) with one position per ``step``² of area."""
    number = np.arange(count)
    angle = number * np.pi * (3 - np.sqrt(5))
    radius = step / np.sqrt(np.pi) * np.sqrt(number)
    positions = np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1)
    return positions + rng.uniform(-jitter, jitter, (count, 2)) * step


def draw_scattered(count: int, step: float, jitter: float, rng: np.random.Generator) -> Positions:
    """Draw independent uniform positions in a square, on average one per ``step``² of area."""
    del jitter
    return rng.uniform(-0.5, 0.5, (count, 2)) * step * np.sqrt(count)


TRAJECTORIES: dict[str, Callable[[int, float, float, np.random.Generator], Positions]] = {
    "raster": make_raster,
    "spiral": make_spiral,
    "grid": make_grid,
    "scattered": draw_scattered,
}
"""Functions that make (count, 2) positions (y, x) around the origin, about ``step`` pixels apart."""
