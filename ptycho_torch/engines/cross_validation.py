"""Quality of an estimate without a truth: noise floor of R, and cross-validation on held-out pixels."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.measurement_model import ProbeObjectView
from ptycho_torch.engines.state import Measurement, ReconstructionState, make_measurement
from ptycho_torch.physics.forward import from_patches
from ptycho_torch.physics.noise import Poisson, compute_deviance_floor, sum_amplitude_errors

NOISE_FLOOR_PATTERNS = 32
"""Number of patterns, spread over the scan, that give the noise floor to a few percent within milliseconds."""

PATTERNS_PER_CHUNK = 64
"""Number of patterns per chunk, which bounds the memory."""


class HoldoutScore(NamedTuple):
    """Score of an estimate on held-out pixels."""

    deviance: float
    """Mean of −log Poisson(k | λ) minus its value at λ = k, for the photons λ of the estimate; lower is better."""

    noise_floor: float
    """Expectation of the deviance if the estimate were the truth: ½ at many photons per pixel, less at few."""


class HoldoutPixels:
    """Detector pixels that a fit does not use, to choose its regularization and the epoch at which it ends.

    The score is the Poisson deviance for every engine and loss, which makes engines comparable.

    Args:
        scan: all patterns.
        pixels: (n, N, N) bool, centered like the patterns, True where a pixel is held out.
        photons_per_unit: photons per squared unit of the amplitudes of the scan.
        device: device of the computation.
    """

    def __init__(self, scan: Scan, pixels: NDArray[np.bool_], photons_per_unit: float, device: torch.device) -> None:
        measurement = make_measurement(replace(scan, mask=pixels), photons_per_unit, Poisson(), device)
        assert measurement.mask is not None
        self._chunks = torch.arange(len(scan)).split(PATTERNS_PER_CHUNK)
        self._pixel_indices = [measurement.mask[chunk].flatten().nonzero()[:, 0] for chunk in self._chunks]
        self._counts = measurement.counts[measurement.mask]

    def __len__(self) -> int:
        return len(self._counts)

    @torch.no_grad()
    def score(self, state: ReconstructionState) -> HoldoutScore:
        """Compare the held-out pixels with ``state``, which takes about a third of the time of an epoch."""
        view = ProbeObjectView(state)
        rates = torch.cat(
            [
                predict_intensity(view, chunk).flatten()[pixels]
                for chunk, pixels in zip(self._chunks, self._pixel_indices, strict=True)
            ]
        )
        deviance = Poisson().deviance(rates, self._counts).mean(dtype=torch.float64)
        return HoldoutScore(float(deviance), float(compute_deviance_floor(rates).mean()))


@torch.no_grad()
def estimate_noise_floor(
    measurement: Measurement, state: ReconstructionState, patterns: int = NOISE_FLOOR_PATTERNS
) -> float:
    """Estimate the R that counting noise alone would cause if ``state`` were the truth.

    Args:
        measurement: the diffraction patterns.
        state: the estimate, whose rates determine the noise.
        patterns: number of patterns, spread over the scan, that are evaluated.
    """
    included = state.find_included()
    chosen = included[torch.linspace(0, len(included) - 1, min(patterns, len(included))).round().long()]
    rates = predict_intensity(ProbeObjectView(state), chosen)
    sums = sum_amplitude_errors(rates, measurement.counts[chosen], measurement.select_mask(chosen))
    floor = float(sums.expected_squared_error.sum())
    photons = measurement.photons
    if len(included) < len(measurement):
        photons = float(measurement.counts[included].sum(dtype=torch.float64))
    return floor / max(photons, 1e-30) * len(included) / len(chosen)


def predict_intensity(view: ProbeObjectView, indices: Tensor) -> Tensor:
    """Return the photons that the estimate predicts for the patterns at ``indices``, (b, N, N), corner origin."""
    return from_patches(view.patches(indices), view.probes(indices), view.state.background).intensity
