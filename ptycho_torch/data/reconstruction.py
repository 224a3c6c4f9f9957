"""The result of a network or an engine: an object on its canvas with all that its evaluation needs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.annotations import Figure
from ptycho_torch.core.deferred import call_deferred
from ptycho_torch.core.summary import format_summary, format_summary_html
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.scan import Scan

if TYPE_CHECKING:
    from ptycho_torch.evaluation.scores import Scores


@dataclass(frozen=True, eq=False, repr=False)
class Reconstruction:
    """A reconstructed object on its canvas. ``object[r, c]`` is at ``origin_yx + (r, c)`` in object pixels.

    Args:
        object: (rows, columns) complex64, transmission of the object, dimensionless: |``probe`` × patch|² is in
            photons.
        coverage: (rows, columns) float32, probe power summed over all positions at each object pixel, in photons.
        origin_yx: (2,) int64, object coordinates (y, x) of ``object[0, 0]``, in pixels.
        probe: (M, N, N) complex64, probe modes in √photons.
        positions: (n, 2) float64, scan positions (y, x) of the reconstructed patterns, in object pixels.
        photons_per_unit: photons per squared unit of the scan's amplitude.
        background: (N, N) float32, photons added to every pattern, zero frequency at [0, 0]. None: none.
        intensities: (n,) float32, power of the probe in each pattern relative to its mean. None: equal.
        uncertainty: (rows, columns) float32, standard deviation of each complex object pixel in the unit of the
            object, infinite outside the illumination. None: not estimated.
        geometry: wavelength, distance and pixel sizes. None: unknown.
        history: values per epoch by name, such as ``"epoch"``, ``"loss"``, ``"val_loss"`` and ``"r"``.
        metadata: provenance, which can be stored as JSON.
    """

    object: NDArray[np.complex64]
    """Complex transmission, dimensionless, (rows, columns): the squared modulus of probe times patch is in photons."""

    coverage: NDArray[np.float32]
    """Illumination: the probe power summed over all positions at each object pixel, in photons, (rows, columns)."""

    origin_yx: NDArray[np.int64]
    """Object coordinates of ``object[0, 0]``, (2,)."""

    probe: NDArray[np.complex64]
    """Probe modes in units of √photons, (M, N, N)."""

    positions: NDArray[np.float64]
    """Scan positions (y, x) of the reconstructed patterns, in object pixels, (n, 2)."""

    photons_per_unit: float = 1.0
    """Photons per squared unit of the scan's amplitude, for comparisons of the model with the measurement."""

    background: NDArray[np.float32] | None = None
    """Photons added to every pattern, (N, N), zero frequency at [0, 0]; None: none."""

    intensities: NDArray[np.float32] | None = None
    """Power of the probe in each pattern relative to its mean, (n,); None: equal for all patterns."""

    uncertainty: NDArray[np.float32] | None = None
    """Standard deviation of each pixel, sqrt(E|object − truth|²) after a complex factor, in the object's unit, (rows,
    columns); infinite outside the illumination. None: not estimated."""

    geometry: Geometry | None = None
    """Wavelength, distance and pixel sizes; None: unknown."""

    history: dict[str, list[float]] = field(default_factory=dict)
    """Values per epoch by name (``"epoch"``, ``"loss"``, ``"val_loss"``, ``"r"``, …)."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """Provenance: method, scan file, indices of the patterns used, command. JSON."""

    def __repr__(self) -> str:
        return format_summary(*self._summarize())

    def _repr_html_(self) -> str:
        return format_summary_html(*self._summarize())

    def save(self, path: str | Path) -> None:
        """Write the reconstruction to ``path``. The file appears whole or not at all.

        Args:
            path: file to write; an existing file is replaced. The suffix selects the format: ``.npz`` keeps everything,
                others are those of other programs.
        """
        call_deferred("ptycho_torch.io.reconstruction:save_reconstruction", path, self)

    def plot(self, axes: Any = None) -> Figure:
        """Draw amplitude and phase of the object over the covered region.

        Args:
            axes: two matplotlib axes to draw on; None: a new figure.

        Returns:
            The figure, which a notebook displays.
        """
        figure: Figure = call_deferred("ptycho_torch.plotting.figures:plot_object", self, axes)
        return figure

    def plot_history(self, axes: Any = None) -> Figure:
        """Draw loss or R against the epoch, with the level of counting noise where it was recorded.

        Args:
            axes: one matplotlib axes, or two if the history has a held-out deviance; None: a new figure.

        Raises:
            DataError: the history has no finite loss or R.
        """
        figure: Figure = call_deferred("ptycho_torch.plotting.curves:plot_history", self, axes)
        return figure

    def plot_probe(self, axes: Any = None) -> Figure:
        """Draw every probe mode: hue is phase, brightness is amplitude.

        Args:
            axes: matplotlib axes to draw on, one per mode; None: a new figure.
        """
        figure: Figure = call_deferred("ptycho_torch.plotting.figures:plot_probe", self, axes)
        return figure

    def plot_uncertainty(self, axes: Any = None) -> Figure:
        """Draw the estimated standard deviation over the covered region.

        Args:
            axes: matplotlib axes to draw on; None: a new figure.

        Raises:
            DataError: no uncertainty was estimated.
        """
        figure: Figure = call_deferred("ptycho_torch.plotting.figures:plot_uncertainty", self, axes)
        return figure

    def scores(self, scan: Scan) -> "Scores":
        """Compute R, its noise floor and further scores against the measured patterns.

        Args:
            scan: measured patterns in the unit of the reconstructed scan. Refined positions of the reconstruction
                replace the positions of the scan.

        Returns:
            Scores by name; they print as a table.

        Raises:
            DataError: the patterns do not belong to the reconstruction.
        """
        scores: Scores = call_deferred("ptycho_torch.evaluation.scores:score_against_scan", self, scan)
        return scores

    def compare(
        self, truth: NDArray[np.complexfloating] | None, *, remove_ramp: bool = False, remove_shift: bool = False
    ) -> "Scores":
        """Compute the errors against the true object after one complex factor and the stated alignment.

        With an updated probe, ramp and shift of the object are free; remove both for a fair comparison.

        Args:
            truth: complex object, (rows, columns), with origin (0, 0), for example ``scan.truth``.
            remove_ramp: remove a linear phase ramp first.
            remove_shift: remove a sub-pixel shift first.

        Returns:
            Scores by name; they print as a table.

        Raises:
            DataError: there is no truth, or it shares no covered pixel with the reconstruction.
        """
        scores: Scores = call_deferred(
            "ptycho_torch.evaluation.scores:score_against_truth", self, truth, remove_ramp, remove_shift
        )
        return scores

    def _summarize(self) -> tuple[str, dict[str, str]]:
        """Return title and facts of the representation."""
        rows, columns = self.object.shape
        modes, size, _ = self.probe.shape
        facts = {
            "probe": f"{modes} mode{'s' * (modes > 1)} of {size} × {size} pixels",
            "positions": f"{len(self.positions):,}",
        }
        if self.geometry is not None and self.geometry.object_pixel_m is not None:
            y, x = (side * 1e9 for side in self.geometry.object_pixel_m)
            facts["object pixel"] = f"{y:.4g} × {x:.4g} nm (y, x)"
        if "method" in self.metadata:
            facts["method"] = str(self.metadata["method"])
        if self.uncertainty is not None:
            facts["uncertainty"] = "estimated"
        for name, label in (("r", "R"), ("r_floor", "noise floor"), ("loss", "loss"), ("val_loss", "validation loss")):
            values = self.history.get(name)
            if values:
                facts[label] = f"{values[-1]:.4g} in the last of {len(values)} epochs"
        return f"Reconstruction of {rows} × {columns} pixels", facts
