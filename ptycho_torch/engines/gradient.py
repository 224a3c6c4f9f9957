"""The gradient engine: a likelihood differentiated for all that is unknown, and an optimiser of torch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.engines.loop import Engine
from ptycho_torch.engines.optics import Optics
from ptycho_torch.engines.problem import Estimate, Measurement
from ptycho_torch.physics.forward import from_patches, probe_at
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.physics.regularisers import squared_differences, total_variation

STEPS = {"adam": 0.05, "sgd": 0.5, "lbfgs": 1.0}
"""Optimisers, and the step of each unless told otherwise."""

CURVATURE = 4.0
"""Second derivative of the deviances for the amplitude, at their minimum."""

DARK = 1e-2
"""Least photons of a background that is learned: the square of what is zero has no slope."""

ROUGHNESS = 0.1
"""Change of the object from pixel to pixel that the curvature for a position is reckoned with."""


@dataclass(frozen=True)
class GradientSettings:
    """What is optimised, and how."""

    optimizer: str = "adam"
    """``adam`` and ``sgd`` step after every batch, ``lbfgs`` once an epoch from all patterns."""

    step: float | None = None
    beta2: float = 0.999
    """adam: change of the object in a batch, 1 being vacuum; sgd: share of the exact step for the light that a batch
    brings; lbfgs: share of the quasi-Newton step. None: the optimiser's in ``STEPS``."""

    momentum: float = 0.9
    """Share of the last step that is taken again (sgd), or of the mean slope that is kept (adam)."""

    settle: float = 0.3
    """Share of the run after which the steps of adam and sgd fall."""

    last_step: float = 0.02
    """Step at the end of the run, as a share of the first."""

    probe_step: float = 0.2
    """adam: step of the probe, 1 being its largest amplitude, as a share of the object's."""

    position_step: float = 0.3
    """adam: step of a position in an epoch, in pixels."""

    background_step: float = 1.0
    """adam: step of the background's root, 1 being the root of a pixel's mean photons, as a share of the object's."""

    pb1: float = 0.9
    pb2: float = 0.999
    pcalm: float = 0.05
    pslow: float = 1.0
    calm: float = 0.05
    """adam: what is off by less than this, in the units of its step, is stepped in proportion to what it is off by."""

    floor: float = 0.01
    """Light added to that of every pixel, as a share of the largest, where steps are divided by it."""

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
    """Weight of the object's total variation; well-lit differences of neighbours below about twice it are levelled."""

    smoothness: float = 0.0
    """Weight of the object's squared differences; well-lit ones are blurred over about the root of twice it pixels."""


class Gradient(Engine):
    """Minimises ``Σ deviance / 4 + L (tv · TV(object) + smoothness · SD(object))`` over all patterns.

    The quarter makes the slope of the data term the change of the exit waves that a projection makes, and L, the light
    on a lit pixel, makes the weights of the regularisers independent of dose and overlap.

    The optimiser sees leaves: what is unknown, in units in which one step suits all of it. They are made from the
    estimate for every step, and new tensors are put there, so that only the optimiser's state is to be remembered
    besides. Positions are moved once an epoch, by what their pattern says; until then its window stays where it is.
    """

    def __init__(
        self, measurement: Measurement, estimate: Estimate, settings: GradientSettings, batch_size: int
    ) -> None:
        super().__init__(measurement, estimate)
        if settings.optimizer not in STEPS:
            raise ConfigError(f"--optimizer is {settings.optimizer}: known are {', '.join(sorted(STEPS))}")
        self.settings, self.batch_size = settings, batch_size
        self._moving = settings.update_positions
        self.optics = Optics(measurement, estimate, fixed_probe=not (settings.update_probe or self._moving))
        self._start = estimate.positions
        self._look()
        learned = ["object"] + [n for n in ("probe", "background", "positions") if getattr(settings, f"update_{n}")]
        self._leaves = {name: self._encode(name).requires_grad_() for name in learned}
        whole = settings.optimizer == "lbfgs"
        self._by_batch = {} if whole else {n: leaf for n, leaf in self._leaves.items() if n != "positions"}
        self._by_epoch = {n: leaf for n, leaf in self._leaves.items() if n not in self._by_batch}
        self._optimizers = {
            rhythm: self._optimizer_of(list(leaves.values()))
            for rhythm, leaves in (("batch", self._by_batch), ("epoch", self._by_epoch))
            if leaves
        }
        self.begin_epoch(0, 0.0)

    def _optimizer_of(self, leaves: list[Tensor]) -> Optimizer:
        s = self.settings
        if s.optimizer == "adam":
            names = [n for n, leaf in self._leaves.items() for l in leaves if l is leaf]
            return torch.optim.Adam([{"params": [self._leaves[n]], "eps": self._eps(n)} for n in names], betas=(s.pb1, s.pb2) if "positions" in names else (s.momentum, s.beta2))
        if s.optimizer == "sgd":
            return torch.optim.SGD(leaves, momentum=s.momentum, nesterov=s.momentum > 0)
        return torch.optim.LBFGS(leaves, max_iter=1, history_size=10)

    def _eps(self, name):
        newton = self._newton_units(self._light)[name]
        if isinstance(newton, Tensor):
            newton = (self._lit * self.batch_size / len(self.measurement)) ** -0.5
        if name == "positions":
            return self.settings.pcalm / newton**2
        return self.settings.calm * (float(self._units[name]) / newton) ** 2

    def _look(self) -> None:
        """Find where the windows lie, how much light there is, and the units of the leaves."""
        if self._moving:
            self.optics.moved()
        estimate = self.estimate
        origin = estimate.positions.new_tensor(estimate.frame.origin) + estimate.size // 2
        self._whole = origin + self.optics.corners.cpu()  # positions less fractions
        light = self.optics.light().of()
        self._light = light
        self._lit = float(light.square().sum() / light.sum())
        self._units = self._adam_units() if self.settings.optimizer == "adam" else self._newton_units(light)

    def _adam_units(self) -> dict[str, Tensor | float]:
        s, probe = self.settings, self.estimate.probe
        root = (self.measurement.photons / self.measurement.counts.numel()) ** 0.5
        return {
            "object": 1.0,
            "probe": s.probe_step * float(probe.abs().amax()),
            "background": s.background_step * root,
            "positions": 1.0,
        }

    def _newton_units(self, light: Tensor) -> dict[str, Tensor | float]:
        """Units in which the curvature of a step's loss is about one."""
        n, obj = len(self.measurement), self.estimate.object
        seen = n if self.settings.optimizer == "lbfgs" else self.batch_size
        photons = self.measurement.photons / n
        return {
            "object": (light + self.settings.floor * light.amax()).mul(seen / n).rsqrt(),
            "probe": (seen * float((obj.abs().square() * light).sum() / light.sum())) ** -0.5,
            "background": seen**-0.5,
            "positions": 1 / (ROUGHNESS * photons**0.5),
        }

    def _encode(self, name: str) -> Tensor:
        """The leaf ``name`` of the estimate, a tensor of its own."""
        value = getattr(self.estimate, name)
        return (value.clamp_min(DARK).sqrt() if name == "background" else value) / self._units[name]

    def _decode(self, name: str, leaf: Tensor) -> Tensor:
        value = leaf * self._units[name]
        return value.square() if name == "background" else value

    def begin_epoch(self, epoch: int, progress: float) -> None:
        s = self.settings
        if s.update_probe or self._moving:
            self._look()
        resting = {"probe": epoch < s.probe_start, "positions": epoch < s.position_start}
        self._active = [name for name in self._leaves if not resting.get(name, False)]
        self._loss, self._seen = 0.0, 0
        self._clear(self._leaves)

    def step(self, indices: Tensor, progress: float) -> float:
        self._load()
        loss, error = self._differentiate(indices)
        self._loss += loss
        self._seen += len(indices)
        if self._by_batch:
            self._go("batch", self._step_size() * self._pace(progress))
        return error

    def end_epoch(self, epoch: int, progress: float) -> None:
        if "epoch" not in self._optimizers or self._seen < len(self.measurement):
            return  # an epoch cut short has no slope for all
        self._load()
        if self.settings.optimizer == "lbfgs":
            self._go("epoch", self._first_length() * self._step_size())
        elif "positions" in self._active:
            s=self.settings
            size = self.settings.position_step if self.settings.optimizer == "adam" else self._step_size()
            self._go("epoch", size * self._pace(progress)**s.pslow)

    def _step_size(self) -> float:
        return STEPS[self.settings.optimizer] if self.settings.step is None else self.settings.step

    def _first_length(self) -> float:
        """torch shortens the first step of L-BFGS to 1 / |slope|₁, for want of units: undone, as ours are known."""
        if self._optimizers["epoch"].state:
            return 1.0
        return max(
            1.0,
            sum(
                float(torch.view_as_real(leaf.grad).abs().sum() if leaf.is_complex() else leaf.grad.abs().sum())
                for leaf in self._by_epoch.values()
                if leaf.grad is not None
            ),
        )

    def _pace(self, progress: float) -> float:
        """Factor on the steps at some ``progress`` of the run."""
        s = self.settings
        return float(s.last_step ** max(0.0, (progress - s.settle) / (1 - s.settle)))

    def _go(self, rhythm: str, size: float) -> None:
        """Let an optimiser step, and put what it found into the estimate."""
        leaves = self._by_batch if rhythm == "batch" else self._by_epoch
        optimizer = self._optimizers[rhythm]
        for group in optimizer.param_groups:
            group["lr"] = size * self.caution
        optimizer.step(lambda: self._loss)
        with torch.no_grad():
            for name, leaf in leaves.items():
                if name in self._active:
                    value = self._decode(name, leaf)
                    setattr(self.estimate, name, self._bounded(value) if name == "positions" else value)
        self._clear(leaves)

    def _load(self) -> None:
        for name, leaf in self._leaves.items():
            leaf.data = self._encode(name)

    @staticmethod
    def _clear(leaves: dict[str, Tensor]) -> None:
        for leaf in leaves.values():
            leaf.grad = None

    def _bounded(self, positions: Tensor) -> Tensor:
        """Without a shift of all, near the start, and on the canvas."""
        moved = positions - self._start
        moved = moved - moved.mean(0)
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        moved = moved * (self.settings.position_bound / length.clamp_min(self.settings.position_bound))
        frame, size = self.estimate.frame, self.estimate.size
        low = positions.new_tensor(frame.origin) + size // 2
        high = low + positions.new_tensor(frame.shape) - size
        return torch.minimum(torch.maximum(self._start + moved, low), high)

    def _differentiate(self, indices: Tensor) -> tuple[float, float]:
        """Add the slope of a batch's loss to the leaves; the loss, and Σ (√intensity − √counts)²."""
        value = self.estimate.tensors() | {name: self._decode(name, self._leaves[name]) for name in self._active}
        intensity, counts = self._intensity(value, indices), self.measurement.counts[indices]
        misfit = self.measurement.noise.deviance(intensity, counts)
        error = (intensity.detach().sqrt() - counts.sqrt()).square()
        mask = self.measurement.mask_of(indices)
        if mask is not None:
            misfit, error = (torch.where(mask, pixels, torch.zeros_like(pixels)) for pixels in (misfit, error))
        loss = misfit.sum(dtype=torch.float64) / CURVATURE
        if self.settings.tv or self.settings.smoothness:
            loss = loss + len(indices) / len(self.measurement) * self._penalty(value["object"])
        loss.backward()
        return float(loss.detach()), float(error.sum(dtype=torch.float64))

    def _intensity(self, value: dict[str, Tensor], indices: Tensor) -> Tensor:
        patches = extract_patches(value["object"], self.optics.corners[indices], self.estimate.size)
        if "probe" in self._active or "positions" in self._active:
            fractions = value["positions"][indices] - self._whole[indices]
            probes = probe_at(value["probe"], fractions.to(patches.device))
        else:
            probes = self.optics.probes(indices)
        return from_patches(patches, probes, value["background"]).intensity

    def _penalty(self, obj: Tensor) -> Tensor:
        s = self.settings
        penalty = torch.zeros((), dtype=torch.float64, device=obj.device)
        if s.tv:
            penalty = penalty + s.tv * total_variation(obj)
        if s.smoothness:
            penalty = penalty + s.smoothness * squared_differences(obj)
        return self._lit * penalty

    def memory(self) -> dict[str, Tensor]:
        kept = {"start": self._start} if self._moving else {}
        for rhythm, optimizer in self._optimizers.items():
            for name, leaf in (self._by_batch if rhythm == "batch" else self._by_epoch).items():
                kept |= {f"{name}.{key}": value for key, value in _packed(optimizer.state.get(leaf, {})).items()}
        return kept

    def recall(self, memory: dict[str, Tensor]) -> None:
        self._start = memory.get("start", self._start)
        for rhythm, optimizer in self._optimizers.items():
            optimizer.state.clear()
            for name, leaf in (self._by_batch if rhythm == "batch" else self._by_epoch).items():
                own = {key.removeprefix(f"{name}."): memory[key] for key in memory if key.startswith(f"{name}.")}
                if own:
                    optimizer.state[leaf] = _unpacked(own)

    def forget(self) -> None:
        for optimizer in self._optimizers.values():
            optimizer.state.clear()


def _packed(state: dict[str, Any]) -> dict[str, Tensor]:
    """An optimiser's state of one leaf as tensors of their own; lists get names that end in ``[]``."""
    packed = {}
    for key, value in state.items():
        if key == "al":  # scratch of L-BFGS
            continue
        if isinstance(value, list):
            packed[f"{key}[]"] = torch.stack(value) if value else torch.empty(0)
        elif value is not None:
            packed[key] = value.clone() if isinstance(value, Tensor) else torch.tensor(value, dtype=_dtype_of(value))
    return packed


def _unpacked(packed: dict[str, Tensor]) -> dict[str, Any]:
    """What :func:`_packed` made of an optimiser's state; the tensors are copies."""
    state: dict[str, Any] = {}
    for key, value in packed.items():
        if key.endswith("[]"):
            state[key.removesuffix("[]")] = [row.clone() for row in value]
        else:
            plain = value.ndim == 0 and value.dtype in (torch.int64, torch.float64)
            state[key] = value.item() if plain else value.clone()
    return state


def _dtype_of(value: float) -> torch.dtype:
    return torch.int64 if isinstance(value, int) else torch.float64
