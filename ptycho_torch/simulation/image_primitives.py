"""Image primitives for objects: coordinates, soft edges, ellipses, noise, letters, painted polygons."""

import numpy as np
from numpy.typing import NDArray

RealArray = NDArray[np.float64]
Shape = tuple[int, int]


def make_centered_grid(shape: Shape) -> tuple[RealArray, RealArray]:
    """Return row and column coordinates from the center, in units of the shorter side."""
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in shape)
    return np.meshgrid(rows / min(shape), columns / min(shape), indexing="ij")


def compute_soft_step(distance: RealArray, shape: Shape) -> RealArray:
    """Return 0 for negative and 1 for positive ``distance`` (in shorter sides), with an edge of about two pixels."""
    return 0.5 + 0.5 * np.tanh(distance * min(shape))


def draw_ellipses(shape: Shape, rng: np.random.Generator, count: int, smallest: float, largest: float) -> RealArray:
    """Draw ellipses with soft edges, 0 outside and up to 1 inside; radii are in units of the shorter side."""
    rows, columns = make_centered_grid(shape)
    field = np.zeros(shape)
    for _ in range(count):
        center_y, center_x = rng.uniform(-0.4, 0.4, 2)
        radii = rng.uniform(smallest, largest, 2)
        turn = rng.uniform(0, np.pi)
        y, x = rows - center_y, columns - center_x
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        reach = np.hypot(along / radii[0], across / radii[1])
        field += rng.uniform(0.4, 1.0) * compute_soft_step((1 - reach) * radii.min(), shape)
    return np.tanh(field)


def draw_band_limited_noise(shape: Shape, rng: np.random.Generator, period: float) -> RealArray:
    """Draw a random field of unit variance without features shorter than about ``period`` pixels."""
    ky, kx = np.meshgrid(*(np.fft.fftfreq(side) for side in shape), indexing="ij")
    smooth = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * np.exp(-((ky**2 + kx**2) * period**2))).real
    smooth -= smooth.mean()
    return smooth / smooth.std()


def make_text_mask(text: str, shape: Shape) -> RealArray:
    """Return an image with ``text`` in its middle half, 1 on the letters and 0 elsewhere, with smooth edges."""
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
                y = -(rows - middle_y) / scale + (box.y0 + box.y1) / 2  # row numbers increase downward
                points = np.stack([x.ravel(), y.ravel()], 1)
                # The even-odd rule over the outlines keeps the holes of P and O open.
                crossed = sum(Path(outline).contains_points(points).astype(int) for outline in path.to_polygons())
                inside = np.reshape(crossed, shape) % 2
                mask += inside / oversampling**2
    return np.asarray(gaussian_filter(np.minimum(mask, 1.0), 0.6))


PAINT_OVERSAMPLING = 2
"""Painted pixels per side of a pixel, which gives polygons edges of one pixel width."""


def paint_labels(corners: RealArray, counts: NDArray[np.int64], shape: Shape) -> NDArray[np.int32]:
    """Return the number of the topmost polygon at each pixel, counted from 1; 0 without a polygon.

    Args:
        corners: (n, m, 2) corners (y, x) in pixels; later polygons hide earlier ones.
        counts: (n,) number of corners of each polygon, at most m.
        shape: rows and columns.

    Returns:
        (rows, columns) int32.
    """
    from PIL import Image, ImageDraw

    label_image = Image.new("I", (shape[1], shape[0]))
    draw = ImageDraw.Draw(label_image)
    flat = corners[..., ::-1].reshape(len(corners), -1).tolist()  # x, y, x, y, …
    for number, (polygon, count) in enumerate(zip(flat, counts.tolist(), strict=True), start=1):
        draw.polygon(polygon[: 2 * count], fill=number)
    return np.asarray(label_image)


def paint_polygons(
    corners: RealArray, counts: NDArray[np.int64], values: RealArray, shape: Shape
) -> NDArray[np.float32]:
    """Paint opaque polygons with edges of one pixel width.

    Args:
        corners: (n, m, 2) corners (y, x) in pixels; later polygons hide earlier ones.
        counts: (n,) number of corners of each polygon, at most m.
        values: (channels, n + 1) values of the background and of each polygon.
        shape: rows and columns.

    Returns:
        (channels, rows, columns) float32.
    """
    fine = PAINT_OVERSAMPLING
    labels = paint_labels(corners * fine, counts, (shape[0] * fine, shape[1] * fine))
    painted = values.astype(np.float32)[:, labels]
    # Sums over strided views: several times faster than a mean over two short axes.
    parts = [painted[:, i::fine, j::fine] for i in range(fine) for j in range(fine)]
    return np.asarray(sum(parts[1:], parts[0]) / np.float32(fine**2))


def blur_image(image: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """Return ``image`` (*, rows, columns) blurred by a Gaussian of standard deviation ``width`` in pixels."""
    from scipy.ndimage import gaussian_filter

    if image.ndim == 2:
        return np.asarray(gaussian_filter(image, width, mode="nearest", truncate=3))
    return np.stack([blur_image(part, width) for part in image])


def draw_power_law_noise(shape: Shape, rng: np.random.Generator, power: float) -> NDArray[np.float32]:
    """Draw a random field of zero mean and unit variance with Fourier amplitudes ∝ frequency^(−``power``)."""
    from scipy.fft import irfft2, rfft2

    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    squared = (ky**2 + kx**2).astype(np.float32)
    squared[0, 0] = np.inf
    white = rng.standard_normal(shape, dtype=np.float32)
    field = irfft2(rfft2(white) * squared ** np.float32(-power / 2), s=shape)
    return np.asarray(field / field.std(), dtype=np.float32)
