"""Scale bars of images in object pixels, in nanometers or micrometers."""

import math
from typing import Any

from ptycho_torch.plotting.canvas import SCALE_BAR_GID

MAX_BAR_FRACTION = 0.3
"""Largest length of a scale bar, as a fraction of the width of its image."""

ROUND_NUMBERS = (5.0, 2.0, 1.0)
"""First digit of a length, the largest first."""

MAX_EQUAL_ASPECT = 1e-3
"""Relative difference of the sides of a pixel up to which it is drawn as a square."""


def choose_bar_length(width_m: float) -> float:
    """Return the longest length 1, 2 or 5 × 10^k meters that fits :data:`MAX_BAR_FRACTION` of ``width_m``."""
    limit = MAX_BAR_FRACTION * width_m
    decade: float = 10.0 ** math.floor(math.log10(limit))
    return next(digit * decade for digit in ROUND_NUMBERS if digit * decade <= limit * (1 + 1e-9))


def format_length(length_m: float) -> str:
    """Return a length in meters as text in µm from 1 µm, in nm from 1 nm, otherwise in pm."""
    for unit, factor in (("µm", 1e6), ("nm", 1e9)):
        if length_m * factor >= 1 - 1e-9:
            return f"{length_m * factor:.4g} {unit}"
    return f"{length_m * 1e12:.4g} pm"


def draw_scale_bar(axis: Any, object_pixel_m: tuple[float, float] | None) -> None:
    """Draw a scale bar at the lower left of an image, and give its pixels their true aspect.

    Args:
        axis: matplotlib axes with an image in object pixels.
        object_pixel_m: sides (y, x) of an object pixel in meters; None: unknown, and nothing is drawn.
    """
    if object_pixel_m is None:
        return
    from matplotlib.patches import Rectangle

    pixel_y, pixel_x = object_pixel_m
    if abs(pixel_y / pixel_x - 1) > MAX_EQUAL_ASPECT:
        axis.set_aspect(pixel_y / pixel_x)
    left, right = axis.get_xlim()
    width = abs(right - left)
    length_m = choose_bar_length(width * pixel_x)
    fraction = length_m / pixel_x / width
    box = Rectangle((0.02, 0.02), fraction + 0.04, 0.115, transform=axis.transAxes, color="white", alpha=0.8, lw=0)
    bar = Rectangle((0.04, 0.035), fraction, 0.022, transform=axis.transAxes, color="black", lw=0)
    for patch, layer in ((box, 4), (bar, 5)):
        patch.set_zorder(layer)
        axis.add_patch(patch)
    axis.text(
        0.04 + fraction / 2,
        0.066,
        format_length(length_m),
        transform=axis.transAxes,
        ha="center",
        va="bottom",
        fontsize=8,
        zorder=5,
        gid=SCALE_BAR_GID,
    )
