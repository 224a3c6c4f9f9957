"""Test objects by name: complex transmissions whose amplitude and phase differ, so that cross-talk can be seen."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.simulation.image_primitives import (
    RealArray,
    Shape,
    compute_soft_step,
    draw_band_limited_noise,
    draw_ellipses,
    make_centered_grid,
    make_text_mask,
)
from ptycho_torch.simulation.photographs import load_photographs
from ptycho_torch.simulation.textures import TEXTURES

Object = NDArray[np.complex128]


def make_letters(shape: Shape, rng: np.random.Generator) -> Object:
    """Letters in the phase, cells and texture in the amplitude, and a slow phase across the field."""
    text = make_text_mask("PTY\nCHO", shape)
    cells = draw_ellipses(shape, rng, count=24, smallest=0.02, largest=0.05)
    fine, slow = draw_band_limited_noise(shape, rng, period=6), draw_band_limited_noise(shape, rng, period=60)
    amplitude = 0.92 - 0.22 * cells - 0.08 * text + 0.025 * fine
    phase = 0.9 * text - 0.25 * cells + 0.05 * fine + 0.12 * slow
    return make_transmission(amplitude, phase)


def make_star(shape: Shape, rng: np.random.Generator) -> Object:
    """A Siemens star with one spoke missing, so that its orientation shows; texture on top."""
    rows, columns = make_centered_grid(shape)
    angle, radius = np.arctan2(rows, columns), np.hypot(rows, columns)
    spokes = 0.5 + 0.5 * np.tanh(4 * np.sin(18 * angle)) * np.tanh(radius * 60)
    spokes *= compute_soft_step(0.26 - radius, shape) * compute_soft_step(np.abs(angle - 0.7) - 0.18, shape)
    fine = draw_band_limited_noise(shape, rng, period=6)
    return make_transmission(0.95 - 0.25 * spokes + 0.01 * fine, 0.8 * spokes + 0.03 * fine)


def make_cells(shape: Shape, rng: np.random.Generator) -> Object:
    """Overlapping smooth ellipses, different ones in amplitude and phase."""
    absorbing = draw_ellipses(shape, rng, count=60, smallest=0.02, largest=0.08)
    bending = draw_ellipses(shape, rng, count=60, smallest=0.02, largest=0.08)
    return make_transmission(1 - 0.3 * absorbing, 0.8 * bending)


def make_texture(shape: Shape, rng: np.random.Generator) -> Object:
    """Random fields without edges, of several lengths."""
    fields = [draw_band_limited_noise(shape, rng, period) for period in (8, 20, 8, 20)]
    return make_transmission(0.85 + 0.04 * (fields[0] + fields[1]), 0.25 * (fields[2] + fields[3]))


def make_flat(shape: Shape, rng: np.random.Generator) -> Object:
    """Vacuum: the object that says nothing."""
    del rng
    return np.ones(shape, dtype=np.complex128)


def make_transmission(amplitude: RealArray, phase: RealArray) -> Object:
    """The complex transmission of an amplitude and a phase in rad; the amplitude is kept within 0.3 and 1.1."""
    return np.clip(amplitude, 0.3, 1.1) * np.exp(1j * phase)


def draw_transmission(images: NDArray[np.float32], rng: np.random.Generator) -> Object:
    """The transmission of a thing that looks like ``pictures`` (2, rows, columns), with a contrast that is drawn.

    Amplitudes lie between 0 and 1, phases between ±π. A third of the draws is faint (phases within ±½, at most 30 %
    of the amplitude taken away), a third is strong (phases over more than half a turn, down to no amplitude), and the
    rest has anything between. At least a twentieth of the light goes through.
    """
    kind = rng.integers(0, 3)
    depth = rng.uniform(*((0.05, 0.3), (0.0, 1.0), (0.6, 1.0))[kind])
    span = rng.uniform(*((0.3, 1.0), (0.3, np.pi), (np.pi, 2 * np.pi))[kind])
    absorption, thickness = (picture if rng.random() < 0.5 else 1 - picture for picture in images)
    amplitude = 1 - np.float32(depth) * absorption
    if np.square(amplitude).mean() < 0.05:
        amplitude = 1 - np.float32(depth) * (1 - absorption)
    phase = np.float32(span) * (thickness - np.float32(0.5))
    obj = np.empty(amplitude.shape, dtype=np.complex128)
    obj.real, obj.imag = amplitude * np.cos(phase), amplitude * np.sin(phase)  # much faster than a complex exponential
    return obj


def make_texture_sampler(name: str) -> Callable[[Shape, np.random.Generator], Object]:
    """Objects of the family ``name`` of :data:`~ptycho_torch.simulation.textures.TEXTURES`."""
    return lambda shape, rng: draw_transmission(TEXTURES[name](shape, rng), rng)


def draw_photographs(shape: Shape, rng: np.random.Generator) -> Object:
    """Natural pictures, read anew for each object; a stream keeps them."""
    return draw_transmission(load_photographs().draw_images(shape, rng), rng)


FIXED_OBJECTS: dict[str, Callable[[Shape, np.random.Generator], Object]] = {
    "letters": make_letters,
    "star": make_star,
    "cells": make_cells,
    "texture": make_texture,
    "flat": make_flat,
}
"""Objects that look the same in every draw but for details, with amplitudes from 0.3 to 1.1 and no phase that wraps."""

RANDOM_OBJECTS: dict[str, Callable[[Shape, np.random.Generator], Object]] = {
    **{name: make_texture_sampler(name) for name in TEXTURES},
    "photographs": draw_photographs,
}
"""Families for pretraining, different in every draw, with amplitudes from 0 to 1 and phases over ±π."""

OBJECTS = {**FIXED_OBJECTS, **RANDOM_OBJECTS}
"""Each makes an object of ``shape`` (rows, columns), drawing from ``rng``."""
