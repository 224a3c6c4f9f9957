"""The gradient engine: a likelihood differentiated for all that is unknown, and an optimiser of torch."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ptycho_torch.config.engines import Gradient
from ptycho_torch.engines.measurement_model import MeasurementModel
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import from_patches, shift_probe
from ptycho_torch.physics.position_refinement import limit_displacements
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.regularizers import squared_gradient_norm, total_variation

FloatOrTensor = TypeVar("FloatOrTensor", float, Tensor)


class OptimizerDefaults(NamedTuple):
    """What an optimiser runs with unless told otherwise."""

    step: float
    momentum: float


OPTIMIZERS = {
    "adam": OptimizerDefaults(0.4, 0.9),
    "sgd": OptimizerDefaults(0.5, 0.8),
    "lbfgs": OptimizerDefaults(1.0, 0.0),
}
"""``adam`` and ``sgd`` step after every batch, ``lbfgs`` once an epoch, from all patterns."""

DEVIANCE_CURVATURE = 4.0
"""Second derivative of the deviances for the amplitude, at their minimum."""

MIN_BACKGROUND_PHOTONS = 1e-2
"""Least photons of a background that is learned: the square of what is zero has no slope."""

OBJECT_GRADIENT_PER_PX = 0.1
"""Change of the object from pixel to pixel that the curvature for a position is reckoned with."""

POSITION_ADAM_BETAS = (0.5, 0.9)
"""Of adam, for positions: they step once an epoch, so that a longer memory would outlast the run."""

POSITION_DECAY_EXPONENT = 0.4
"""Power of the fall of the steps for positions, which settle after the object."""


class GradientEngine(Engine):
    """Minimises ``Σ deviance / 4 + L (tv · TV(object) + smoothness · SD(object))`` over all patterns.

    The quarter makes the slope of the data term the change of the exit waves that a projection makes, and L, the light
    on a lit pixel, makes the weights of the regularisers independent of dose and overlap.

    The optimiser sees leaves: what is unknown, in units in which one step suits all of it. They are made from the
    estimate for every step, and new tensors are put there, so that only the optimiser's state is to be remembered
    besides. Positions are moved once an epoch, by what their pattern says; until then its window stays where it is.

    Raises:
        ConfigError: there is no optimiser of that name.
    """

    options: Gradient

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: Gradient) -> None:
        super().__init__(measurement, state, options)
        default = OPTIMIZERS[options.optimizer]
        self.step_size = default.step if options.step is None else options.step
        self.momentum = default.momentum if options.momentum is None else options.momentum
        self.full_batch = options.optimizer == "lbfgs"
        self.patterns_per_step = len(measurement) if self.full_batch else options.resolve_batch_size(len(measurement))
        self.optics = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        self._initial_positions = state.positions
        self._update_units()
        learned = [n for n in ("probe", "background", "positions") if getattr(options, f"update_{n}")]
        self._leaves = {name: self._encode(name).requires_grad_() for name in ("object", *learned)}
        rare = list(self._leaves) if self.full_batch else [n for n in learned if n == "positions"]
        self._batch_optimizer = self._make_leaf_optimizer(name for name in self._leaves if name not in rare)
        self._epoch_optimizer = self._make_leaf_optimizer(rare)
        self.begin_epoch(0, 0.0)

    def _make_leaf_optimizer(self, names: Iterable[str]) -> "LeafOptimizer | None":
        """The leaves of some names with an optimiser; None: there are none."""
        leaves = {name: self._leaves[name] for name in names}
        if not leaves:
            return None
        if self.full_batch:
            return LeafOptimizer(leaves, torch.optim.LBFGS(leaves.values(), max_iter=1, history_size=10))
        if self.options.optimizer == "sgd":
            sgd = torch.optim.SGD(leaves.values(), momentum=self.momentum, nesterov=self.momentum > 0)
            return LeafOptimizer(leaves, sgd)
        usual = (self.momentum, 0.999)
        betas = {name: POSITION_ADAM_BETAS if name == "positions" else usual for name in leaves}
        return LeafOptimizer(leaves, torch.optim.Adam({"params": [leaves[n]], "betas": betas[n]} for n in leaves))

    def _update_units(self) -> None:
        """Find where the windows lie, and the curvatures and units of the leaves."""
        state, n = self.state, len(self.measurement)
        if self.options.update_positions:
            self.optics.refresh()
        origin = state.positions.new_tensor(state.canvas.origin) + state.size // 2
        self._grid_positions = origin + self.optics.corners.cpu()  # positions less their fractions
        illumination = self.optics.make_illumination_map().sum_positions()
        self._mean_illumination = float(illumination.square().sum() / illumination.sum())
        seen = float((state.object.abs().square() * illumination).sum() / illumination.sum())
        self._curvature = {
            "object": self._compute_illumination_per_step(self._mean_illumination),
            "probe": seen * self.patterns_per_step,
            "background": float(self.patterns_per_step),
            "positions": OBJECT_GRADIENT_PER_PX**2 * self.measurement.photons / n,
        }
        self._units = (
            self._compute_adam_units() if self.options.optimizer == "adam" else self._compute_newton_units(illumination)
        )

    def _compute_adam_units(self) -> dict[str, float | Tensor]:
        """What one step changes: adam itself makes all steps of about the same length."""
        s = self.options
        root = (self.measurement.photons / self.measurement.counts.numel()) ** 0.5
        brightest = float(self.state.probe.abs().amax())
        return {
            "object": 1.0,
            "probe": s.probe_step * brightest,
            "background": s.background_step * root,
            "positions": 1.0,
        }

    def _compute_newton_units(self, illumination: Tensor) -> dict[str, float | Tensor]:
        """Units in which the curvature of what a step sees is about one."""
        return {n: value**-0.5 for n, value in self._curvature.items()} | {
            "object": self._compute_illumination_per_step(illumination) ** -0.5
        }

    def _compute_illumination_per_step(self, illumination: FloatOrTensor) -> FloatOrTensor:
        """What a step sees of all ``light``.

        The light of one pattern is added to its share, since where patterns are sparse it may bring that much at once.
        """
        peak = float(compute_power(self.state.probe).amax())
        return illumination * (self.patterns_per_step / len(self.measurement)) + peak

    def _encode(self, name: str) -> Tensor:
        """The leaf of the estimate's tensor ``name``, in memory of its own."""
        value = getattr(self.state, name)
        return (value.clamp_min(MIN_BACKGROUND_PHOTONS).sqrt() if name == "background" else value) / self._units[name]

    def _decode(self, name: str, leaf: Tensor) -> Tensor:
        value = leaf * self._units[name]
        return value.square() if name == "background" else value  # a square is never negative

    def begin_epoch(self, epoch: int, progress: float) -> None:
        s = self.options
        if s.update_probe or s.update_positions:
            self._update_units()
        resting = {"probe": epoch < s.probe_start, "positions": epoch < s.position_start}
        self._active = [name for name in self._leaves if not resting.get(name, False)]
        self._num_processed = 0
        self._encode_leaves()
        for leaf in self._leaves.values():
            leaf.grad = None

    def step(self, indices: Tensor, progress: float) -> float:
        self._encode_leaves()
        misfit = self.differentiate(indices)
        self._num_processed += len(indices)
        if self._batch_optimizer:
            self._step_optimizer(self._batch_optimizer, progress)
        return misfit

    def end_epoch(self, epoch: int, progress: float) -> None:
        if self._epoch_optimizer and self._num_processed == len(
            self.measurement
        ):  # an epoch cut short has no slope of all patterns
            self._step_optimizer(self._epoch_optimizer, progress)

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        for ensemble in (self._batch_optimizer, self._epoch_optimizer):
            if ensemble and "object" in ensemble.leaves:
                ensemble.change_momentum("object", change, self._units["object"])

    def _encode_leaves(self) -> None:
        """Make the leaves from the estimate."""
        for name, leaf in self._leaves.items():
            leaf.data = self._encode(name)

    def _step_optimizer(self, ensemble: "LeafOptimizer", progress: float) -> None:
        """Let an optimiser step, and put what it found into the estimate."""
        active = {name: leaf for name, leaf in ensemble.leaves.items() if name in self._active}
        for name, group in zip(ensemble.leaves, ensemble.optimizer.param_groups, strict=False):
            group["lr"] = self.step_scale * self._compute_rate(name, progress)
            if self.options.optimizer == "adam":
                group["eps"] = self.options.eps * self._curvature[name] * float(self._units[name]) ** 2
        if self.full_batch:
            ensemble.rescale_first_lbfgs_step()
        ensemble.optimizer.step(lambda: 0.0)
        with torch.no_grad():
            for name, leaf in active.items():
                value = self._decode(name, leaf)
                setattr(self.state, name, self._clip_positions(value) if name == "positions" else value)
        for leaf in ensemble.leaves.values():
            leaf.grad = None

    def _compute_rate(self, name: str, progress: float) -> float:
        """Step of a leaf at some ``progress`` of the run."""
        s = self.options
        if self.full_batch:
            return self.step_size
        pace = s.final_step ** max(0.0, (progress - s.decay_start) / (1 - s.decay_start))
        if name == "positions" and s.optimizer == "adam":
            return s.position_step * float(pace) ** POSITION_DECAY_EXPONENT
        return self.step_size * float(pace)

    def _clip_positions(self, positions: Tensor) -> Tensor:
        """Without a shift of all, near the start, and with their windows on the canvas."""
        canvas = self.state.canvas
        moved = limit_displacements(positions - self._initial_positions, self.options.position_bound)
        low = positions.new_tensor(canvas.origin) + self.state.size // 2
        high = low + positions.new_tensor(canvas.shape) - self.state.size
        return torch.minimum(torch.maximum(self._initial_positions + moved, low), high)

    def differentiate(self, indices: Tensor) -> float:
        """Add the slope of a batch's loss to that of the leaves.

        Returns:
            Σ (√intensity − √counts)² over the pixels that count.
        """
        with torch.enable_grad():  # engines may run where nothing is differentiated
            loss, misfit = self._compute_loss(indices)
        loss.backward()
        return float(misfit.sum())

    def _compute_loss(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of a batch, and (√intensity − √counts)² of its pixels (b, N, N), 0 where one does not count."""
        value = self.state.tensors() | {name: self._decode(name, self._leaves[name]) for name in self._active}
        intensity, counts = self._predict_intensity(value, indices), self.measurement.counts[indices]
        deviance = self.measurement.noise.deviance(intensity, counts)
        misfit = (intensity.detach().sqrt() - counts.sqrt()).square()
        mask = self.measurement.select_mask(indices)
        if mask is not None:
            deviance, misfit = (torch.where(mask, pixels, torch.zeros_like(pixels)) for pixels in (deviance, misfit))
        loss = deviance.sum() / DEVIANCE_CURVATURE
        if self.options.tv or self.options.smoothness:
            loss = loss + len(indices) / len(self.measurement) * self._compute_penalty(value["object"])
        return loss, misfit

    def _predict_intensity(self, value: dict[str, Tensor], indices: Tensor) -> Tensor:
        """Expected photons (b, N, N) by the tensors of an estimate, some of which may be differentiated for."""
        patches = self.optics.extract(value["object"], indices)
        if "probe" in self._active or "positions" in self._active:
            fractions = value["positions"][indices] - self._grid_positions[indices]
            probes = shift_probe(value["probe"], fractions.to(patches.device))
            patches = patches * value["intensities"][indices].sqrt()[:, None, None]
        else:
            probes = self.optics.probes(indices)
        return from_patches(patches, probes, value["background"]).intensity

    def _compute_penalty(self, obj: Tensor) -> Tensor:
        s = self.options
        penalty = obj.real.new_zeros(())
        if s.tv:
            penalty = penalty + s.tv * total_variation(obj)
        if s.smoothness:
            penalty = penalty + s.smoothness * squared_gradient_norm(obj)
        return self._mean_illumination * penalty

    def state_dict(self) -> dict[str, Tensor]:
        states = [ensemble.state_dict() for ensemble in (self._batch_optimizer, self._epoch_optimizer) if ensemble]
        return {"start": self._initial_positions} | {name: tensor for state in states for name, tensor in state.items()}

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self._initial_positions = memory["start"]
        for ensemble in (self._batch_optimizer, self._epoch_optimizer):
            if ensemble:
                ensemble.load_state_dict(memory)

    def reset(self) -> None:
        for ensemble in (self._batch_optimizer, self._epoch_optimizer):
            if ensemble:
                ensemble.optimizer.state.clear()


class LeafOptimizer:
    """Leaves that step together, by name, with their optimiser."""

    def __init__(self, leaves: dict[str, Tensor], optimizer: Optimizer) -> None:
        self.leaves, self.optimizer = leaves, optimizer

    def rescale_first_lbfgs_step(self) -> None:
        """torch shortens the first step of L-BFGS to 1 / |slope|₁, not knowing the units: undone, as ours are known."""
        if not self.optimizer.state:
            slopes = [leaf.grad for leaf in self.leaves.values() if leaf.grad is not None]
            parts = [torch.view_as_real(slope) if slope.is_complex() else slope for slope in slopes]
            self.optimizer.param_groups[0]["lr"] *= max(1.0, sum(float(part.abs().sum()) for part in parts))

    def change_momentum(self, name: str, change: Callable[[Tensor], Tensor], unit: float | Tensor) -> None:
        """Change the momentum of a leaf that steps in some ``unit``; L-BFGS, whose steps do not fit then, restarts."""
        state = self.optimizer.state.get(self.leaves[name], {})
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.state.clear()
        for key in {"exp_avg", "momentum_buffer"} & state.keys():
            if state[key] is not None:
                state[key] = change(state[key] * unit) / unit

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's state as tensors of their own; the names of lists end in ``[]``."""
        packed = {}
        for name, leaf in self.leaves.items():
            for key, value in self.optimizer.state.get(leaf, {}).items():
                if isinstance(value, list):
                    if key != "al":  # L-BFGS keeps scratch there
                        packed[f"{name}.{key}[]"] = torch.stack(value) if value else torch.empty(0)
                elif value is not None:
                    packed[f"{name}.{key}"] = _to_tensor(value)
        return packed

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave; nothing of it is written into."""
        self.optimizer.state.clear()
        for name, leaf in self.leaves.items():
            for key, value in memory.items():
                if key.startswith(f"{name}."):
                    self.optimizer.state[leaf][key.removeprefix(f"{name}.").removesuffix("[]")] = (
                        [row.clone() for row in value] if key.endswith("[]") else _to_optimizer_value(value)
                    )


def _to_tensor(value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.clone()
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _to_optimizer_value(value: Tensor) -> Any:
    """The number that :func:`_to_tensor` made a tensor of, or a copy."""
    return value.item() if value.ndim == 0 and value.dtype in (torch.int64, torch.float64) else value.clone()
