"""Refinement of the scan positions while an engine reconstructs the object."""

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.physics.position_refinement import (
    EXIT_WAVE_STEP_FACTOR,
    compute_object_slopes,
    estimate_by_correlation,
    estimate_by_exit_wave,
    fit_affine_displacements,
    limit_displacements,
    remove_affine_part,
)

MIN_MOVE_COSINE = 0.3
"""Cosine between the moves of two epochs above which the gain grows; below its negative the gain falls."""

GAIN_GROWTH, GAIN_DECAY, MAX_GAIN = 1.2, 0.5, 10.0
"""Factors on the gain, and its largest value."""


class PositionRefiner:
    """Positions that move once per epoch, by displacements estimated from the batches of the epoch.

    The displacement of each pattern comes from :func:`~ptycho_torch.physics.position_refinement.estimate_by_exit_wave`
    or :func:`~ptycho_torch.physics.position_refinement.estimate_by_correlation`. In the affine model all positions move
    by one map about their center: errors of stage and camera calibration scale, rotate and shear a scan as a whole.

    With an unknown probe, free positions keep the affine part of their initial values. Probe and object adapt to an
    affine map of all positions nearly without a change of the patterns, so that it would drift during the first epochs,
    while the object is rough, and never return.

    Args:
        model: The measurement model of the engine; its state holds the positions.
        bound: Largest displacement per axis from the initial positions, in pixels.
        method: ``gradient`` (least squares on the exit wave) or ``correlation``.
        displacement_model: ``free`` or ``affine``.
        step_factor: Factor on the displacements of the method ``gradient``.
        keeps_affine_part: Whether free displacements have no affine part: with an unknown probe.
    """

    def __init__(
        self,
        model: MeasurementModel,
        bound: float,
        method: str = "gradient",
        displacement_model: str = "free",
        step_factor: float = EXIT_WAVE_STEP_FACTOR,
        keeps_affine_part: bool = False,
    ) -> None:
        self.model, self.bound, self.method = model, bound, method
        self.displacement_model, self.step_factor = displacement_model, step_factor
        self.keeps_affine_part = keeps_affine_part
        self.initial_positions = model.state.positions
        self.last_moves = torch.zeros_like(self.initial_positions)
        self.gain = torch.ones((), dtype=torch.float64)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Discard the estimates of the last epoch."""
        self._moves = torch.zeros_like(self.initial_positions)
        self._curvature = self.initial_positions.new_zeros(len(self.initial_positions), 2, 2)

    def accumulate(self, update: ExitWaveUpdate, indices: Tensor) -> None:
        """Estimate the displacements of a batch from its exit-wave update."""
        moves, curvature = self.estimate(update, indices)
        self._moves[indices] = moves.to("cpu", torch.float64)
        self._curvature[indices] = curvature.to("cpu", torch.float64)

    def estimate(self, update: ExitWaveUpdate, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the displacements (b, 2) of a batch and the curvature (b, 2, 2) of their misfit."""
        if self.method == "correlation":
            return estimate_by_correlation(update.patches, update.probes, update.change)
        slope_y, slope_x = compute_object_slopes(self.model.state.object)
        slopes = self.model.extract(slope_y, indices), self.model.extract(slope_x, indices)
        return estimate_by_exit_wave(update.probes, slopes, update.change, self.step_factor)

    def end_epoch(self) -> bool:
        """Move the positions of the state.

        Returns:
            True if positions moved; the model must be refreshed then.
        """
        moves = torch.nan_to_num(self._moves, 0.0, 0.0, 0.0)  # the runner reverts the epoch that diverged
        if not bool(moves.any()):
            return False
        state, initial = self.model.state, self.initial_positions
        if self.displacement_model == "affine":
            moves = fit_affine_displacements(moves, self._curvature, initial)
            self._update_gain(moves)
            moves = moves * self.gain
        elif self.keeps_affine_part:
            moves = remove_affine_part(moves, initial)
        displacements = limit_displacements(state.positions - initial + moves, self.bound, self.displacement_model)
        state.positions = initial + displacements
        return True

    def _update_gain(self, moves: Tensor) -> None:
        """Increase the gain while successive epochs move the same way, and reduce it when they reverse.

        The object adapts to an affine map of all positions more than to the move of a single position, so that one
        epoch recovers only a small part of the map: Zhang et al., Opt. Express 21, 13592 (2013).
        """
        lengths = torch.linalg.vector_norm(moves) * torch.linalg.vector_norm(self.last_moves)
        cosine = float((moves * self.last_moves).sum() / lengths.clamp_min(1e-30))
        if abs(cosine) > MIN_MOVE_COSINE:
            self.gain = (self.gain * (GAIN_GROWTH if cosine > 0 else GAIN_DECAY)).clamp(1.0, MAX_GAIN)
        self.last_moves = moves

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        return {"first_positions": self.initial_positions, "last_moves": self.last_moves, "gain": self.gain}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors that :meth:`state_dict` returned."""
        self.initial_positions, self.last_moves = tensors["first_positions"].cpu(), tensors["last_moves"].cpu()
        self.gain = tensors["gain"].cpu()
        self.begin_epoch()
