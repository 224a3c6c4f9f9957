"""How good an estimate is when the truth is unknown: against counting noise, and by pixels that were held out."""

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
from ptycho_torch.physics.noise import Poisson, compute_deviance_floor, compute_noise_floor

NOISE_FLOOR_PATTERNS = 32
"""Patterns, spread over the scan, that the noise floor is taken from: good to a few percent, in some milliseconds."""

PATTERNS_PER_CHUNK = 64
"""Patterns computed together."""


class HoldoutScore(NamedTuple):
    """What held-out pixels say about an estimate."""

    deviance: float
    """Mean over them of −log Poisson(k | λ) less its value at λ = k, with λ the model's photons: lower is better."""

    noise_floor: float
    """What it would be if the model were the truth: ½ for bright pixels, less for dark ones."""


class HoldoutPixels:
    """Pixels that a fit does not see: cross-validation, as it is used to choose regularisation and to stop a fit.

    The measure is the Poisson likelihood, whatever an engine minimises, so that all engines are judged alike.

    Args:
        scan: all patterns.
        pixels: (n, N, N) bool, centred as the patterns: those held out.
        photons_per_unit: photons for one squared unit of the scan's amplitude.
        device: where to compute.
    """

    def __init__(self, scan: Scan, pixels: NDArray[np.bool_], photons_per_unit: float, device: torch.device) -> None:
        measurement = make_measurement(replace(scan, mask=pixels), photons_per_unit, Poisson(), device)
        assert measurement.mask is not None
        self._parts = torch.arange(len(scan)).split(PATTERNS_PER_CHUNK)
        self._places = [measurement.mask[part].flatten().nonzero()[:, 0] for part in self._parts]
        self._counts = measurement.counts[measurement.mask]

    def __len__(self) -> int:
        return len(self._counts)

    @torch.no_grad()
    def score(self, state: ReconstructionState) -> HoldoutScore:
        """Predict the held-out pixels: a forward pass over all patterns, about a third of an epoch."""
        view = ProbeObjectView(state)
        rates = torch.cat(
            [predict_intensity(view, part).flatten()[at] for part, at in zip(self._parts, self._places, strict=True)]
        )
        deviance = Poisson().deviance(rates, self._counts).mean(dtype=torch.float64)
        return HoldoutScore(float(deviance), float(compute_deviance_floor(rates).mean()))


@torch.no_grad()
def estimate_noise_floor(
    measurement: Measurement, state: ReconstructionState, patterns: int = NOISE_FLOOR_PATTERNS
) -> float:
    """The R that counting noise alone would leave if ``estimate`` were the truth, from some patterns of the scan."""
    chosen = torch.linspace(0, len(measurement) - 1, min(patterns, len(measurement))).round().long()
    floor = compute_noise_floor(predict_intensity(ProbeObjectView(state), chosen))
    mask = measurement.select_mask(chosen)
    if mask is not None:
        floor = torch.where(mask, floor, torch.zeros_like(floor))
    return float(floor.sum()) / measurement.photons * len(measurement) / len(chosen)


def predict_intensity(view: ProbeObjectView, indices: Tensor) -> Tensor:
    """The model's photons at some positions, (b, N, N), zero frequency at [0, 0]."""
    return from_patches(view.patches(indices), view.probes(indices), view.state.background).intensity
