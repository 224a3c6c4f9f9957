"""The memory that the canvas of a scan needs, checked before the canvas is allocated."""

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.memory import read_available_memory

CANVAS_BYTES_PER_PIXEL = 64
"""Memory of a reconstruction per pixel of the canvas: eight complex copies, for object, momentum, gradient, divisor,
the estimates to return to, and figures."""


def check_canvas_size(positions: NDArray[np.float64], border: int, available: int | None = None) -> None:
    """Check that the memory suffices for a canvas around all positions.

    Args:
        positions: (n, 2) scan positions (y, x) in object pixels.
        border: pixels of canvas beyond the range of the positions, on both sides together.
        available: bytes of memory; None: those that this process can allocate.

    Raises:
        DataError: the canvas needs more memory; the error names the position farthest from all others.
    """
    available = read_available_memory() if available is None else available
    rows, columns = (float(extent) + border for extent in np.ptp(positions, axis=0))
    needed = rows * columns * CANVAS_BYTES_PER_PIXEL
    if available is None or needed <= available:
        return
    distances = np.abs(positions - np.median(positions, axis=0)).max(axis=1)
    farthest = int(distances.argmax())
    raise DataError(
        f"the canvas of the scan has {rows:,.0f} × {columns:,.0f} pixels, which takes {needed / 2**30:,.3g} GiB of "
        f"memory; expected at most the available {available / 2**30:.3g} GiB; position {farthest} is "
        f"{distances[farthest]:,.5g} pixels from the middle of the scan, and half of all positions are within "
        f"{np.median(distances):,.5g} pixels; leave out outliers, or check the unit of `positions`"
    )
