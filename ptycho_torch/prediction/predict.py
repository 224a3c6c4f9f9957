"""A trained network as an engine: one pass over the scan, stitched."""

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.grouping import Indices, find_nearest_groups
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch, make_batch
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.object_patterns import IlluminatedPatterns, ObjectPatterns, make_object_patterns
from ptycho_torch.physics.overlap import merge_patches
from ptycho_torch.physics.patches import Canvas, make_canvas
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.prediction.position_refinement import GaussNewtonPositionRefiner
from ptycho_torch.prediction.stitching import stitch

log = logging.getLogger(__name__)

MIN_PATTERN_WEIGHT = 0.5
"""Patterns whose patches stitching trusts less than this are not looked at again, nor moved."""

MIN_PHOTON_FRACTION = 0.01
"""Share of the photons of the median pattern below which one is dead: neither looked at again nor moved, either."""

EXTRA_OBJECT_STAGES = 2
"""Looks at a whole object beyond those of a lesson: they go on improving it."""

CANVAS_MULTIPLE_PX = 8
"""The sides of an object that a network looks at are divisible by this."""

CANVAS_MARGIN_PX = 2
"""Pixels of canvas beyond the outermost windows, wherever they are moved. For that it is wider by a multiple of
:data:`CANVAS_MULTIPLE_PX`, which leaves a network that pools the object where it was."""


def predict_scan(
    model: PtychoModel,
    scan: Scan,
    photons_per_unit: float,
    *,
    gridsize: int = 1,
    centers: Indices | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    observer: Observer | None = None,
    history: dict[str, list[float]] | None = None,
    metadata: dict[str, Any] | None = None,
    probe: Tensor | None = None,
    position_bound: float | None = None,
    background: Tensor | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
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
        process_group: processes that call this function with the same arguments, share the patterns, and return the
            same reconstruction.

    Raises:
        ConfigError: fewer than g² positions, or no probe where the model has none or several.
    """
    work = _ScanPredictor(
        model,
        photons_per_unit,
        gridsize,
        np.arange(len(scan)) if centers is None else centers,
        batch_size,
        precision,
        model.probe if probe is None else probe,
        position_bound,
        background,
        observer or SilentObserver(),
        process_group,
    )
    stitched = work.predict_object(scan)
    if model.object_stages:
        stitched = work.refine_object(stitched) if process_group.is_main else stitched
    elif position_bound is not None:
        stitched = work.predict_object(work.refine_positions(scan, stitched))
    stitched = work.broadcast_result(stitched)
    positions = stitched.positions.numpy()
    if position_bound is not None:
        moved = np.square(positions - scan.positions[work.centers]).mean() ** 0.5
        log.info("positions: moved by %.3f pixels rms an axis", moved)
    return Reconstruction(
        object=stitched.object.numpy(),
        coverage=stitched.coverage.numpy(),
        origin_yx=np.array(stitched.canvas.origin, dtype=np.int64),
        probe=work.probe.detach().cpu().numpy(),
        positions=positions,
        photons_per_unit=photons_per_unit,
        history=history or {},
        metadata=metadata or {},
    )


def compute_extra_margin(position_bound: float | None) -> int:
    """Return the pixels by which the canvas is wider for positions that move by up to ``position_bound`` pixels."""
    return CANVAS_MULTIPLE_PX * math.ceil((position_bound or 0) / CANVAS_MULTIPLE_PX)


class _GroupedPatterns(NamedTuple):
    """Patterns that make up the groups, and where in ``batch`` each group's (m, g²) are."""

    batch: Batch
    group_indices: Tensor


class _StitchedObject(NamedTuple):
    """What the network has made of a scan so far."""

    object: Tensor
    """(rows, columns) complex on the canvas ``frame``, on the CPU; ones where no light falls."""

    coverage: Tensor
    """(rows, columns) real: the light on it."""

    canvas: Canvas
    batch: Batch
    """The pattern of each centre."""

    positions: Tensor
    """(m, 2) float64 (y, x) in object pixels: where they are."""

    reliable: Tensor
    """Indices int64 of those that stitching trusts."""


@dataclass(frozen=True)
class _ScanPredictor:
    """A reconstruction to be made; the fields are arguments of :func:`predict_scan`."""

    model: PtychoModel
    photons_per_unit: float
    gridsize: int
    centers: Indices
    batch_size: int
    precision: str
    probe: Tensor
    bound: float | None
    background: Tensor | None
    observer: Observer
    process_group: ProcessGroup

    def collect_patterns(self, scan: Scan) -> _GroupedPatterns:
        groups = torch.from_numpy(
            np.ascontiguousarray(find_nearest_groups(scan.positions, self.gridsize, self.centers))
        )
        needed, places = groups.unique(return_inverse=True)
        return _GroupedPatterns(make_batch(scan, self.photons_per_unit).take(needed), places)

    def predict_object(self, scan: Scan) -> _StitchedObject:
        """A pass of the network over the patterns, stitched."""
        batch, places = self.collect_patterns(scan)
        self.observer.start("inference", len(batch.corners))
        try:
            patches, weights = self.predict(batch)
        finally:
            self.observer.finish()
        own = places[:, 0]
        if not self.process_group.is_main:
            pass
        elif self.gridsize > 1:
            patches = _merge_groups(patches, weights, batch.corners, places, self.batch_size)
        else:
            patches = patches[own]
        batch = batch.take(own)
        margin = CANVAS_MARGIN_PX + compute_extra_margin(self.bound)
        canvas = make_canvas(batch.corners, scan.size, margin)
        if not self.process_group.is_main:  # the main process stitches, and broadcasts the result
            blank, none = torch.ones(canvas.shape, dtype=torch.complex64), torch.arange(0)
            positions = torch.from_numpy(scan.positions[self.centers])
            return _StitchedObject(blank, torch.zeros(canvas.shape), canvas, batch, positions, none)
        stitched = stitch(patches, weights[own], batch.corners, canvas)
        positions = torch.from_numpy(scan.positions[self.centers])
        photons = batch.counts.sum((1, 2))
        trusted = torch.nonzero(
            (stitched.patch_weights > MIN_PATTERN_WEIGHT) & (photons > MIN_PHOTON_FRACTION * photons.median())
        )[:, 0]
        return _StitchedObject(stitched.object, stitched.coverage, canvas, batch, positions, trusted)

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
        for indices in batches[self.process_group.shard(len(batches))]:
            part = batch.take(indices).to(device)
            probe = shift_probe(light, part.fractions)
            with self._autocast():
                patches[indices] = self.model.predict(part, probe).cpu()
            weights[indices] = compute_power(probe).cpu()
            self.observer.advance(len(indices))
        shares = [self.process_group.shard(len(batches), rank) for rank in range(self.process_group.size)]
        rows = [slice(share.start * self.batch_size, min(share.stop * self.batch_size, n)) for share in shares]
        for tensor in (patches, weights):
            self.process_group.gather_rows(tensor, rows)
        elsewhere = n - len(range(n)[rows[self.process_group.rank]])
        if elsewhere:
            self.observer.advance(elsewhere)
        return patches, weights

    def refine_positions(self, scan: Scan, stitched: _StitchedObject) -> Scan:
        """``scan`` with the positions from which its picture explains its patterns best."""
        positions = scan.positions.copy()
        if self.process_group.is_main:
            refiner = self._make_refiner(stitched)
            refiner.refine(stitched.object.to(self.model.device))
            positions[self.centers[stitched.reliable.numpy()]] = refiner.positions.numpy()
        return self.broadcast_positions(replace(scan, positions=positions))

    def broadcast_positions(self, scan: Scan) -> Scan:
        """``scan`` with the first rank's positions."""
        positions = torch.from_numpy(scan.positions.copy())
        self.process_group.broadcast_([positions])
        return replace(scan, positions=positions.numpy())

    def broadcast_result(self, stitched: _StitchedObject) -> _StitchedObject:
        """Return the object, coverage and positions of the main process."""
        if self.process_group.size == 1:
            return stitched
        obj, coverage, positions = stitched.object.clone(), stitched.coverage.clone(), stitched.positions.clone()
        self.process_group.broadcast_([torch.view_as_real(obj), coverage, positions])
        return stitched._replace(object=obj, coverage=coverage, positions=positions)

    @torch.no_grad()
    def refine_object(self, stitched: _StitchedObject) -> _StitchedObject:
        """The picture after the network's looks at the whole of it, between which positions may move.

        Some patterns are computed at a time; those of a step of physics are many more or fewer, and always the same.
        """
        rows, columns = stitched.canvas.shape
        shape = (
            -(-rows // CANVAS_MULTIPLE_PX) * CANVAS_MULTIPLE_PX,
            -(-columns // CANVAS_MULTIPLE_PX) * CANVAS_MULTIPLE_PX,
        )
        canvas = torch.ones(shape, dtype=stitched.object.dtype)
        canvas[:rows, :columns] = stitched.object
        canvas = canvas.to(self.model.device)
        velocity = torch.zeros_like(canvas)
        refiner = None if self.bound is None else self._make_refiner(stitched)
        scene = self._make_patterns(stitched.batch.take(stitched.reliable), stitched.canvas, shape)
        count = self.model.object_stages + EXTRA_OBJECT_STAGES
        self.observer.start("looks at the whole", count)
        try:
            for number in range(count):
                if refiner is not None and number:
                    moved = refiner.refine(canvas[:rows, :columns])
                    scene = self._make_patterns(moved, stitched.canvas, shape)
                with self._autocast():
                    canvas, velocity = self.model.refine_object(canvas, velocity, scene)
                self.observer.advance()
        finally:
            self.observer.finish()
        coverage, positions = stitched.coverage, stitched.positions.clone()
        if refiner is not None:
            positions[stitched.reliable] = refiner.positions
            everything = self._make_patterns(stitched.batch.replace_positions(positions), stitched.canvas, shape)
            coverage = everything.illumination[:rows, :columns].cpu()
        obj = torch.where(coverage > 0, canvas[:rows, :columns].cpu(), 1)
        return stitched._replace(object=obj, coverage=coverage, positions=positions)

    def _make_refiner(self, stitched: _StitchedObject) -> GaussNewtonPositionRefiner:
        assert self.bound is not None
        return GaussNewtonPositionRefiner(
            stitched.batch.take(stitched.reliable),
            stitched.positions[stitched.reliable],
            self.probe.detach().to(self.model.device),
            stitched.canvas,
            self.bound,
            self.background,
        )

    def _make_patterns(self, batch: Batch, canvas: Canvas, shape: tuple[int, int]) -> ObjectPatterns:
        """``batch`` on a canvas of ``shape`` whose [0, 0] pixel is that of ``frame``."""
        device = self.model.device
        light = self.probe.to(device)
        origin = torch.tensor(canvas.origin)

        def take(indices: Tensor) -> IlluminatedPatterns:
            part = batch.take(indices)._replace(corners=batch.corners[indices] - origin).to(device)
            return IlluminatedPatterns(part.amplitudes, part.mask, shift_probe(light, part.fractions), part.corners)

        return make_object_patterns(take, len(batch.corners), shape, chunk_size=self.batch_size)

    def _autocast(self) -> torch.autocast:
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
