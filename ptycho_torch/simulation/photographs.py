"""Photographs as objects: pictures that scikit-image brings along, so that nothing is downloaded."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.simulation.image_primitives import Shape

PHOTOGRAPH_NAMES = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "cell",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "rocket",
)
"""Functions of ``skimage.data`` whose pictures are in its wheel, all public domain or CC0."""

MAX_HALVINGS = 3
"""Halvings of a photograph, for draws that show much of it."""


MIN_GRAY_RANGE = 0.25
"""A part whose greys differ by less than this is not stretched to the full range: it would show its noise."""


class Photographs(NamedTuple):
    """A pool of photographs, each at several resolutions."""

    pyramids: list[list[NDArray[np.float32]]]
    """One list a photograph, each (rows, columns) grey from 0 to 1 and half as large as the one before."""

    def draw_images(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.float32]:
        """Pictures (2, rows, columns), 0 to 1, for amplitude and phase: of one photograph or of two.

        Each is a random part, turned, mirrored, and shown at a third to 1.7 times its size; beyond its edges a
        photograph is mirrored.
        """
        first, second = rng.integers(0, len(self.pyramids), 2)
        one = draw_part(self.pyramids[first], shape, rng)
        return np.stack([one, one if rng.random() < 0.3 else draw_part(self.pyramids[second], shape, rng)])


def load_photographs() -> Photographs:
    """Read the pool, in about a tenth of a second.

    Raises:
        DataError: this scikit-image does not bring one of the pictures along.
    """
    from skimage import data

    pyramids = []
    for name in PHOTOGRAPH_NAMES:
        try:
            image = np.asarray(getattr(data, name)(), dtype=np.float32)
        except (AttributeError, ImportError, OSError) as error:
            raise DataError(f"scikit-image has no picture {name}: install 0.24 or newer, from its wheel") from error
        gray = image if image.ndim == 2 else image @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
        low, high = np.quantile(gray, (0.005, 0.995))
        levels = [np.clip((gray - low) / (high - low), 0, 1)]
        for _ in range(MAX_HALVINGS):
            levels.append(halve_resolution(levels[-1]))
        pyramids.append(levels)
    return Photographs(pyramids)


def halve_resolution(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """``picture`` at half its resolution: means over 2 × 2 pixels."""
    even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    return np.asarray((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4, dtype=np.float32)


def draw_part(pyramid: list[NDArray[np.float32]], shape: Shape, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random part of a photograph, turned, mirrored and rescaled to ``shape``."""
    from scipy.ndimage import affine_transform

    zoom = np.exp(rng.uniform(np.log(0.6), np.log(3)))  # pixels of the photograph for one of the object
    level = int(np.clip(np.floor(np.log2(zoom)), 0, len(pyramid) - 1))
    image, zoom = pyramid[level], zoom / 2**level
    rotation, mirror = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    matrix = zoom * np.array(
        [[np.cos(rotation), -mirror * np.sin(rotation)], [np.sin(rotation), mirror * np.cos(rotation)]]
    )
    center = rng.uniform(0.2, 0.8, 2) * image.shape
    offset = center - matrix @ (np.array(shape) / 2)
    part = affine_transform(image, matrix, offset, shape, order=1, mode="mirror")
    dark, bright = np.quantile(part[::4, ::4], (0.01, 0.99))
    return np.clip((part - dark) / max(bright - dark, MIN_GRAY_RANGE), 0, 1).astype(np.float32)
