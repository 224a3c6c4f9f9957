"""A trained network as an engine: one pass over the scan, stitched."""

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.grouping import Indices, nearest_groups
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.process_group import ALONE, Ranks
from ptycho_torch.engines.modulus_positions import Settling
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch, batch_of_scan
from ptycho_torch.physics.forward import merge_patches, probe_at
from ptycho_torch.physics.patches import Frame, frame_of
from ptycho_torch.physics.probe import power_of
from ptycho_torch.physics.updates import Lit, Scene, scene_of
from ptycho_torch.prediction.stitching import stitch

log = logging.getLogger(__name__)

TRUSTED = 0.5
"""Patterns whose patches stitching trusts less than this are not looked at again, nor moved."""

DARK = 0.01
"""Share of the photons of the median pattern below which one is dead: neither looked at again nor moved, either."""

AGAIN = 2
"""Looks at a whole object beyond those of a lesson: they go on improving it."""

OBJECT_DIVISOR = 8
"""The sides of an object that a network looks at are divisible by this."""

MARGIN = 2
"""Pixels of canvas beyond the outermost windows, wherever they are moved. For that it is wider by a multiple of
:data:`OBJECT_DIVISOR`, which leaves a network that pools the object where it was."""


def reconstruct_by_network(
    model: PtychoModel,
    scan: Scan,
    photons_per_unit: float,
    *,
    gridsize: int = 1,
    centres: Indices | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    observer: Observer | None = None,
    history: dict[str, list[float]] | None = None,
    metadata: dict[str, Any] | None = None,
    probe: Tensor | None = None,
    position_bound: float | None = None,
    background: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Reconstruction:
    """Predict the patch of each group's centre and stitch them.

    Each group is computed by itself: its patches depend on its own patterns, the model and ``photons_per_unit``, and
    on nothing else in the scan or the batch. A network that looks at the whole then does so, on the first rank, with
    the patterns of all centres.

    Args:
        model: network and probe, on the device to compute on.
        scan: what to reconstruct.
        photons_per_unit: photons for one squared unit of the scan's amplitude.
        gridsize: g; a group is a position and its g² − 1 nearest.
        centres: (m,) the positions that get a group; None: all.
        batch_size: patterns computed together, for memory; the result depends on it by rounding alone, which is up to
            3e-3 for `ffno` in bf16 and 1e-6 or nothing for all others.
        precision: arithmetic of the network, fp32 or bf16.
        observer: is told of every batch.
        history: figures of the training, kept with the result.
        metadata: where this comes from, kept with the result.
        probe: (M, N, N) complex, in √photons, that lights the scan; None: the model's only one.
        position_bound: farthest that a position is moved on either axis, in pixels, to where the network's picture
            explains its pattern best; None: positions stay. A network that looks at the whole moves them between its
            looks, any other before a second pass.
        background: (N, N) photons in every pattern, zero frequency at [0, 0], that positions are found beside.
        ranks: this process, the first, and those that call :func:`assist` meanwhile.

    Raises:
        ConfigError: fewer than g² positions, or no probe where the model has none or several.
    """
    work = _Work(
        model,
        photons_per_unit,
        gridsize,
        np.arange(len(scan)) if centres is None else centres,
        batch_size,
        precision,
        model.probe if probe is None else probe,
        position_bound,
        background,
        observer or SilentObserver(),
        ranks,
    )
    seen = work.picture(scan)
    if model.looks:
        seen = work.looked_at(seen)
    elif position_bound is not None:
        seen = work.picture(work.settled(scan, seen))
    positions = seen.positions.numpy()
    if position_bound is not None:
        moved = np.square(positions - scan.positions[work.centres]).mean() ** 0.5
        log.info("positions: moved by %.3f pixels rms an axis", moved)
    return Reconstruction(
        object=seen.object.numpy(),
        coverage=seen.coverage.numpy(),
        origin_yx=np.array(seen.frame.origin, dtype=np.int64),
        probe=work.probe.detach().cpu().numpy(),
        positions=positions,
        photons_per_unit=photons_per_unit,
        history=history or {},
        metadata=metadata or {},
    )


def assist(
    model: PtychoModel,
    scan: Scan,
    photons_per_unit: float,
    *,
    gridsize: int,
    centres: Indices,
    batch_size: int,
    precision: str,
    probe: Tensor,
    position_bound: float | None = None,
    ranks: Ranks,
) -> None:
    """What the other ranks do while the first calls :func:`reconstruct_by_network`, with the same arguments.

    They predict their share of the patches, for the first to stitch.
    """
    silent = SilentObserver()
    work = _Work(
        model, photons_per_unit, gridsize, centres, batch_size, precision, probe, position_bound, None, silent, ranks
    )
    work.predict(work.needed(scan).batch)
    if position_bound is not None and not model.looks:
        work.predict(work.needed(work.as_first_says(scan)).batch)


class _Needed(NamedTuple):
    """Patterns that make up the groups, and where in ``batch`` each group's (m, g²) are."""

    batch: Batch
    places: Tensor


class _Picture(NamedTuple):
    """What the network has made of a scan so far."""

    object: Tensor
    """(rows, columns) complex on the canvas ``frame``, on the CPU; ones where no light falls."""

    coverage: Tensor
    """(rows, columns) real: the light on it."""

    frame: Frame
    batch: Batch
    """The pattern of each centre."""

    positions: Tensor
    """(m, 2) float64 (y, x) in object pixels: where they are."""

    trusted: Tensor
    """Indices int64 of those that stitching trusts."""


@dataclass(frozen=True)
class _Work:
    """A reconstruction to be made; the fields are arguments of :func:`reconstruct_by_network`."""

    model: PtychoModel
    photons_per_unit: float
    gridsize: int
    centres: Indices
    batch_size: int
    precision: str
    probe: Tensor
    bound: float | None
    background: Tensor | None
    observer: Observer
    ranks: Ranks

    def needed(self, scan: Scan) -> _Needed:
        groups = torch.from_numpy(np.ascontiguousarray(nearest_groups(scan.positions, self.gridsize, self.centres)))
        needed, places = groups.unique(return_inverse=True)
        return _Needed(batch_of_scan(scan, self.photons_per_unit).take(needed), places)

    def picture(self, scan: Scan) -> _Picture:
        """A pass of the network over the patterns, stitched."""
        batch, places = self.needed(scan)
        self.observer.begin("inference", len(batch.corners))
        try:
            patches, weights = self.predict(batch)
        finally:
            self.observer.end()
        own = places[:, 0]
        if self.gridsize > 1:
            patches = _merge_groups(patches, weights, batch.corners, places, self.batch_size)
        else:
            patches = patches[own]
        batch = batch.take(own)
        margin = MARGIN + OBJECT_DIVISOR * math.ceil((self.bound or 0) / OBJECT_DIVISOR)
        frame = frame_of(batch.corners, scan.size, margin)
        stitched = stitch(patches, weights[own], batch.corners, frame)
        positions = torch.from_numpy(scan.positions[self.centres])
        photons = batch.counts.sum((1, 2))
        trusted = torch.nonzero((stitched.trust > TRUSTED) & (photons > DARK * photons.median()))[:, 0]
        return _Picture(stitched.object, stitched.coverage, frame, batch, positions, trusted)

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Patches (n, N, N) and their illumination (n, N, N), on the CPU, of each pattern by itself.

        The first rank gets all of them, another its share: whole batches, so that each is computed as one rank alone
        would.
        """
        self.model.eval()
        device = self.model.device
        light = self.probe.to(device)
        n, size = batch.amplitudes.shape[:2]
        patches = torch.empty((n, size, size), dtype=torch.complex64)
        weights = torch.empty((n, size, size))
        batches = torch.arange(n).split(min(self.batch_size, n))
        for indices in batches[self.ranks.share(len(batches))]:
            part = batch.take(indices).to(device)
            probe = probe_at(light, part.fractions)
            with self._precisely():
                patches[indices] = self.model.predict(part, probe).cpu()
            weights[indices] = power_of(probe).cpu()
            self.observer.advance(len(indices))
        shares = [self.ranks.share(len(batches), rank) for rank in range(self.ranks.size)]
        rows = [slice(share.start * self.batch_size, min(share.stop * self.batch_size, n)) for share in shares]
        for tensor in (patches, weights):
            self.ranks.collect(tensor, rows)
        elsewhere = n - len(range(n)[rows[self.ranks.rank]])
        if elsewhere:
            self.observer.advance(elsewhere)
        return patches, weights

    def settled(self, scan: Scan, seen: _Picture) -> Scan:
        """``scan`` with the positions from which its picture explains its patterns best."""
        positions = scan.positions.copy()
        settling = self._settling(seen)
        settling.settle(seen.object.to(self.model.device))
        positions[self.centres[seen.trusted.numpy()]] = settling.positions.numpy()
        return self.as_first_says(replace(scan, positions=positions))

    def as_first_says(self, scan: Scan) -> Scan:
        """``scan`` with the first rank's positions."""
        positions = torch.from_numpy(scan.positions.copy())
        self.ranks.follow_first([positions])
        return replace(scan, positions=positions.numpy())

    @torch.no_grad()
    def looked_at(self, seen: _Picture) -> _Picture:
        """The picture after the network's looks at the whole of it, between which positions may move.

        Some patterns are computed at a time; those of a step of physics are many more or fewer, and always the same.
        """
        rows, columns = seen.frame.shape
        shape = (-(-rows // OBJECT_DIVISOR) * OBJECT_DIVISOR, -(-columns // OBJECT_DIVISOR) * OBJECT_DIVISOR)
        canvas = torch.ones(shape, dtype=seen.object.dtype)
        canvas[:rows, :columns] = seen.object
        canvas = canvas.to(self.model.device)
        velocity = torch.zeros_like(canvas)
        settling = None if self.bound is None else self._settling(seen)
        scene = self._scene(seen.batch.take(seen.trusted), seen.frame, shape)
        count = self.model.looks + AGAIN
        self.observer.begin("looks at the whole", count)
        try:
            for number in range(count):
                if settling is not None and number:
                    moved = settling.settle(canvas[:rows, :columns])
                    scene = self._scene(moved, seen.frame, shape)
                with self._precisely():
                    canvas, velocity = self.model.look(canvas, velocity, scene)
                self.observer.advance()
        finally:
            self.observer.end()
        coverage, positions = seen.coverage, seen.positions.clone()
        if settling is not None:
            positions[seen.trusted] = settling.positions
            everything = self._scene(seen.batch.placed_at(positions), seen.frame, shape)
            coverage = everything.light[:rows, :columns].cpu()
        obj = torch.where(coverage > 0, canvas[:rows, :columns].cpu(), 1)
        return seen._replace(object=obj, coverage=coverage, positions=positions)

    def _settling(self, seen: _Picture) -> Settling:
        assert self.bound is not None
        return Settling(
            seen.batch.take(seen.trusted),
            seen.positions[seen.trusted],
            self.probe.detach().to(self.model.device),
            seen.frame,
            self.bound,
            self.background,
        )

    def _scene(self, batch: Batch, frame: Frame, shape: tuple[int, int]) -> Scene:
        """``batch`` on a canvas of ``shape`` whose [0, 0] pixel is that of ``frame``."""
        device = self.model.device
        light = self.probe.to(device)
        origin = torch.tensor(frame.origin)

        def take(indices: Tensor) -> Lit:
            part = batch.take(indices)._replace(corners=batch.corners[indices] - origin).to(device)
            return Lit(part.amplitudes, part.mask, probe_at(light, part.fractions), part.corners)

        return scene_of(take, len(batch.corners), shape, chunk=self.batch_size)

    def _precisely(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _merge_groups(patches: Tensor, weights: Tensor, corners: Tensor, places: Tensor, batch_size: int) -> Tensor:
    """The centre's patch of each group (m, N, N), after the overlap constraint within the group.

    ``places`` (m, g²) indexes the first axis of the others.
    """
    merged = [
        merge_patches(patches[some], weights[some], corners[some])[:, 0]
        for some in places.split(min(max(1, batch_size // places.shape[1]), len(places)))
    ]
    return torch.cat(merged)
