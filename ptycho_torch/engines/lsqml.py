"""Least-squares maximum likelihood: object and probe step together, each as far as the exit waves ask for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho_torch.engines.loop import Engine
from ptycho_torch.engines.optics import Correction, Optics
from ptycho_torch.engines.pie import COARSE, sum_of_modes
from ptycho_torch.engines.problem import Estimate, Measurement


@dataclass(frozen=True)
class LsqmlSettings:
    step: float = 1.0
    momentum: float = 0.5
    settle: float = 0.4
    last_step: float = 0.05
    edge: float = 0.1
    damping: float = 0.01
    update_probe: bool = False
    probe_step: float = 1.0
    probe_start: int = 0
    keep: bool = False
    cap: float = 100.0
    pooled: bool = False
    local: bool = True


class Lsqml(Engine):
    def __init__(self, measurement: Measurement, estimate: Estimate, settings: LsqmlSettings, batch_size: int) -> None:
        super().__init__(measurement, estimate)
        self.settings = settings
        self.optics = Optics(measurement, estimate, fixed_probe=not settings.update_probe)
        self.velocity = torch.zeros_like(estimate.object)
        self._illuminate()
        self.alphas = []

    def _illuminate(self) -> None:
        self._light = self.optics.light(COARSE)
        total = self._light.of()
        self._edge = self.settings.edge * (total + 0.01 * total.amax())

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        if self.settings.update_probe and epoch:
            self._illuminate()

    def fine(self, coarse):
        rows, columns = self.estimate.frame.shape
        return coarse.repeat_interleave(COARSE, 0).repeat_interleave(COARSE, 1)[:rows, :columns]

    def step(self, indices: Tensor, progress: float) -> float:
        estimate, s = self.estimate, self.settings
        momentum, size = self._pace(progress)
        own = self._light.of(indices)
        divisor = self.fine(own + self._edge)
        share = self.fine(own / (own + self._edge)) if s.local else 1.0
        ahead = momentum * share * self.velocity
        held = estimate.object
        estimate.object = held + ahead
        found = self.optics.correction(indices)
        towards = self.optics.placed(sum_of_modes(found.probes.conj() * found.change), indices) / divisor
        moving = [found.probes * self._cut(towards, indices)[:, None]]
        learning = s.update_probe and self._epoch >= s.probe_start
        if learning:
            spread = self._probe_direction(found, indices)
            moving.append(self.optics.moved_to_fractions(spread, indices) * found.patches[:, None])
        lengths = self.lengths(moving, found.change)
        self.alphas.append(lengths.tolist())
        change = ahead + size * lengths[0] * towards
        self.velocity = change + (1 - share) * self.velocity if s.local else change
        estimate.object = held + change
        if learning:
            estimate.probe = estimate.probe + s.probe_step * self.caution * lengths[1] * spread
        return found.error

    def _cut(self, canvas, indices):
        from ptycho_torch.physics.patches import extract_patches

        return extract_patches(canvas, self.optics.corners[indices], self.estimate.size)

    def lengths(self, moving, change):
        s_cap = self.settings.cap
        flat = torch.stack([torch.view_as_real(m.resolve_conj()).flatten(1) for m in moving], 1)
        target = torch.view_as_real(change).flatten(1)
        normal = flat @ flat.mT
        right = (flat @ target[..., None])[..., 0]
        if self.settings.pooled:
            normal, right = normal.sum(0, keepdim=True), right.sum(0, keepdim=True)
        diag = normal.diagonal(dim1=-2, dim2=-1)
        diag.add_(self.settings.damping * diag.mean(0) + 1e-30)
        return torch.linalg.solve(normal, right[..., None])[..., 0].clamp(0, s_cap).mean(0)

    def _pace(self, progress: float) -> tuple[float, float]:
        s = self.settings
        if progress < s.settle:
            return s.momentum, s.step * self.caution
        fallen = (progress - s.settle) / (1 - s.settle)
        if s.keep:
            return s.momentum, s.step * ((1 - s.momentum) * s.last_step / s.step) ** fallen * self.caution
        first = 1.0
        return 0.0, first * (s.last_step / first) ** fallen * self.caution

    def _probe_direction(self, found: Correction, indices: Tensor) -> Tensor:
        towards = self.optics.probe_gradient(found.patches.conj()[:, None] * found.change, indices)
        seen = found.patches.abs().square().sum(0)
        return towards / (seen + 0.1 * seen.amax())

    def memory(self) -> dict[str, Tensor]:
        return {"velocity": self.velocity}

    def recall(self, memory: dict[str, Tensor]) -> None:
        self.velocity = memory["velocity"]
