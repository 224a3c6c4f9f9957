"""Photographs as objects: images from the scikit-image package, without a download."""

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
"""Functions of ``skimage.data`` with images in the wheel, all public domain or CC0."""

MAX_HALVINGS = 3
"""Number of half-resolution levels of a photograph, for draws that cover much of it."""

MIN_GRAY_RANGE = 0.25
"""Smallest range of gray values that is stretched to the full range; a smaller range would amplify noise."""


class Photographs(NamedTuple):
    """A pool of photographs, each at several resolutions."""

    pyramids: list[list[NDArray[np.float32]]]
    """One list per photograph: (rows, columns) gray values from 0 to 1, each half as large as the previous."""

    def draw_images(self, shape: Shape, rng: np.random.Generator) -> NDArray[np.float32]:
        """Draw two images for amplitude and phase, from one photograph or from two.

        Each image is a random part, rotated, mirrored, and scaled by a factor from 1/3 to 1.7; a photograph is mirrored
        at its edges.

        Returns:
            (2, rows, columns) from 0 to 1.
        """
        first, second = rng.integers(0, len(self.pyramids), 2)
        image = draw_part(self.pyramids[first], shape, rng)
        return np.stack([image, image if rng.random() < 0.3 else draw_part(self.pyramids[second], shape, rng)])


def load_photographs() -> Photographs:
    """Read all photographs, in about a tenth of a second.

    Raises:
        DataError: the installed scikit-image lacks one of the images.
    """
    from skimage import data

    pyramids = []
    for name in PHOTOGRAPH_NAMES:
        try:
            image = np.asarray(getattr(data, name)(), dtype=np.float32)
        except (AttributeError, ImportError, OSError) as error:
            raise DataError(f"scikit-image has no image {name}; install version 0.24 or newer") from error
        gray = image if image.ndim == 2 else image @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
        low, high = np.quantile(gray, (0.005, 0.995))
        levels = [np.clip((gray - low) / (high - low), 0, 1)]
        for _ in range(MAX_HALVINGS):
            levels.append(halve_resolution(levels[-1]))
        pyramids.append(levels)
    return Photographs(pyramids)


def halve_resolution(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``image`` at half its resolution, as means over 2 × 2 pixels."""
    even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    return np.asarray((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4, dtype=np.float32)


def draw_part(pyramid: list[NDArray[np.float32]], shape: Shape, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a random part of a photograph, rotated, mirrored and rescaled to ``shape``."""
    from scipy.ndimage import affine_transform

    zoom = np.exp(rng.uniform(np.log(0.6), np.log(3)))  # pixels of the photograph per pixel of the object
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
