"""The result of an inference or an engine: a picture of the object with all that is needed to judge it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.deferred import call_deferred


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A reconstructed object on its canvas. ``object[r, c]`` sits at ``origin_yx + (r, c)`` in object pixels."""

    object: NDArray[np.complex64]
    """Complex transmission, (rows, columns), in units such that ``probe`` × ``object`` gives photons."""

    coverage: NDArray[np.float32]
    """Illumination: the probe power summed over all positions at each object pixel, in photons, (rows, columns)."""

    origin_yx: NDArray[np.int64]
    """Object coordinates of ``object[0, 0]``, (2,)."""

    probe: NDArray[np.complex64]
    """Probe modes in units of √photons, (M, N, N)."""

    positions: NDArray[np.float64]
    """Scan positions (y, x) that the object was made from, in object pixels, (n, 2)."""

    photons_per_unit: float = 1.0
    """Photons for one squared unit of the scan file's amplitude: compares the model with the measurement."""

    background: NDArray[np.float32] | None = None
    """Photons added to every pattern, (N, N), zero frequency at [0, 0]; None: none."""

    intensities: NDArray[np.float32] | None = None
    """Power of the probe in each pattern over its mean, (n,); None: all alike."""

    uncertainty: NDArray[np.float32] | None = None
    """Standard deviation of each pixel, sqrt(E|object − truth|²) after a complex factor, in the object's unit, (rows,
    columns); infinite where no light fell. None: not stated."""

    history: dict[str, list[float]] = field(default_factory=dict)
    """Figures by name, one an epoch, where the maker kept them (``"epoch"``, ``"loss"``, ``"val_loss"``, …)."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """Where it came from: method, scan file, indices of the patterns used, command. JSON."""

    def save(self, path: str | Path) -> None:
        """Write the reconstruction to ``path`` (NPZ). The file appears whole or not at all.

        Args:
            path: file to write; an existing file is replaced.
        """
        call_deferred("ptycho_torch.io.reconstruction:save_reconstruction", path, self)
