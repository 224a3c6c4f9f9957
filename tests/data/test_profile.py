"""Geometry in the profile of a scan: probe diameter and scan step."""

import numpy as np
import pytest

from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter


@pytest.mark.parametrize("diameter", [9.0, 20.5])
@pytest.mark.parametrize("size", [48, 49])
def test_probe_diameter_of_uniform_disk_is_exact(diameter: float, size: int) -> None:
    rows, columns = np.indices((size, size))
    disk = (rows - 21.3) ** 2 + (columns - 25.8) ** 2 < (diameter / 2) ** 2
    assert compute_probe_diameter(disk * np.exp(0.3j * rows)) == pytest.approx(diameter, rel=0.03)
    assert compute_probe_diameter(np.stack([disk + 0j, 2 * disk])) == pytest.approx(diameter, rel=0.03)


def test_median_step_is_the_distance_to_the_nearest_neighbor() -> None:
    rows, columns = np.mgrid[0:30:3, 0:40:4]
    assert compute_median_step(np.stack([rows.ravel(), columns.ravel()], 1).astype(float)) == 3
    assert compute_median_step(np.zeros((1, 2))) is None
