"""Test objects by name: complex transmissions with different amplitude and phase, which reveals cross-talk."""

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
    """Make letters in the phase, cells and texture in the amplitude, and a slowly varying phase."""
    text = make_text_mask("PTY\nCHO", shape)
    cells = draw_ellipses(shape, rng, count=24, smallest=0.02, largest=0.05)
    fine, slow = draw_band_limited_noise(shape, rng, period=6), draw_band_limited_noise(shape, rng, period=60)
    amplitude = 0.92 - 0.22 * cells - 0.08 * text + 0.025 * fine
    phase = 0.9 * text - 0.25 * cells + 0.05 * fine + 0.12 * slow
    return make_transmission(amplitude, phase)


def make_star(shape: Shape, rng: np.random.Generator) -> Object:
    """Make a Siemens star with a missing spoke, which shows its orientation, and texture."""
    rows, columns = make_centered_grid(shape)
    angle, radius = np.arctan2(rows, columns), np.hypot(rows, columns)
    spokes = 0.5 + 0.5 * np.tanh(4 * np.sin(18 * angle)) * np.tanh(radius * 60)
    spokes *= compute_soft_step(0.26 - radius, shape) * compute_soft_step(np.abs(angle - 0.7) - 0.18, shape)
    fine = draw_band_limited_noise(shape, rng, period=6)
    return make_transmission(0.95 - 0.25 * spokes + 0.01 * fine, 0.8 * spokes + 0.03 * fine)


def make_cells(shape: Shape, rng: np.random.Generator) -> Object:
    """Make overlapping smooth ellipses, independent in amplitude and phase."""
    absorbing = draw_ellipses(shape, rng, count=60, smallest=0.02, largest=0.08)
    refracting = draw_ellipses(shape, rng, count=60, smallest=0.02, largest=0.08)
    return make_transmission(1 - 0.3 * absorbing, 0.8 * refracting)


def make_texture(shape: Shape, rng: np.random.Generator) -> Object:
    """Make random fields without edges, of several correlation lengths."""
    fields = [draw_band_limited_noise(shape, rng, period) for period in (8, 20, 8, 20)]
    return make_transmission(0.85 + 0.04 * (fields[0] + fields[1]), 0.25 * (fields[2] + fields[3]))


def make_flat(shape: Shape, rng: np.random.Generator) -> Object:
    """Make vacuum, a transmission of 1."""
    del rng
    return np.ones(shape, dtype=np.complex128)


def make_transmission(amplitude: RealArray, phase: RealArray) -> Object:
    """Return the complex transmission of an amplitude, clipped to 0.3 to 1.1, and a phase in rad."""
    return np.clip(amplitude, 0.3, 1.1) * np.exp(1j * phase)


def draw_transmission(images: NDArray[np.float32], rng: np.random.Generator) -> Object:
    """Draw a transmission with the structure of two images and a random contrast.

    Amplitudes lie between 0 and 1, phases between ±π. A third of the draws is weak (phases within ±½ rad, amplitudes
    reduced by at most 30 %), a third is strong (a phase range above π, amplitudes down to 0), and the rest covers the
    full range. At least 5 % of the intensity is transmitted.

    Args:
        images: (2, rows, columns) from 0 to 1, for amplitude and phase.
        rng: random generator.
    """
    kind = rng.integers(0, 3)
    depth = rng.uniform(*((0.05, 0.3), (0.0, 1.0), (0.6, 1.0))[kind])
    span = rng.uniform(*((0.3, 1.0), (0.3, np.pi), (np.pi, 2 * np.pi))[kind])
    absorption, thickness = (image if rng.random() < 0.5 else 1 - image for image in images)
    amplitude = 1 - np.float32(depth) * absorption
    if np.square(amplitude).mean() < 0.05:
        amplitude = 1 - np.float32(depth) * (1 - absorption)
    phase = np.float32(span) * (thickness - np.float32(0.5))
    obj = np.empty(amplitude.shape, dtype=np.complex128)
    obj.real, obj.imag = amplitude * np.cos(phase), amplitude * np.sin(phase)  # much faster than a complex exponential
    return obj


def make_texture_sampler(name: str) -> Callable[[Shape, np.random.Generator], Object]:
    """Return a function that draws objects of family ``name`` of :data:`~ptycho_torch.simulation.textures.TEXTURES`."""
    return lambda shape, rng: draw_transmission(TEXTURES[name](shape, rng), rng)


def draw_photographs(shape: Shape, rng: np.random.Generator) -> Object:
    """Draw an object from photographs, which are read for each object; a :class:`SimulatedDataset` caches them."""
    return draw_transmission(load_photographs().draw_images(shape, rng), rng)


FIXED_OBJECTS: dict[str, Callable[[Shape, np.random.Generator], Object]] = {
    "letters": make_letters,
    "star": make_star,
    "cells": make_cells,
    "texture": make_texture,
    "flat": make_flat,
}
"""Objects that differ between draws only in details, with amplitudes from 0.3 to 1.1 and phases that do not wrap."""

RANDOM_OBJECTS: dict[str, Callable[[Shape, np.random.Generator], Object]] = {
    **{name: make_texture_sampler(name) for name in TEXTURES},
    "photographs": draw_photographs,
}
"""Families for pretraining that differ in every draw, with amplitudes from 0 to 1 and phases within ±π."""

OBJECTS = {**FIXED_OBJECTS, **RANDOM_OBJECTS}
"""Functions that make an object of ``shape`` (rows, columns) from a random generator."""
