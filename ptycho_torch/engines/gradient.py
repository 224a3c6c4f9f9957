"""The gradient engine: a likelihood differentiated for all that is unknown, and an optimiser of torch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.engines.measurement_model import Optics
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Estimate, Measurement
from ptycho_torch.physics.forward import from_patches, probe_at
from ptycho_torch.physics.probe import power_of
from ptycho_torch.physics.regularizers import squared_differences, total_variation

Light = TypeVar("Light", float, Tensor)


class Defaults(NamedTuple):
    """What an optimiser runs with unless told otherwise."""

    step: float
    momentum: float


OPTIMIZERS = {"adam": Defaults(0.4, 0.9), "sgd": Defaults(0.5, 0.8), "lbfgs": Defaults(1.0, 0.0)}
"""``adam`` and ``sgd`` step after every batch, ``lbfgs`` once an epoch, from all patterns."""

CURVATURE = 4.0
"""Second derivative of the deviances for the amplitude, at their minimum."""

DARK = 1e-2
"""Least photons of a background that is learned: the square of what is zero has no slope."""

ROUGHNESS = 0.1
"""Change of the object from pixel to pixel that the curvature for a position is reckoned with."""

POSITION_BETAS = (0.5, 0.9)
"""Of adam, for positions: they step once an epoch, so that a longer memory would outlast the run."""

POSITION_FALL = 0.4
"""Power of the fall of the steps for positions, which settle after the object."""


@dataclass(frozen=True)
class GradientSettings:
    """What is optimised, and how."""

    optimizer: str = "adam"
    """One of :data:`OPTIMIZERS`."""

    step: float | None = None
    """adam: change of the object in a batch, 1 being vacuum; sgd: share of the exact step for the light that a batch
    brings; lbfgs: share of the quasi-Newton step. None: the optimiser's."""

    momentum: float | None = None
    """sgd: share of the last step that is taken again; adam: share of the mean slope that is kept; lbfgs has none."""

    settle: float = 0.3
    """Share of the run after which the steps of adam and sgd fall."""

    last_step: float = 0.02
    """Step at the end of the run, as a share of the first."""

    calm: float = 0.06
    """adam: what is off by less than this, in the units of its step, is stepped in proportion to what it is off by, so
    that a good start is kept and noise is not followed."""

    probe_step: float = 0.2
    """adam: step of the probe, 1 being its largest amplitude, as a share of the object's."""

    background_step: float = 1.0
    """adam: step of the background's root, 1 being the root of a pixel's mean photons, as a share of the object's."""

    position_step: float = 1.0
    """adam: step of a position in an epoch, in pixels."""

    update_probe: bool = False
    """Whether the probe learns too."""

    probe_start: int = 0
    """Epoch from which on the probe learns."""

    update_positions: bool = False
    """Whether the positions learn too."""

    position_start: int = 3
    """Epoch from which on the positions learn."""

    position_bound: float = 5.0
    """Farthest that a position is moved, in pixels."""

    update_background: bool = False
    """Whether the background learns too."""

    tv: float = 0.0
    """Weight of the object's total variation, in the object's unit: noise below about this is levelled."""

    smoothness: float = 0.0
    """Weight of the object's squared differences, in square pixels: blurs over about the root of twice this."""


class Gradient(Engine):
    """Minimises ``Σ deviance / 4 + L (tv · TV(object) + smoothness · SD(object))`` over all patterns.

    The quarter makes the slope of the data term the change of the exit waves that a projection makes, and L, the light
    on a lit pixel, makes the weights of the regularisers independent of dose and overlap.

    The optimiser sees leaves: what is unknown, in units in which one step suits all of it. They are made from the
    estimate for every step, and new tensors are put there, so that only the optimiser's state is to be remembered
    besides. Positions are moved once an epoch, by what their pattern says; until then its window stays where it is.

    Raises:
        ConfigError: there is no optimiser of that name.
    """

    def __init__(
        self, measurement: Measurement, estimate: Estimate, settings: GradientSettings, batch_size: int
    ) -> None:
        super().__init__(measurement, estimate)
        if settings.optimizer not in OPTIMIZERS:
            raise ConfigError(f"--optimizer is {settings.optimizer}: known are {', '.join(sorted(OPTIMIZERS))}")
        self.settings, default = settings, OPTIMIZERS[settings.optimizer]
        self.step_size = default.step if settings.step is None else settings.step
        self.momentum = default.momentum if settings.momentum is None else settings.momentum
        self.by_epoch_only = settings.optimizer == "lbfgs"
        self.seen_a_step = len(measurement) if self.by_epoch_only else min(batch_size, len(measurement))
        fixed = not settings.update_probe and not settings.update_positions
        self.optics = Optics(measurement, estimate, fixed_probe=fixed)
        self._start = estimate.positions
        self._look()
        learned = [n for n in ("probe", "background", "positions") if getattr(settings, f"update_{n}")]
        self._leaves = {name: self._encode(name).requires_grad_() for name in ("object", *learned)}
        rare = list(self._leaves) if self.by_epoch_only else [n for n in learned if n == "positions"]
        self._by_batch = self._ensemble(name for name in self._leaves if name not in rare)
        self._by_epoch = self._ensemble(rare)
        self.begin_epoch(0, 0.0)

    def _ensemble(self, names: Iterable[str]) -> "Ensemble | None":
        """The leaves of some names with an optimiser; None: there are none."""
        leaves = {name: self._leaves[name] for name in names}
        if not leaves:
            return None
        if self.by_epoch_only:
            return Ensemble(leaves, torch.optim.LBFGS(leaves.values(), max_iter=1, history_size=10))
        if self.settings.optimizer == "sgd":
            sgd = torch.optim.SGD(leaves.values(), momentum=self.momentum, nesterov=self.momentum > 0)
            return Ensemble(leaves, sgd)
        usual = (self.momentum, 0.999)
        betas = {name: POSITION_BETAS if name == "positions" else usual for name in leaves}
        return Ensemble(leaves, torch.optim.Adam({"params": [leaves[n]], "betas": betas[n]} for n in leaves))

    def _look(self) -> None:
        """Find where the windows lie, and the curvatures and units of the leaves."""
        estimate, n = self.estimate, len(self.measurement)
        if self.settings.update_positions:
            self.optics.moved()
        origin = estimate.positions.new_tensor(estimate.frame.origin) + estimate.size // 2
        self._grid = origin + self.optics.corners.cpu()  # positions less their fractions
        light = self.optics.light().of()
        self._lit = float(light.square().sum() / light.sum())
        seen = float((estimate.object.abs().square() * light).sum() / light.sum())
        self._curvature = {
            "object": self._brought(self._lit),
            "probe": seen * self.seen_a_step,
            "background": float(self.seen_a_step),
            "positions": ROUGHNESS**2 * self.measurement.photons / n,
        }
        self._units = self._adam_units() if self.settings.optimizer == "adam" else self._newton_units(light)

    def _adam_units(self) -> dict[str, float | Tensor]:
        """What one step changes: adam itself makes all steps of about the same length."""
        s = self.settings
        root = (self.measurement.photons / self.measurement.counts.numel()) ** 0.5
        brightest = float(self.estimate.probe.abs().amax())
        return {
            "object": 1.0,
            "probe": s.probe_step * brightest,
            "background": s.background_step * root,
            "positions": 1.0,
        }

    def _newton_units(self, light: Tensor) -> dict[str, float | Tensor]:
        """Units in which the curvature of what a step sees is about one."""
        return {n: value**-0.5 for n, value in self._curvature.items()} | {"object": self._brought(light) ** -0.5}

    def _brought(self, light: Light) -> Light:
        """What a step sees of all ``light``.

        The light of one pattern is added to its share, since where patterns are sparse it may bring that much at once.
        """
        peak = float(power_of(self.estimate.probe).amax())
        return light * (self.seen_a_step / len(self.measurement)) + peak

    def _encode(self, name: str) -> Tensor:
        """The leaf of the estimate's tensor ``name``, in memory of its own."""
        value = getattr(self.estimate, name)
        return (value.clamp_min(DARK).sqrt() if name == "background" else value) / self._units[name]

    def _decode(self, name: str, leaf: Tensor) -> Tensor:
        value = leaf * self._units[name]
        return value.square() if name == "background" else value  # a square is never negative

    def begin_epoch(self, epoch: int, progress: float) -> None:
        s = self.settings
        if s.update_probe or s.update_positions:
            self._look()
        resting = {"probe": epoch < s.probe_start, "positions": epoch < s.position_start}
        self._active = [name for name in self._leaves if not resting.get(name, False)]
        self._seen = 0
        self._load()
        for leaf in self._leaves.values():
            leaf.grad = None

    def step(self, indices: Tensor, progress: float) -> float:
        self._load()
        misfit = self.differentiate(indices)
        self._seen += len(indices)
        if self._by_batch:
            self._advance(self._by_batch, progress)
        return misfit

    def end_epoch(self, epoch: int, progress: float) -> None:
        if self._by_epoch and self._seen == len(self.measurement):  # an epoch cut short has no slope of all patterns
            self._advance(self._by_epoch, progress)

    def follow(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        for ensemble in (self._by_batch, self._by_epoch):
            if ensemble and "object" in ensemble.leaves:
                ensemble.change_momentum("object", change, self._units["object"])

    def _load(self) -> None:
        """Make the leaves from the estimate."""
        for name, leaf in self._leaves.items():
            leaf.data = self._encode(name)

    def _advance(self, ensemble: "Ensemble", progress: float) -> None:
        """Let an optimiser step, and put what it found into the estimate."""
        active = {name: leaf for name, leaf in ensemble.leaves.items() if name in self._active}
        for name, group in zip(ensemble.leaves, ensemble.optimizer.param_groups, strict=False):
            group["lr"] = self.caution * self._rate(name, progress)
            if self.settings.optimizer == "adam":
                group["eps"] = self.settings.calm * self._curvature[name] * float(self._units[name]) ** 2
        if self.by_epoch_only:
            ensemble.lengthen_first()
        ensemble.optimizer.step(lambda: 0.0)
        with torch.no_grad():
            for name, leaf in active.items():
                value = self._decode(name, leaf)
                setattr(self.estimate, name, self._bounded(value) if name == "positions" else value)
        for leaf in ensemble.leaves.values():
            leaf.grad = None

    def _rate(self, name: str, progress: float) -> float:
        """Step of a leaf at some ``progress`` of the run."""
        s = self.settings
        if self.by_epoch_only:
            return self.step_size
        pace = s.last_step ** max(0.0, (progress - s.settle) / (1 - s.settle))
        if name == "positions" and s.optimizer == "adam":
            return s.position_step * float(pace) ** POSITION_FALL
        return self.step_size * float(pace)

    def _bounded(self, positions: Tensor) -> Tensor:
        """Without a shift of all, near the start, and with their windows on the canvas."""
        bound, frame = self.settings.position_bound, self.estimate.frame
        moved = positions - self._start
        moved = moved - moved.mean(0)
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        moved = moved * (bound / length.clamp_min(bound))
        low = positions.new_tensor(frame.origin) + self.estimate.size // 2
        high = low + positions.new_tensor(frame.shape) - self.estimate.size
        return torch.minimum(torch.maximum(self._start + moved, low), high)

    def differentiate(self, indices: Tensor) -> float:
        """Add the slope of a batch's loss to that of the leaves.

        Returns:
            Σ (√intensity − √counts)² over the pixels that count.
        """
        with torch.enable_grad():  # engines may run where nothing is differentiated
            loss, misfit = self._loss(indices)
        loss.backward()
        return float(misfit.sum())

    def _loss(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of a batch, and (√intensity − √counts)² of its pixels (b, N, N), 0 where one does not count."""
        value = self.estimate.tensors() | {name: self._decode(name, self._leaves[name]) for name in self._active}
        intensity, counts = self._intensity(value, indices), self.measurement.counts[indices]
        deviance = self.measurement.noise.deviance(intensity, counts)
        misfit = (intensity.detach().sqrt() - counts.sqrt()).square()
        mask = self.measurement.mask_of(indices)
        if mask is not None:
            deviance, misfit = (torch.where(mask, pixels, torch.zeros_like(pixels)) for pixels in (deviance, misfit))
        loss = deviance.sum() / CURVATURE
        if self.settings.tv or self.settings.smoothness:
            loss = loss + len(indices) / len(self.measurement) * self._penalty(value["object"])
        return loss, misfit

    def _intensity(self, value: dict[str, Tensor], indices: Tensor) -> Tensor:
        """Expected photons (b, N, N) by the tensors of an estimate, some of which may be differentiated for."""
        patches = self.optics.cut(value["object"], indices)
        if "probe" in self._active or "positions" in self._active:
            fractions = value["positions"][indices] - self._grid[indices]
            probes = probe_at(value["probe"], fractions.to(patches.device))
            patches = patches * value["intensities"][indices].sqrt()[:, None, None]
        else:
            probes = self.optics.probes(indices)
        return from_patches(patches, probes, value["background"]).intensity

    def _penalty(self, obj: Tensor) -> Tensor:
        s = self.settings
        penalty = obj.real.new_zeros(())
        if s.tv:
            penalty = penalty + s.tv * total_variation(obj)
        if s.smoothness:
            penalty = penalty + s.smoothness * squared_differences(obj)
        return self._lit * penalty

    def memory(self) -> dict[str, Tensor]:
        states = [ensemble.memory() for ensemble in (self._by_batch, self._by_epoch) if ensemble]
        return {"start": self._start} | {name: tensor for state in states for name, tensor in state.items()}

    def recall(self, memory: dict[str, Tensor]) -> None:
        self._start = memory["start"]
        for ensemble in (self._by_batch, self._by_epoch):
            if ensemble:
                ensemble.recall(memory)

    def forget(self) -> None:
        for ensemble in (self._by_batch, self._by_epoch):
            if ensemble:
                ensemble.optimizer.state.clear()


class Ensemble:
    """Leaves that step together, by name, with their optimiser."""

    def __init__(self, leaves: dict[str, Tensor], optimizer: Optimizer) -> None:
        self.leaves, self.optimizer = leaves, optimizer

    def lengthen_first(self) -> None:
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

    def memory(self) -> dict[str, Tensor]:
        """The optimiser's state as tensors of their own; the names of lists end in ``[]``."""
        packed = {}
        for name, leaf in self.leaves.items():
            for key, value in self.optimizer.state.get(leaf, {}).items():
                if isinstance(value, list):
                    if key != "al":  # L-BFGS keeps scratch there
                        packed[f"{name}.{key}[]"] = torch.stack(value) if value else torch.empty(0)
                elif value is not None:
                    packed[f"{name}.{key}"] = _as_tensor(value)
        return packed

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Take back what :meth:`memory` gave; nothing of it is written into."""
        self.optimizer.state.clear()
        for name, leaf in self.leaves.items():
            for key, value in memory.items():
                if key.startswith(f"{name}."):
                    self.optimizer.state[leaf][key.removeprefix(f"{name}.").removesuffix("[]")] = (
                        [row.clone() for row in value] if key.endswith("[]") else _as_state(value)
                    )


def _as_tensor(value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.clone()
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _as_state(value: Tensor) -> Any:
    """The number that :func:`_as_tensor` made a tensor of, or a copy."""
    return value.item() if value.ndim == 0 and value.dtype in (torch.int64, torch.float64) else value.clone()
