"""The memory of a canvas is checked before anything is allocated, and an outlier is named."""

from dataclasses import replace

import numpy as np
import pytest

import ptycho_torch as pt
from ptycho_torch.core.errors import DataError
from ptycho_torch.core.memory import read_available_memory
from ptycho_torch.data.canvas_size import CANVAS_BYTES_PER_PIXEL, check_canvas_size
from ptycho_torch.data.scan import Scan


def test_canvas_up_to_the_available_memory_is_accepted() -> None:
    positions = np.array([[0.0, 0.0], [90.0, 40.0]])
    needed = 100 * 50 * CANVAS_BYTES_PER_PIXEL
    check_canvas_size(positions, 10, needed)
    with pytest.raises(DataError, match=r"100 × 50 pixels"):
        check_canvas_size(positions, 10, needed - 1)


@pytest.mark.parametrize("distance", [1e6, 1e15])
def test_one_distant_position_is_named(scan: Scan, distance: float) -> None:
    positions = scan.positions.copy()
    positions[17] += distance
    with pytest.raises(DataError, match=r"position 17 is .* leave out outliers"):
        check_canvas_size(positions, scan.size)


def test_training_and_reconstruction_refuse_a_canvas_beyond_the_memory(scan: Scan) -> None:
    positions = scan.positions.copy()
    positions[17] += 1e6
    glitch = replace(scan, positions=positions)
    for run in (pt.PIE(epochs=1).run, pt.fit):
        with pytest.raises(DataError, match="position 17"):
            run(glitch)


def test_available_memory_is_positive() -> None:
    available = read_available_memory()
    assert available is None or available > 2**20
