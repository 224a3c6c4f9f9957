"""Random textures for the objects of pretraining.

Each function draws two images of ``shape``, (2, rows, columns) float32 from 0 to 1, for amplitude and phase. They are
equal, related or independent at random; no image has structure finer than about two pixels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.simulation.image_primitives import (
    Shape,
    blur_image,
    draw_power_law_noise,
    paint_labels,
    paint_polygons,
)

ImagePair = NDArray[np.float32]

MAX_POLYGON_CORNERS = 20
"""Number of corners of a polygon that approximates a disk."""


def draw_dead_leaves(shape: Shape, rng: np.random.Generator) -> ImagePair:
    """Draw a dead-leaves image: opaque disks, ellipses and polygons that hide each other, with power-law radii.

    The model describes the statistics of natural scenes: Lee, Mumford & Huang, Int. J. Comput. Vis. 41, 35 (2001). The
    exponent, the covered area and the roundness are random; sparse draws leave part of the background uncovered.
    """
    side = min(shape)
    low, high, power = rng.uniform(1.5, 4), rng.uniform(0.06, 0.25) * side, rng.uniform(1.2, 3.2)
    # More radii than needed; the covered area limits their number.
    radii = draw_power_law(rng, 500, low, high, power)
    cover = np.cumsum(np.pi * radii**2) / (shape[0] * shape[1])
    count = int(np.clip(np.searchsorted(cover, rng.uniform(0.4, 3.5)), 12, 500))
    round_share = rng.choice([0.0, 0.5, 1.0])
    counts = np.where(rng.random(count) < round_share, MAX_POLYGON_CORNERS, rng.integers(3, 8, count))
    corners = draw_polygons(radii[:count], counts, shape, rng)
    return blur_randomly(paint_polygons(corners, counts, draw_gray_levels(count + 1, rng), shape), rng)


def draw_bars(shape: Shape, rng: np.random.Generator) -> ImagePair:
    """Draw groups of parallel bars, as on a resolution target, with random period, angle and gray values per group."""
    groups = int(rng.integers(8, 25) * max(0.5, shape[0] * shape[1] / 150**2))
    width = np.exp(rng.uniform(np.log(1.5), np.log(12), groups))
    length, rotation = width * rng.uniform(4, 12, groups), rng.uniform(0, np.pi, groups)
    if rng.random() < 0.5:  # a target that is aligned with its edges
        rotation = rotation[0] * rng.integers(0, 2) * np.ones(groups) + rng.integers(0, 2, groups) * np.pi / 2
    members = rng.integers(2, 7, groups)
    group = np.repeat(np.arange(groups), members)
    number = np.concatenate([np.arange(count) - (count - 1) / 2 for count in members])
    along = length[group, None] / 2 * np.array([-1, 1, 1, -1])
    across = width[group, None] * (2 * number[:, None] + np.array([-0.5, -0.5, 0.5, 0.5]))
    cos, sin = np.cos(rotation)[group, None], np.sin(rotation)[group, None]
    middle = rng.uniform(0, 1, (groups, 2)) * shape
    corners = np.stack([along * sin + across * cos, along * cos - across * sin], -1) + middle[group, None]
    if rng.random() < 0.5:  # all bars of one material
        palette = draw_gray_levels(2, rng)[:, np.append(0, np.ones(len(group), dtype=np.int64))]
    else:
        palette = draw_gray_levels(groups + 1, rng)[:, np.append(0, group + 1)]
    return blur_randomly(paint_polygons(corners, np.full(len(group), 4), palette, shape), rng)


def draw_gratings(shape: Shape, rng: np.random.Generator) -> ImagePair:
    """Draw a patchwork of line gratings, from sine to square waves, with periods of 3 to 40 pixels."""
    count = int(rng.integers(1, 20))
    radii, counts = rng.uniform(0.15, 0.45) * min(shape) * np.ones(count), np.full(count, MAX_POLYGON_CORNERS)
    labels = paint_labels(draw_polygons(radii, counts, shape, rng), counts, shape)
    period = np.exp(rng.uniform(np.log(3), np.log(40), count + 1))
    rotation, start = rng.uniform(0, np.pi, count + 1), rng.uniform(0, 2 * np.pi, count + 1)
    sharpness = np.exp(rng.uniform(np.log(0.3), np.log(4), count + 1)) * np.clip((period - 2) / 4, 0.1, 1)
    rows, columns = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)[None, :]
    down, across = (
        (2 * np.pi / period * part).astype(np.float32)[labels] for part in (np.sin(rotation), np.cos(rotation))
    )
    wave = np.sin(down * rows + across * columns + start.astype(np.float32)[labels])
    sharp = sharpness.astype(np.float32)[labels]
    image = 0.5 + 0.5 * np.tanh(sharp * wave) / np.tanh(sharp)
    low, high = np.split(draw_gray_levels(2 * count + 2, rng).astype(np.float32), 2, axis=1)
    mixed = low[:, labels] * (1 - image) + high[:, labels] * image
    return blur_randomly(mixed.astype(np.float32), rng)


def draw_lines(shape: Shape, rng: np.random.Generator) -> ImagePair:
    """Draw many thin straight lines of random width and gray value, summed and blurred; the phase equals the amplitude.

    The images resemble the "lines" test objects of PtychoPINN: lines blurred by 1, 5 and 10 pixels and summed.
    """
    from scipy.fft import irfft2, next_fast_len, rfft2

    layers, count, side = 2, int(rng.integers(10, 80)), max(shape)
    padded = tuple(next_fast_len(extent + 16, real=True) for extent in shape)  # padding against periodic wrapping
    spot = np.arange(2 * side, dtype=np.float64) - side  # along a line, in pixels
    rotation = rng.uniform(0, np.pi, (layers, count, 1))
    middle = rng.uniform(0, 1, (layers, count, 2, 1)) * np.reshape(shape, (2, 1))
    y, x = middle[:, :, 0] + np.sin(rotation) * spot, middle[:, :, 1] + np.cos(rotation) * spot
    gray = np.broadcast_to(rng.uniform(0.2, 1, (layers, count, 1)), y.shape)
    row, column = np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)
    inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    layer = np.broadcast_to(np.arange(layers)[:, None, None], y.shape)
    place = (layer * padded[0] + row) * padded[1] + column
    drawn = np.bincount(place[inside], gray[inside], layers * padded[0] * padded[1]).reshape(layers, *padded)
    ky, kx = np.fft.fftfreq(padded[0])[:, None], np.fft.rfftfreq(padded[1])[None, :]
    squared = -2 * (np.pi**2) * (ky**2 + kx**2)
    widths = np.array([[rng.uniform(0.8, 1.2), 5, 10], [rng.uniform(1.5, 3), 5, 10]])
    blur = sum(
        weight * np.exp(squared * widths[:, part, None, None] ** 2)
        for part, weight in enumerate((1, rng.uniform(0, 2), rng.uniform(0, 5)))
    )
    summed = irfft2((rfft2(drawn) * blur).sum(0), s=padded)[: shape[0], : shape[1]]
    summed = np.clip(summed, 0, np.quantile(summed[::4, ::4], 0.998))
    return np.repeat((summed / max(summed.max(), 1e-12)).astype(np.float32)[None], 2, 0)


def draw_clouds(shape: Shape, rng: np.random.Generator) -> ImagePair:
    """Draw random fields with power-law Fourier amplitudes, from fine to coarse; some with edges.

    A steep gray-value curve turns a field into two materials with soft edges, as in a porous sample.
    """
    steep = np.exp(rng.uniform(np.log(0.5), np.log(6)))
    powers = rng.uniform(0.7, 2.3, 2)
    fields = np.stack([draw_power_law_noise(shape, rng, power) for power in powers])
    if rng.random() < 0.3:
        fields[1] = fields[0]
    return blur_randomly((0.5 + 0.5 * np.tanh(steep * fields)).astype(np.float32), rng)


def draw_spokes(shape: Shape, rng: np.random.Generator) -> ImagePair:
    """Draw a Siemens star at a random center, with rings; spokes finer than three pixels fade."""
    rows, columns = (
        np.arange(side, dtype=np.float32) - np.float32(side * place)
        for side, place in zip(shape, rng.uniform(0.1, 0.9, 2), strict=True)
    )
    y, x = rows[:, None], columns[None, :]
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    count, start = int(rng.integers(6, 40)), rng.uniform(0, 2 * np.pi)
    period = np.float32(2 * np.pi / count) * radius
    wave = np.tanh(np.sin(count * angle + np.float32(start)) * np.clip(period / 3, 0, 6)) * np.clip(period - 2, 0, 1)
    if rng.random() < 0.6:
        ring = np.float32(min(shape) * rng.uniform(0.06, 0.3))
        band = np.mod(radius / ring, 1) - np.float32(0.5)
        gap = np.clip((np.abs(band) - np.float32(rng.uniform(0.05, 0.4))) * ring + 0.5, 0, 1)
        wave = (wave + 1) * gap - 1
    wave = np.where(radius > min(shape) * rng.uniform(0.4, 1.2), np.float32(-1), wave)
    low, high = np.split(draw_gray_levels(2, rng).astype(np.float32), 2, axis=1)
    image = 0.5 + 0.5 * wave
    mixed = low[..., None] * (1 - image) + high[..., None] * image
    return blur_randomly(mixed.astype(np.float32), rng)


TEXTURES: dict[str, Callable[[Shape, np.random.Generator], ImagePair]] = {
    "dead_leaves": draw_dead_leaves,
    "bars": draw_bars,
    "gratings": draw_gratings,
    "lines": draw_lines,
    "clouds": draw_clouds,
    "spokes": draw_spokes,
}
"""Functions that draw the images of an amplitude and a phase."""


def draw_power_law(rng: np.random.Generator, count: int, low: float, high: float, power: float) -> NDArray[np.float64]:
    """Draw ``count`` numbers x from ``low`` to ``high`` with density ∝ x^(−``power``), for a power other than 1."""
    edges = low ** (1 - power), high ** (1 - power)
    return (edges[0] + rng.random(count) * (edges[1] - edges[0])) ** (1 / (1 - power))


def draw_polygons(
    radii: NDArray[np.float64], counts: NDArray[np.int64], shape: Shape, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the corners (n, MAX_POLYGON_CORNERS, 2) of polygons in randomly placed and rotated ellipses of ``radii``."""
    count = len(radii)
    squeeze, rotation = rng.uniform(0.4, 1, (count, 1)), rng.uniform(0, np.pi, (count, 1))
    angle = 2 * np.pi * np.arange(MAX_POLYGON_CORNERS) / counts[:, None] + rng.uniform(0, 2 * np.pi, (count, 1))
    long, short = radii[:, None] * np.cos(angle), radii[:, None] * squeeze * np.sin(angle)
    offsets = np.stack(
        [long * np.cos(rotation) - short * np.sin(rotation), long * np.sin(rotation) + short * np.cos(rotation)], -1
    )
    return rng.uniform(-0.05, 1.05, (count, 1, 2)) * shape + offsets


def draw_gray_levels(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw gray values (2, ``count``) from 0 to 1 for two images, independent or related between the images.

    In each image the smallest value is 0 and the largest 1; no image is uniform.
    """
    both = rng.uniform(0, 1, (2, count))
    share = rng.choice([0.0, 0.0, rng.uniform(0, 1), 1.0])
    both[1] = share * both[0] + (1 - share) * both[1]
    both -= both.min(1, keepdims=True)
    return both / both.max(1, keepdims=True)


def blur_randomly(images: NDArray[np.float32], rng: np.random.Generator) -> ImagePair:
    """Return the images blurred by a random width of 0.4 to 1.2 pixels and clipped to 0 to 1."""
    return np.clip(blur_image(images, rng.uniform(0.4, 1.2)), 0, 1)
