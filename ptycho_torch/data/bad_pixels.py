"""Defective detector pixels, found from the values of all frames: dark, constant, saturated and hot pixels."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.detector import compute_near_limit

Mask = NDArray[np.bool_]

MIN_FRAMES = 10
"""Smallest number of frames that distinguish a defective pixel from a pixel that happens to be dark or constant."""

MAX_ACTIVE_FRACTION = 0.005
"""Largest fraction of the frames in which a dark pixel is not zero."""

MIN_ACTIVE_FRAMES = 60
"""Smallest number of frames in which the neighbors of dark pixels are not zero (median over the neighbors)."""

MIN_SATURATED_FRACTION = 0.1
"""Smallest fraction of the frames in which a saturated pixel has its largest value."""

MIN_SATURATION_LEVEL = 60
"""Smallest level of saturation in units of the smallest positive value; smaller counts coincide by chance."""

HOT_PIXEL_RATIO = 20.0
"""Smallest ratio of the mean of a hot pixel to the largest mean of its eight neighbors."""

MAX_PROPOSED_FRACTION = 0.4
"""Largest fraction of the pixels in a proposed mask; more pixels than these are no defect of single pixels."""


@dataclass(frozen=True)
class BadPixels:
    """Defective pixels of a detector, each (rows, columns), True where defective."""

    dark: Mask
    """Zero in nearly all frames, next to pixels that are not: dead pixels, gaps and beam stops."""

    constant: Mask
    """The same value above zero in all frames, while other pixels vary."""

    saturated: Mask
    """The pixel's largest value in many frames."""

    hot: Mask
    """Far brighter than all neighbors."""

    @property
    def combined(self) -> Mask:
        """Pixels with any defect."""
        return self.dark | self.constant | self.saturated | self.hot

    def describe(self) -> str:
        """Return number, kind and first place of the defective pixels; empty without any."""
        parts = []
        for field in fields(self):
            pixels: Mask = getattr(self, field.name)
            number = int(pixels.sum())
            if number:
                row, column = np.argwhere(pixels)[0].tolist()
                parts.append(f"{number} {field.name} (the first at [{row}, {column}])")
        return ", ".join(parts)


def find_bad_pixels(
    frames: NDArray[Any], mask: Mask | None = None, probe_pattern: NDArray[Any] | None = None
) -> BadPixels:
    """Find defective pixels among the pixels that count.

    Args:
        frames: (n, rows, columns) counts; finite where the mask is True.
        mask: (rows, columns) or (n, rows, columns) True where a pixel counts. A pixel that is masked in any frame is
            not examined.
        probe_pattern: (rows, columns) far-field intensity of the probe, if known: pixels that are dark in it are not
            reported as dark.
    """
    shape = frames.shape[1:]
    counting = np.ones(shape, bool) if mask is None else np.asarray(mask if mask.ndim == 2 else mask.all(0))
    none = np.zeros(shape, bool)
    if len(frames) < MIN_FRAMES:
        return BadPixels(none, none, none, none)
    largest, smallest = frames.max(0), frames.min(0)
    active = np.count_nonzero(frames, axis=0)
    mean = frames.mean(0, dtype=np.float64)
    dark = _find_dark(active, counting, len(frames), probe_pattern)
    constant = counting & (largest == smallest) & (largest > 0)
    bright = counting & (active > 0)
    if constant.sum() > 0.2 * bright.sum():
        constant = none  # frames that do not vary, such as those of an empty beam
    saturated = _find_saturated(frames, largest, bright & ~constant)
    hot = _find_hot(mean, largest, counting & ~constant & ~saturated, active > 0.9 * len(frames))
    found = BadPixels(dark, constant, saturated, hot)
    return (
        found if found.combined.sum() <= MAX_PROPOSED_FRACTION * counting.size else BadPixels(none, constant, none, hot)
    )


def _find_dark(active: NDArray[np.intp], counting: Mask, number: int, probe_pattern: NDArray[Any] | None) -> Mask:
    """Return regions of dark pixels whose neighbors are bright.

    Args:
        active: (rows, columns) number of frames in which a pixel is not zero.
        counting: pixels that count.
        number: number of frames.
        probe_pattern: far-field intensity of the probe.
    """
    from scipy import ndimage

    candidates = counting & (active <= MAX_ACTIVE_FRACTION * number)
    dark = np.zeros_like(candidates)
    regions, _ = ndimage.label(candidates)
    lowest = max(MIN_ACTIVE_FRAMES, 20 * MAX_ACTIVE_FRACTION * number)
    neighborhood = np.ones((3, 3), bool)
    for region, box in enumerate(ndimage.find_objects(regions), start=1):
        outer = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        inside = regions[outer] == region
        ring = ndimage.binary_dilation(inside, neighborhood) & ~inside & counting[outer]
        # Dim patterns fade: the median of the neighbors of a dark margin is dark, too.
        if ring.any() and np.quantile(active[outer][ring], 0.25) >= min(lowest, 0.9 * number):
            dark[outer] |= inside
    if probe_pattern is not None and dark.any():
        dark &= probe_pattern > 1e-4 * probe_pattern.max()
    return dark


def _find_saturated(frames: NDArray[Any], largest: NDArray[Any], candidates: Mask) -> Mask:
    """Return pixels with their own largest value in many frames and few values slightly below it."""
    saturated = np.zeros_like(candidates)
    positive = frames[frames > 0]
    if not positive.size:
        return saturated
    unit = float(positive.min())
    candidates = candidates & (largest >= MIN_SATURATION_LEVEL * unit)
    rows, columns = np.nonzero(candidates)
    for part in np.array_split(np.arange(len(rows)), max(1, rows.size * len(frames) // 2_000_000)):
        values, top = frames[:, rows[part], columns[part]], largest[rows[part], columns[part]]
        equal = np.count_nonzero(values == top, axis=0)
        near = np.count_nonzero(values >= compute_near_limit(top, unit), axis=0) - equal
        saturated[rows[part], columns[part]] = (equal >= max(8, MIN_SATURATED_FRACTION * len(frames))) & (equal > near)
    return saturated


def _find_hot(mean: NDArray[np.float64], largest: NDArray[Any], counting: Mask, persistent: Mask) -> Mask:
    """Return isolated pixels that are far brighter than all eight neighbors in nearly all frames."""
    from scipy import ndimage

    if not (counting & persistent).any():
        return np.zeros_like(counting)
    others = np.ones((3, 3), bool)
    others[1, 1] = False
    neighbors = ndimage.maximum_filter(np.where(counting, mean, 0), footprint=others, mode="constant")
    typical = float(np.median(mean[counting]))
    hot: Mask = counting & persistent & (mean > HOT_PIXEL_RATIO * np.maximum(neighbors, typical))
    return hot
