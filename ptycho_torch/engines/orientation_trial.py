"""Short reconstructions of a small window of a scan, which score maps of its positions on held-out pixels."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.config.engines import PIE
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.holdout import draw_holdout_pixels, mask_pixels
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.cross_validation import predict_intensity
from ptycho_torch.engines.initialization import fit_object_scale
from ptycho_torch.engines.measurement_model import ProbeObjectView
from ptycho_torch.engines.registry import make_engine
from ptycho_torch.engines.runner import EngineRunner
from ptycho_torch.engines.state import ReconstructionState, make_measurement, make_vacuum_state
from ptycho_torch.models.probe_estimation import MovingShadows, estimate_width
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.noise import Poisson, compute_deviance_floor, make_noise_model
from ptycho_torch.simulation.wavefields import make_pixel_grid

HELD_OUT_SHARE = 0.05
"""Share of the detector pixels that are held out."""

BATCH_PATTERNS = 10
"""Patterns per batch of the engine."""

Map = NDArray[np.float64]
"""Linear map (2, 2) of positions (y, x)."""


class Trial(NamedTuple):
    """Score of a short reconstruction."""

    score: float
    """Mean of ``scores``."""

    scores: NDArray[np.float64]
    """Mean deviance of the held-out pixels above its noise floor, per pattern, (n,); lower is better."""


class OrientationTrials:
    """A window of a scan on which short reconstructions are run with mapped positions.

    Args:
        window: the patterns of the window.
        seed: seed of the held-out pixels and of the batches.
    """

    def __init__(self, window: Scan, seed: int) -> None:
        self.window, self.seed = window, seed
        self.photons_per_unit = photon_scale(window).photons_per_unit
        held_out = draw_holdout_pixels(window, HELD_OUT_SHARE, np.random.default_rng([seed, 1]))
        device = torch.device("cpu")
        self.measurement = make_measurement(
            mask_pixels(window, held_out), self.photons_per_unit, make_noise_model("amplitude"), device
        )
        held = make_measurement(replace(window, mask=held_out), self.photons_per_unit, Poisson(), device)
        assert held.mask is not None
        self._held_mask, self._held_counts = held.mask, held.counts
        self._positions = window.positions - window.positions.mean(0)
        self._shadows: dict[int, MovingShadows] = {}

    def make_probe(self, linear_map: Map) -> NDArray[np.complex64]:
        """Return a Gaussian probe (1, N, N) with the curvature that the shadows have for mapped positions."""
        scale = float(np.abs(np.linalg.det(linear_map))) ** 0.5
        curvature = self._select_shadows(scale).estimate_curvature(linear_map)
        sigma = estimate_width(self.window, curvature)
        y, x = make_pixel_grid(self.window.size)
        return np.exp((y**2 + x**2) * (0.5j * curvature - 0.5 / sigma**2))[None].astype(np.complex64)

    def _select_shadows(self, scale: float) -> MovingShadows:
        """Return the pairs of patterns whose distances suit positions of about this scale: one list per factor √2."""
        step = round(2 * np.log2(scale))
        if step not in self._shadows:
            self._shadows[step] = MovingShadows(self.window, np.random.default_rng([self.seed, 2]), 2 ** (step / 2))
        return self._shadows[step]

    @torch.no_grad()
    def run(self, linear_map: Map, probe: NDArray[np.complex64], epochs: int) -> Trial:
        """Reconstruct object and probe from mapped positions, and score the result.

        Args:
            linear_map: map (2, 2) of the positions.
            probe: initial probe, (M, N, N) complex of any power.
            epochs: epochs of the engine.
        """
        modes = scale_probe_to_photons(replace(self.window, probe=probe), self.photons_per_unit)
        state = make_vacuum_state(torch.from_numpy(self._positions @ linear_map.T), modes, 2)
        state.object = state.object * fit_object_scale(self.measurement, state)
        options = PIE(epochs=epochs, update_probe=True, batch_size=BATCH_PATTERNS)
        engine = make_engine(self.measurement, state, options)
        # All trials fit the same patterns: an excluded one keeps a high score, which its trial did not minimize.
        if not EngineRunner(engine, self.seed, excludes_unexplained=False).run(SilentObserver()):
            raise KeyboardInterrupt
        scores = self._score(state)
        return Trial(float(scores.mean()), scores)

    def _score(self, state: ReconstructionState) -> NDArray[np.float64]:
        """Return the mean deviance of the held-out pixels above its noise floor, per pattern, (n,)."""
        rates = predict_intensity(ProbeObjectView(state), torch.arange(len(self.window)))
        mask = self._held_mask
        excess: Tensor = Poisson().deviance(rates, self._held_counts).double() - compute_deviance_floor(rates)
        excess = torch.where(mask, excess, 0.0).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
        return excess.numpy()
