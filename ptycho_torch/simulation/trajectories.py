"""Scan positions by name, about the origin, in pixels."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.float64]


def make_grid(count: int, step: float, jitter: float, rng: np.random.Generator) -> Positions:
    """Rows and columns ``step`` apart, about as many of each, row by row; the last row may be short. No jitter."""
    del jitter, rng
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    positions = np.stack([y.ravel(), x.ravel()], 1)[:count].astype(np.float64)
    return (positions - [(rows - 1) / 2, (columns - 1) / 2]) * step


def make_raster(count: int, step: float, jitter: float, rng: np.random.Generator) -> Positions:
    """The grid with each position displaced at random by up to ``jitter`` steps in each direction.

    The displacement breaks the periodicity that leaves a lattice in the picture.
    """
    return make_grid(count, step, 0.0, rng) + rng.uniform(-jitter, jitter, (count, 2)) * step


def make_spiral(count: int, step: float, jitter: float, rng: np.random.Generator) -> Positions:
    """A Fermat spiral (Huang et al., Opt. Express 22, 12634 (2014)) with one position for each ``step``² of area."""
    number = np.arange(count)
    angle = number * np.pi * (3 - np.sqrt(5))
    radius = step / np.sqrt(np.pi) * np.sqrt(number)
    positions = np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1)
    return positions + rng.uniform(-jitter, jitter, (count, 2)) * step


def draw_scattered(count: int, step: float, jitter: float, rng: np.random.Generator) -> Positions:
    """Anywhere in a square, independently, with one position for each ``step``² of area on average."""
    del jitter
    return rng.uniform(-0.5, 0.5, (count, 2)) * step * np.sqrt(count)


TRAJECTORIES: dict[str, Callable[[int, float, float, np.random.Generator], Positions]] = {
    "raster": make_raster,
    "spiral": make_spiral,
    "grid": make_grid,
    "scattered": draw_scattered,
}
"""Each makes (count, 2) positions (y, x) about the origin, ``step`` pixels apart."""
