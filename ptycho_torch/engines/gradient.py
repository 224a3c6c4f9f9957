"""The gradient engine: automatic differentiation of a likelihood, minimized by an optimizer of torch."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ptycho_torch.config.engines import Gradient
from ptycho_torch.engines.leaf_optimizer import LeafOptimizer
from ptycho_torch.engines.measurement_model import MeasurementModel
from ptycho_torch.engines.nuisance import MAX_INTENSITY_RATIO, apply_intensity_ratios
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import from_patches, shift_probe
from ptycho_torch.physics.position_refinement import limit_displacements, remove_affine_part
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.regularizers import squared_gradient_norm, total_variation

FloatOrTensor = TypeVar("FloatOrTensor", float, Tensor)


class OptimizerDefaults(NamedTuple):
    """Default step and momentum of an optimizer."""

    step: float
    momentum: float


OPTIMIZERS = {
    "adam": OptimizerDefaults(0.4, 0.9),
    "sgd": OptimizerDefaults(0.5, 0.8),
    "lbfgs": OptimizerDefaults(1.0, 0.0),
}
"""``adam`` and ``sgd`` step once per batch, ``lbfgs`` once per epoch with the gradient of all patterns."""

DEVIANCE_CURVATURE = 4.0
"""Second derivative of a deviance with respect to the amplitude, at its minimum."""

MIN_BACKGROUND_PHOTONS = 1e-2
"""Smallest background to start from: the square of 0 has no gradient."""

OBJECT_SLOPE_PER_PX = 0.1
"""Assumed change of the object per pixel in the curvature of the positions."""

ADAM_SECOND_BETA = 0.999
"""Second β of Adam, for all leaves except the positions."""

POSITION_ADAM_BETAS = (0.5, 0.9)
"""Both β of Adam for the positions, which step once per epoch: longer averages would outlast the run."""

POSITION_DECAY_EXPONENT = 0.4
"""Exponent on the decay of the step for the positions, which converge after the object."""


class GradientEngine(Engine):
    """Minimize ``Σ deviance / 4 + L (tv · TV(object) + smoothness · SD(object))`` over all patterns.

    Through the factor ¼ the gradient of the data term equals the exit-wave change of a modulus projection. L is the
    mean illumination of an illuminated pixel and makes the weights of the regularizers independent of dose and overlap.

    The optimizer steps leaves: the unknowns in units in which one step size suits all of them. Before every step they
    are computed from the state, and after it the state gets new tensors; the optimizer has the only further memory.
    Positions are stepped once per epoch; within an epoch their patches stay at the same corners.
    """

    options: Gradient

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: Gradient) -> None:
        super().__init__(measurement, state, options)
        default = OPTIMIZERS[options.optimizer]
        self.step_size = default.step if options.step is None else options.step
        self.momentum = default.momentum if options.momentum is None else options.momentum
        self.full_batch = options.optimizer == "lbfgs"
        self.patterns_per_step = len(measurement) if self.full_batch else options.resolve_batch_size(len(measurement))
        self.model = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        self._initial_positions, self._initial_intensities = state.positions, state.intensities
        self._update_units()
        updated = [name for name in ("probe", "background", "positions") if getattr(options, f"update_{name}")]
        self.leaves = {name: self._encode(name).requires_grad_() for name in ("object", *updated)}
        """Tensors that the optimizers step, by the name of the unknown."""
        per_epoch = list(self.leaves) if self.full_batch else [name for name in updated if name == "positions"]
        self._batch_optimizer = self._make_optimizer(name for name in self.leaves if name not in per_epoch)
        self._epoch_optimizer = self._make_optimizer(per_epoch)
        self._optimizers = [each for each in (self._batch_optimizer, self._epoch_optimizer) if each is not None]
        self.begin_epoch(0, 0.0)

    def _make_optimizer(self, names: Iterable[str]) -> LeafOptimizer | None:
        """Return an optimizer of the leaves called ``names``; None if there are none."""
        leaves = {name: self.leaves[name] for name in names}
        if not leaves:
            return None
        if self.full_batch:
            return LeafOptimizer(leaves, torch.optim.LBFGS(leaves.values(), max_iter=1, history_size=10))
        if self.options.optimizer == "sgd":
            sgd = torch.optim.SGD(leaves.values(), momentum=self.momentum, nesterov=self.momentum > 0)
            return LeafOptimizer(leaves, sgd)
        common = (self.momentum, ADAM_SECOND_BETA)
        groups = [
            {"params": [leaf], "betas": POSITION_ADAM_BETAS if name == "positions" else common}
            for name, leaf in leaves.items()
        ]
        return LeafOptimizer(leaves, torch.optim.Adam(groups))

    def begin_epoch(self, epoch: int, progress: float) -> None:
        options = self.options
        if options.update_probe or options.update_positions:
            self._update_units()
        inactive = {
            "probe": epoch < options.probe_start,
            "positions": epoch < options.position_start,
            "background": not options.is_background_fitted(epoch),
        }
        self._active = [name for name in self.leaves if not inactive.get(name, False)]
        self._num_processed = 0
        self._intensity_ratios = torch.ones_like(self.state.intensities)
        self._encode_leaves()
        for leaf in self.leaves.values():
            leaf.grad = None

    def step(self, indices: Tensor, progress: float) -> float:
        self._encode_leaves()
        misfit = self.differentiate(indices)
        self._num_processed += len(indices)
        if self._batch_optimizer:
            self._step_optimizer(self._batch_optimizer, progress)
        return misfit

    def end_epoch(self, epoch: int, progress: float) -> None:
        is_complete = self._num_processed == len(self.state.find_included())  # otherwise the gradient lacks patterns
        if self._epoch_optimizer and is_complete:
            self._step_optimizer(self._epoch_optimizer, progress)
        if self.options.update_intensity and epoch:
            self.state.intensities = apply_intensity_ratios(
                self.state.intensities, self._intensity_ratios, self._initial_intensities, self._initial_positions
            )
            self.model.refresh()

    def differentiate(self, indices: Tensor) -> float:
        """Add the gradient of the loss of a batch to the gradients of the leaves.

        Returns:
            Σ (√intensity − √counts)² over the pixels that count.
        """
        with torch.enable_grad():  # engines run under no_grad
            loss, misfit = self.compute_loss(indices)
        loss.backward()
        return float(misfit.sum())

    def compute_loss(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and (√intensity − √counts)² per pixel (b, N, N), 0 where the mask is False."""
        unknowns = self.state.tensors() | {name: self._decode(name, self.leaves[name]) for name in self._active}
        intensity, counts = self._predict_intensity(unknowns, indices), self.measurement.counts[indices]
        deviance = self.measurement.noise.deviance(intensity, counts)
        misfit = (intensity.detach().sqrt() - counts.sqrt()).square()
        mask = self.measurement.select_mask(indices)
        if mask is not None:
            deviance, misfit = (torch.where(mask, pixels, torch.zeros_like(pixels)) for pixels in (deviance, misfit))
        if self.options.update_intensity:
            self._intensity_ratios[indices] = self._fit_intensity_ratios(intensity.detach(), counts, mask)
        loss = deviance.sum() / DEVIANCE_CURVATURE
        if self.options.tv or self.options.smoothness:
            loss = loss + len(indices) / len(self.measurement) * self._compute_penalty(unknowns["object"])
        return loss, misfit

    def _predict_intensity(self, unknowns: dict[str, Tensor], indices: Tensor) -> Tensor:
        """Return the expected photons (b, N, N) from the tensors of a state, some of which require a gradient."""
        patches = self.model.extract(unknowns["object"], indices)
        if "probe" in self._active or "positions" in self._active:
            fractions = unknowns["positions"][indices] - self._grid_positions[indices]
            probes = shift_probe(unknowns["probe"], fractions.to(patches.device))
            patches = patches * unknowns["intensities"][indices].sqrt()[:, None, None]
        else:
            probes = self.model.probes(indices)
        return from_patches(patches, probes, unknowns["background"]).intensity

    def _fit_intensity_ratios(self, intensity: Tensor, counts: Tensor, mask: Tensor | None) -> Tensor:
        """Return the factor (b,) on the photons of each pattern above the background, by weighted least squares."""
        signal, weight = intensity - self.state.background, 1 / (intensity + 1)
        products = torch.stack([signal * (counts - self.state.background), signal.square()]) * weight
        if mask is not None:
            products = torch.where(mask, products, torch.zeros_like(products))
        product, square = products.sum((-2, -1))
        ratio = product / square.clamp_min(torch.finfo(square.dtype).tiny)
        return ratio.clamp(1 / MAX_INTENSITY_RATIO, MAX_INTENSITY_RATIO)

    def _compute_penalty(self, obj: Tensor) -> Tensor:
        """Return the weighted regularizers of the object."""
        penalty = obj.real.new_zeros(())
        if self.options.tv:
            penalty = penalty + self.options.tv * total_variation(obj)
        if self.options.smoothness:
            penalty = penalty + self.options.smoothness * squared_gradient_norm(obj)
        return self._mean_illumination * penalty

    def _step_optimizer(self, optimizer: LeafOptimizer, progress: float) -> None:
        """Step an optimizer and replace the tensors of the state."""
        # Adam has a group per leaf; SGD and L-BFGS have one group, with the rate of the first leaf.
        for name, group in zip(optimizer.leaves, optimizer.optimizer.param_groups, strict=False):
            group["lr"] = self.step_scale * self._compute_learning_rate(name, progress)
            if self.options.optimizer == "adam":
                group["eps"] = self.options.eps * self._curvature[name] * float(self.units[name]) ** 2
        if self.full_batch:
            optimizer.rescale_first_lbfgs_step()
        optimizer.optimizer.step(lambda: 0.0)
        with torch.no_grad():
            for name, leaf in optimizer.leaves.items():
                if name in self._active:
                    value = self._decode(name, leaf)
                    setattr(self.state, name, self.limit_positions(value) if name == "positions" else value)
        for leaf in optimizer.leaves.values():
            leaf.grad = None

    def _compute_learning_rate(self, name: str, progress: float) -> float:
        """Return the learning rate of a leaf at ``progress`` of the run."""
        options = self.options
        if self.full_batch:
            return self.step_size
        decay = options.final_step ** max(0.0, (progress - options.decay_start) / (1 - options.decay_start))
        if name == "positions" and options.optimizer == "adam":
            return options.position_step * float(decay) ** POSITION_DECAY_EXPONENT
        return self.step_size * float(decay)

    def limit_positions(self, positions: Tensor) -> Tensor:
        """Return ``positions`` (n, 2) within the bound and with their patches on the canvas."""
        canvas = self.state.canvas
        options = self.options
        displacements = positions - self._initial_positions
        is_affine = options.position_model == "affine"
        if options.update_probe or is_affine:  # see PositionRefiner
            rest = remove_affine_part(displacements, self._initial_positions if is_affine else positions)
            displacements = displacements - rest if is_affine else rest
        displacements = limit_displacements(displacements, options.position_bound, options.position_model)
        low = positions.new_tensor(canvas.origin) + self.state.size // 2
        high = low + positions.new_tensor(canvas.shape) - self.state.size
        return torch.minimum(torch.maximum(self._initial_positions + displacements, low), high)

    def _encode_leaves(self) -> None:
        """Compute the leaves from the state."""
        for name, leaf in self.leaves.items():
            leaf.data = self._encode(name)

    def _encode(self, name: str) -> Tensor:
        """Return the unknown ``name`` of the state in its unit, in new memory. The background is a square."""
        value = getattr(self.state, name)
        return (value.clamp_min(MIN_BACKGROUND_PHOTONS).sqrt() if name == "background" else value) / self.units[name]

    def _decode(self, name: str, leaf: Tensor) -> Tensor:
        """Return the unknown ``name`` from its leaf."""
        value = leaf * self.units[name]
        return value.square() if name == "background" else value  # a square is never negative

    def _update_units(self) -> None:
        """Recompute the positions of the patches, and the curvatures and units of the leaves."""
        state, count = self.state, len(self.measurement)
        if self.options.update_positions:
            self.model.refresh()
        origin = state.positions.new_tensor(state.canvas.origin) + state.size // 2
        self._grid_positions = origin + self.model.corners.cpu()  # positions without their sub-pixel shifts
        illumination = self.model.make_illumination_map().sum_positions()
        self._mean_illumination = float(illumination.square().sum() / illumination.sum())
        object_power = float((state.object.abs().square() * illumination).sum() / illumination.sum())
        self._curvature = {
            "object": self._scale_to_step(self._mean_illumination),
            "probe": object_power * self.patterns_per_step,
            "background": float(self.patterns_per_step),
            "positions": OBJECT_SLOPE_PER_PX**2 * self.measurement.photons / count,
        }
        is_adam = self.options.optimizer == "adam"
        self.units = self._compute_adam_units() if is_adam else self._compute_newton_units(illumination)
        """Unit of each leaf."""

    def _compute_adam_units(self) -> dict[str, float | Tensor]:
        """Return the change of each unknown by one step: all steps of Adam have about the same length."""
        root_mean_photons = (self.measurement.photons / self.measurement.counts.numel()) ** 0.5
        return {
            "object": 1.0,
            "probe": self.options.probe_step * float(self.state.probe.abs().amax()),
            "background": self.options.background_step * root_mean_photons,
            "positions": 1.0,
        }

    def _compute_newton_units(self, illumination: Tensor) -> dict[str, float | Tensor]:
        """Return units in which the curvature of the loss of one step is about 1."""
        return {name: value**-0.5 for name, value in self._curvature.items()} | {
            "object": self._scale_to_step(illumination) ** -0.5
        }

    def _scale_to_step(self, illumination: FloatOrTensor) -> FloatOrTensor:
        """Return the part of the illumination by all patterns that the patterns of one step bring at most.

        The peak illumination of a single pattern is added: in a sparse scan one step can bring that much to a pixel.
        """
        peak = float(compute_power(self.state.probe).amax())
        return illumination * (self.patterns_per_step / len(self.measurement)) + peak

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        for optimizer in self._optimizers:
            if "object" in optimizer.leaves:
                optimizer.change_momentum("object", change, self.units["object"])

    def state_dict(self) -> dict[str, Tensor]:
        states = [optimizer.state_dict() for optimizer in self._optimizers]
        initial = {"start": self._initial_positions, "initial_intensities": self._initial_intensities}
        return initial | {name: tensor for state in states for name, tensor in state.items()}

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self._initial_positions = memory["start"]
        self._initial_intensities = memory.get("initial_intensities", self._initial_intensities)
        for optimizer in self._optimizers:
            optimizer.load_state_dict(memory)

    def reset(self) -> None:
        for optimizer in self._optimizers:
            optimizer.reset()
