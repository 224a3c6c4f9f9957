"""Nuisance parameters refined with the object: background, per-pattern intensities, probe ambiguities."""

import torch
from torch import Tensor

from ptycho_torch.config.engines import RefinementOptions
from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.engines.pattern_start import MIN_BACKGROUND_SHARE, regularize_background
from ptycho_torch.engines.position_refinement import PositionRefiner
from ptycho_torch.engines.state import ReconstructionState
from ptycho_torch.physics.position_refinement import EXIT_WAVE_STEP_FACTOR
from ptycho_torch.physics.probe import compute_center, compute_power, orthogonalize_modes

MAX_INTENSITY_RATIO = 1.5
"""Largest factor, up or down, by which the intensity of a pattern changes in one epoch."""

STORED_CENTER_NAME = "centre"
"""Name of the probe center in checkpoints, which earlier versions wrote."""


class NuisanceRefiner:
    """Refines positions, background and intensities from the exit-wave updates of an engine's batches.

    Positions: :class:`~ptycho_torch.engines.position_refinement.PositionRefiner`.

    Background: one Newton step per epoch on the Poisson likelihood, ``Σ (k/I − 1) / Σ 1/I`` over all patterns, with
    measured photons k and expected photons I. It begins after a part of the run: a background takes up the misfit of a
    rough object and returns it slowly. A background that starts strong, with a share of the photons of about
    :data:`~ptycho_torch.engines.pattern_start.MIN_BACKGROUND_SHARE` or more, is fitted from the second epoch, and its
    insignificant deviations from a smooth background are removed.

    Intensities: the least-squares factor c of ``c ψ`` against the updated exit wave gives the intensity ratio c² of
    each pattern. The intensities keep a mean of one, and their changes no slow variation over the field: patterns
    barely distinguish a source that fades from an object that darkens, and the two would drift apart.

    Args:
        model: The measurement model of the engine.
        options: Which parameters are refined.
        position_step_factor: Factor on the displacements of the position method ``gradient``.
    """

    def __init__(
        self,
        model: MeasurementModel,
        options: RefinementOptions,
        position_step_factor: float = EXIT_WAVE_STEP_FACTOR,
    ) -> None:
        self.model, self.options = model, options
        self.positions = PositionRefiner(
            model,
            options.position_bound,
            options.position_method,
            options.position_model,
            position_step_factor,
            keeps_affine_part=options.update_probe,
        )
        self.ambiguity_fix = AmbiguityFix(model.state)
        self.initial_intensities = model.state.intensities
        photons_per_pattern = model.measurement.photons / len(model.measurement)
        self.background_is_strong = (
            float(model.state.background.sum()) > 0.5 * MIN_BACKGROUND_SHARE * photons_per_pattern
        )
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.positions.begin_epoch()
        self._intensity_ratios = torch.ones_like(self.model.state.intensities)
        self._background_residual = torch.zeros_like(self.model.state.background)
        self._background_weight = torch.zeros_like(self._background_residual)

    def accumulate(self, update: ExitWaveUpdate, indices: Tensor, epoch: int) -> None:
        """Add the contribution of a batch to the estimates of the epoch."""
        if self.options.update_positions and epoch >= self.options.position_start:
            self.positions.accumulate(update, indices)
        if self.options.update_intensity and epoch:
            self._intensity_ratios[indices] = estimate_intensity_ratios(update)
        is_fitted = self.options.is_background_fitted(epoch)
        is_fitted |= self.options.update_background and self.background_is_strong
        if update.excess is not None and epoch and is_fitted:
            counts = self.model.measurement.counts[indices]
            weight = 1 / (counts - update.excess + 1)
            mask = self.model.measurement.select_mask(indices)
            if mask is not None:
                weight = torch.where(mask, weight, torch.zeros_like(weight))
            self._background_residual = self._background_residual + (update.excess * weight).sum(0)
            self._background_weight = self._background_weight + weight.sum(0)

    def end_epoch(self) -> bool:
        """Apply the estimates of the epoch to the state.

        Returns:
            True if the object was shifted or scaled; a momentum of the object must follow by
            :meth:`AmbiguityFix.apply`.
        """
        state = self.model.state
        if bool(self._background_weight.any()):
            step = self._background_residual / self._background_weight.clamp_min(1e-30)
            fitted = (state.background + step).clamp_min(0)
            if self.background_is_strong:
                fitted = regularize_background(fitted, self.model.measurement)
            state.background = fitted
        moved = self.positions.end_epoch()
        scaled = bool((self._intensity_ratios != 1).any())
        if scaled:
            state.intensities = apply_intensity_ratios(
                state.intensities, self._intensity_ratios, self.initial_intensities, self.positions.initial_positions
            )
        if moved or scaled:
            self.model.refresh()
        self._begin_epoch()
        if self.options.update_probe:
            self.ambiguity_fix.fix(state)
        return self.options.update_probe

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        own = {
            "initial_intensities": self.initial_intensities,
            "background_is_strong": torch.tensor(self.background_is_strong),
        }
        return own | self.positions.state_dict() | self.ambiguity_fix.state_dict()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors that :meth:`state_dict` returned, after the state was restored."""
        self.positions.load_state_dict(tensors)
        self.initial_intensities = tensors.get("initial_intensities", torch.ones_like(self.initial_intensities))
        self.background_is_strong = bool(tensors.get("background_is_strong", False))
        self.ambiguity_fix.load_state_dict(tensors)
        self._begin_epoch()
        if self.options.update_positions or self.options.update_intensity:
            self.model.refresh()


class AmbiguityFix:
    """The power and the center of the probe, which patterns leave free, and the transformation that restores them.

    Args:
        state: The state whose probe has the power and the center to preserve.
    """

    def __init__(self, state: ReconstructionState) -> None:
        self.power = compute_power(state.probe).sum()
        self.center = compute_center(compute_power(state.probe))
        self.scale, self.shift = 1.0, (0, 0)

    def fix(self, state: ReconstructionState) -> None:
        """Restore power and center of the probe, orthogonalize its modes, and transform the object accordingly."""
        probe = orthogonalize_modes(state.probe)
        self.scale = float((self.power / compute_power(probe).sum()).sqrt())
        drift = (compute_center(compute_power(probe)) - self.center).round().int().tolist()
        self.shift = (-drift[0], -drift[1])
        state.probe = torch.roll(probe * self.scale, self.shift, (-2, -1))
        state.object = self.apply(state.object)

    def apply(self, canvas: Tensor) -> Tensor:
        """Return ``canvas`` (rows, columns) transformed as the last :meth:`fix` transformed the object."""
        return torch.roll(canvas / self.scale, self.shift, (-2, -1)) if any(self.shift) else canvas / self.scale

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        return {"power": self.power, STORED_CENTER_NAME: self.center}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors that :meth:`state_dict` returned."""
        self.power = tensors["power"].to(self.power.device)
        self.center = tensors[STORED_CENTER_NAME].to(self.center.device)


def estimate_intensity_ratios(update: ExitWaveUpdate) -> Tensor:
    """Return the factor on the intensity of each pattern of a batch, (b,).

    The factor is limited to :data:`MAX_INTENSITY_RATIO`, up and down.
    """
    exit_waves = torch.view_as_real(update.probes * update.patches[:, None]).flatten(1)
    projection = torch.linalg.vecdot(exit_waves, torch.view_as_real(update.change).flatten(1))
    power = torch.linalg.vecdot(exit_waves, exit_waves)
    ratio = 1 + projection / power.clamp_min(torch.finfo(power.dtype).tiny)
    return ratio.clamp_min(0).square().clamp(1 / MAX_INTENSITY_RATIO, MAX_INTENSITY_RATIO)


def apply_intensity_ratios(intensities: Tensor, ratios: Tensor, initial: Tensor, positions: Tensor) -> Tensor:
    """Return ``intensities * ratios`` with a mean of one, without slow variation relative to ``initial``, (n,) each."""
    intensities = initial * remove_slow_variation(intensities * ratios / initial, positions)
    return intensities / intensities.mean()


def remove_slow_variation(intensities: Tensor, positions: Tensor) -> Tensor:
    """Return intensities (n,) of mean one whose logarithms have no second-order polynomial in ``positions`` (n, 2)."""
    centered = positions - positions.mean(0)
    y, x = (centered / centered.abs().amax().clamp_min(1e-9)).unbind(1)
    terms = torch.stack([torch.ones_like(x), y, x, y * y, y * x, x * x], 1)
    logs = intensities.to("cpu", torch.float64).log()
    slow = terms @ (torch.linalg.pinv(terms, rtol=1e-9) @ logs)
    remaining = torch.exp(logs - slow)
    return (remaining / remaining.mean()).to(intensities)
