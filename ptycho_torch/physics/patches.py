"""Extraction of patches from an object and its adjoint, placement on a canvas, on the integer grid."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Placement(NamedTuple):
    """Position of each patch: an integer corner on the grid of the object, and a sub-pixel shift of the probe."""

    corners: Tensor
    """(n, 2) int64: row and column of each patch's [0, 0] pixel, in object coordinates."""

    fractions: Tensor
    """(n, 2) in [-½, ½): shift (y, x) of the probe on its patch, in pixels."""


def split_positions(positions: Tensor, size: int) -> Placement:
    """Split scan positions (n, 2) into patch corners on the integer grid and fractions that move the probe.

    ``patch[i, j]`` samples the object at ``(y - size//2 + i, x - size//2 + j)``; the corner is that point for
    [0, 0], rounded half up. ``positions`` should be float64: coordinates may be large.
    """
    exact = positions - size // 2
    corners = torch.floor(exact + 0.5)
    return Placement(corners.to(torch.int64), exact - corners)


def extract_patches(obj: Tensor, corners: Tensor, size: int) -> Tensor:
    """Extract ``size`` × ``size`` patches from ``obj``.

    Args:
        obj: (rows, columns), real or complex.
        corners: (n, 2) int64, row and column of each patch's [0, 0] pixel in ``obj``.
        size: side of a patch in pixels.

    Returns:
        (n, size, size), of the dtype of ``obj``.

    Raises:
        IndexError: a patch reaches outside the object.
    """
    check_patches_inside(corners, size, obj.shape)
    return _Extract.apply(obj, corners, size)


def place_patches(patches: Tensor, corners: Tensor, shape: tuple[int, int]) -> Tensor:
    """Add patches onto an empty canvas: the adjoint of :func:`extract_patches`.

    Args:
        patches: (n, size, size), real or complex.
        corners: (n, 2) int64, row and column of each patch's [0, 0] pixel on the canvas.
        shape: rows and columns of the canvas.

    Returns:
        (rows, columns): the sum of all patches, zero where there is none.

    Raises:
        IndexError: a patch reaches outside the canvas.
    """
    check_patches_inside(corners, patches.shape[-1], shape)
    return _Place.apply(patches, corners, tuple(shape))


def add_patches(canvas: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Add patches (n, size, size) onto ``canvas`` (rows, columns) in place, without a gradient; returns it.

    ``corners`` (n, 2) int64 must lie so that every patch is inside.
    """
    size, columns = patches.shape[-1], canvas.shape[1]
    if patches.device.type == "cpu":
        # Adding windows one by one is several times faster here than adding pixels by index.
        sheet, pieces = canvas.numpy(), patches.resolve_conj().numpy()
        for piece, (row, column) in zip(pieces, corners.tolist(), strict=True):
            sheet[row : row + size, column : column + size] += piece
        return canvas
    offset = torch.arange(size, device=corners.device)
    rows, across = corners[:, 0, None] + offset, corners[:, 1, None] + offset
    index = rows[:, :, None] * columns + across[:, None, :]
    canvas.view(-1).index_add_(0, index.reshape(-1), patches.reshape(-1))
    return canvas


class _Extract(torch.autograd.Function):
    """Extraction; its gradient is placement."""

    @staticmethod
    def forward(ctx: Any, obj: Tensor, corners: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(corners)
        ctx.shape = tuple(obj.shape)
        windows = obj.unfold(0, size, 1).unfold(1, size, 1)  # a view of all windows: no index for every pixel
        return windows[corners[:, 0], corners[:, 1]]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (corners,) = ctx.saved_tensors
        return _Place.apply(gradients[0], corners, ctx.shape), None, None


class _Place(torch.autograd.Function):
    """Placement; its gradient is extraction."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, corners: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(corners)
        ctx.size = patches.shape[-1]
        return add_patches(patches.new_zeros(shape), patches.detach(), corners)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (corners,) = ctx.saved_tensors
        return _Extract.apply(gradients[0], corners, ctx.size), None, None


def check_patches_inside(corners: Tensor, size: int, shape: tuple[int, int] | torch.Size) -> None:
    """Raise IndexError if a patch of ``size`` at one of ``corners`` reaches outside a canvas of ``shape``."""
    if not len(corners):
        return
    low, high = corners.min(0).values, corners.max(0).values
    if low.min() < 0 or high[0] + size > shape[0] or high[1] + size > shape[1]:
        raise IndexError(
            f"patches of {size} pixels with corners from {low.tolist()} to {high.tolist()} "
            f"reach outside the object of {tuple(shape)}"
        )


class Canvas(NamedTuple):
    """The canvas of a result: object coordinates of its [0, 0] pixel, and its shape."""

    origin: tuple[int, int]
    shape: tuple[int, int]


def make_canvas(corners: Tensor, size: int, margin: int = 2) -> Canvas:
    """Make the canvas that contains every patch of ``size`` at ``corners`` (n, 2) plus ``margin`` pixels per side.

    All results of one scan have this canvas, so that they can be compared pixel by pixel.
    """
    low = corners.min(0).values - margin
    high = corners.max(0).values + size + margin
    (top, left), (bottom, right) = low.tolist(), high.tolist()
    return Canvas((top, left), (bottom - top, right - left))
