"""Prediction of the object of a scan by a trained network: patches of all patterns, stitched."""

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.canvas_size import check_canvas_size
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
"""Weight from stitching at or below which a pattern is not used by object stages and its position is not refined."""

MIN_PHOTON_FRACTION = 0.01
"""Photons of a pattern, as a fraction of the median, at or below which it is excluded in the same way."""

EXTRA_OBJECT_STAGES = 2
"""Number of object stages beyond those of the training, which still improve the object."""

CANVAS_MULTIPLE_PX = 8
"""Number by which the sides of the canvas of object stages are divisible."""

CANVAS_MARGIN_PX = 2
"""Pixels of canvas beyond the outermost patches. If positions may move, the canvas is wider by a further multiple of
:data:`CANVAS_MULTIPLE_PX`, which keeps the grid of networks that pool the object."""


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
    excluded: NDArray[np.bool_] | None = None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> Reconstruction:
    """Predict the patch of the center of each group and stitch the patches.

    The patches of a group depend on its patterns, the model and ``photons_per_unit`` only, not on the rest of the scan
    or of the batch. Object stages, if the network has any, then refine the stitched object in the main process.

    Args:
        model: network and probe, on the device of the computation.
        scan: the diffraction patterns and positions.
        photons_per_unit: photons per squared unit of the amplitudes of the scan.
        gridsize: g; a group is a position and its g² − 1 nearest neighbors.
        centers: (m,) indices of the positions to reconstruct; None: all positions.
        batch_size: number of patterns per batch. The result depends on it only through rounding: up to 3e-3 for
            `ffno` in bf16, and at most 1e-6 for all other networks.
        precision: arithmetic of the network, fp32 or bf16.
        observer: receives the progress.
        history: history of the training, stored in the result.
        metadata: metadata of the result.
        probe: (M, N, N) complex probe of the scan in √photons; None: the only probe of the model.
        position_bound: largest displacement of a position per axis in pixels, by refinement against the predicted
            object; None: positions are fixed. With object stages the positions move between the stages, otherwise
            before a second pass of the network.
        background: (N, N) photons in every pattern, zero frequency at [0, 0], for the refinement of positions.
        excluded: (n,) True for patterns that do not contribute to the object; None: all patterns contribute.
        process_group: processes that call this function with the same arguments, share the patterns, and return the
            same reconstruction.

    Raises:
        ConfigError: there are fewer than g² positions, or ``probe`` is None and the model has no single probe.
    """
    predictor = _ScanPredictor(
        model,
        photons_per_unit,
        gridsize,
        np.arange(len(scan)) if centers is None else centers,
        batch_size,
        precision,
        model.probe if probe is None else probe,
        position_bound,
        background,
        np.zeros(len(scan), np.bool_) if excluded is None else excluded,
        observer or SilentObserver(),
        process_group,
    )
    stitched = predictor.predict_object(scan)
    if model.object_stages:
        stitched = predictor.refine_object(stitched) if process_group.is_main else stitched
    elif position_bound is not None:
        stitched = predictor.predict_object(predictor.refine_positions(scan, stitched))
    stitched = predictor.broadcast_result(stitched)
    positions = stitched.positions.numpy()
    if position_bound is not None:
        moved = np.square(positions - scan.positions[predictor.centers]).mean() ** 0.5
        log.info("positions: moved by %.3f pixels rms per axis", moved)
    return Reconstruction(
        object=stitched.object.numpy(),
        coverage=stitched.coverage.numpy(),
        origin_yx=np.array(stitched.canvas.origin, dtype=np.int64),
        probe=predictor.probe.detach().cpu().numpy(),
        positions=positions,
        photons_per_unit=photons_per_unit,
        geometry=scan.geometry,
        history=history or {},
        metadata=metadata or {},
    )


def compute_extra_margin(position_bound: float | None) -> int:
    """Return the pixels by which the canvas is wider for positions that move by up to ``position_bound`` pixels."""
    return CANVAS_MULTIPLE_PX * math.ceil((position_bound or 0) / CANVAS_MULTIPLE_PX)


class _GroupedPatterns(NamedTuple):
    """The patterns of all groups, and the indices (m, g²) of each group in ``batch``."""

    batch: Batch
    group_indices: Tensor


class _StitchedObject(NamedTuple):
    """The object that the network has predicted, with its positions."""

    object: Tensor
    """(rows, columns) complex on ``canvas``, on the CPU; 1 where the coverage is 0."""

    coverage: Tensor
    """(rows, columns) real: summed power of the probe."""

    canvas: Canvas
    batch: Batch
    """The pattern of each center."""

    positions: Tensor
    """(m, 2) float64 (y, x) positions in object pixels."""

    reliable: Tensor
    """int64 indices of the patterns above :data:`MIN_PATTERN_WEIGHT` and :data:`MIN_PHOTON_FRACTION`."""


@dataclass(frozen=True)
class _ScanPredictor:
    """A prediction in progress; the fields are arguments of :func:`predict_scan`."""

    model: PtychoModel
    photons_per_unit: float
    gridsize: int
    centers: Indices
    batch_size: int
    precision: str
    probe: Tensor
    bound: float | None
    background: Tensor | None
    excluded: NDArray[np.bool_]
    observer: Observer
    process_group: ProcessGroup

    @property
    def contributing(self) -> Tensor:
        """Indices (k,) of the centers whose patterns contribute to the object."""
        return torch.from_numpy(np.flatnonzero(~self.excluded[self.centers]))

    def collect_patterns(self, scan: Scan) -> _GroupedPatterns:
        """Return the groups of the centers and their patterns."""
        groups = torch.from_numpy(np.ascontiguousarray(self.find_groups(scan)))
        pattern_indices, group_indices = groups.unique(return_inverse=True)
        return _GroupedPatterns(make_batch(scan, self.photons_per_unit).take(pattern_indices), group_indices)

    def find_groups(self, scan: Scan) -> Indices:
        """Return the groups of the centers, (m, g²); an excluded pattern is in no group but its own."""
        contributing = np.flatnonzero(~self.excluded)
        if self.gridsize == 1 or len(contributing) in (0, len(scan)):
            return find_nearest_groups(scan.positions, self.gridsize, self.centers)
        groups = np.repeat(self.centers[:, None], self.gridsize**2, axis=1)
        rows = ~self.excluded[self.centers]
        centers = np.searchsorted(contributing, self.centers[rows])
        groups[rows] = contributing[find_nearest_groups(scan.positions[contributing], self.gridsize, centers)]
        return groups

    def predict_object(self, scan: Scan) -> _StitchedObject:
        """Predict the patches of all patterns and stitch them."""
        batch, group_indices = self.collect_patterns(scan)
        self.observer.start("inference", len(batch.corners))
        try:
            patches, weights = self.predict(batch)
        finally:
            self.observer.finish()
        own = group_indices[:, 0]
        if not self.process_group.is_main:
            pass
        elif self.gridsize > 1:
            patches = _merge_groups(patches, weights, batch.corners, group_indices, self.batch_size)
        else:
            patches = patches[own]
        batch = batch.take(own)
        margin = CANVAS_MARGIN_PX + compute_extra_margin(self.bound)
        check_canvas_size(scan.positions[self.centers], scan.size + 2 * margin)
        canvas = make_canvas(batch.corners, scan.size, margin)
        if not self.process_group.is_main:  # the main process stitches, and broadcasts the result
            blank, none = torch.ones(canvas.shape, dtype=torch.complex64), torch.arange(0)
            positions = torch.from_numpy(scan.positions[self.centers])
            return _StitchedObject(blank, torch.zeros(canvas.shape), canvas, batch, positions, none)
        rows = self.contributing
        stitched = stitch(patches[rows], weights[own[rows]], batch.corners[rows], canvas)
        positions = torch.from_numpy(scan.positions[self.centers])
        photons = batch.counts.sum((1, 2))[rows]
        is_reliable = (stitched.patch_weights > MIN_PATTERN_WEIGHT) & (photons > MIN_PHOTON_FRACTION * photons.median())
        reliable = rows[is_reliable]
        return _StitchedObject(stitched.object, stitched.coverage, canvas, batch, positions, reliable)

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Predict the patches (n, N, N) of the patterns and the power of the probe on them (n, N, N), on the CPU.

        Processes share whole batches, which gives the result of a single process. The main process receives all
        patches, other processes only theirs.
        """
        self.model.eval()
        device = self.model.device
        centered_probe = self.probe.to(device)
        n, size = batch.amplitudes.shape[:2]
        patches = torch.empty((n, size, size), dtype=torch.complex64)
        weights = torch.empty((n, size, size))
        batches = torch.arange(n).split(min(self.batch_size, n))
        for indices in batches[self.process_group.shard(len(batches))]:
            part = batch.take(indices).to(device)
            probe = shift_probe(centered_probe, part.fractions)
            with self._autocast():
                patches[indices] = self.model.predict(part, probe).cpu()
            weights[indices] = compute_power(probe).cpu()
            self.observer.advance(len(indices))
        shares = [self.process_group.shard(len(batches), rank) for rank in range(self.process_group.size)]
        rows = [slice(share.start * self.batch_size, min(share.stop * self.batch_size, n)) for share in shares]
        for tensor in (patches, weights):
            self.process_group.gather_rows(tensor, rows)
        others = n - len(range(n)[rows[self.process_group.rank]])
        if others:
            self.observer.advance(others)
        return patches, weights

    def refine_positions(self, scan: Scan, stitched: _StitchedObject) -> Scan:
        """Return ``scan`` with its positions refined against the stitched object."""
        positions = scan.positions.copy()
        if self.process_group.is_main:
            refiner = self._make_refiner(stitched)
            refiner.refine(stitched.object.to(self.model.device))
            positions[self.centers[stitched.reliable.numpy()]] = refiner.positions.numpy()
        return self.broadcast_positions(replace(scan, positions=positions))

    def broadcast_positions(self, scan: Scan) -> Scan:
        """Return ``scan`` with the positions of the main process."""
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
        """Return the object after the object stages, between which positions may move."""
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
        patterns = self._make_patterns(stitched.batch.take(stitched.reliable), stitched.canvas, shape)
        count = self.model.object_stages + EXTRA_OBJECT_STAGES
        self.observer.start("object stages", count)
        try:
            for number in range(count):
                if refiner is not None and number:
                    moved = refiner.refine(canvas[:rows, :columns])
                    patterns = self._make_patterns(moved, stitched.canvas, shape)
                with self._autocast():
                    canvas, velocity = self.model.refine_object(canvas, velocity, patterns)
                self.observer.advance()
        finally:
            self.observer.finish()
        coverage, positions = stitched.coverage, stitched.positions.clone()
        if refiner is not None:
            positions[stitched.reliable] = refiner.positions
            moved = stitched.batch.replace_positions(positions).take(self.contributing)
            all_patterns = self._make_patterns(moved, stitched.canvas, shape)
            coverage = all_patterns.illumination[:rows, :columns].cpu()
        obj = torch.where(coverage > 0, canvas[:rows, :columns].cpu(), 1)
        return stitched._replace(object=obj, coverage=coverage, positions=positions)

    def _make_refiner(self, stitched: _StitchedObject) -> GaussNewtonPositionRefiner:
        """Return a refiner of the positions of the reliable patterns."""
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
        """Return the patterns of ``batch`` on a canvas of ``shape`` with the origin of ``canvas``."""
        device = self.model.device
        probe = self.probe.to(device)
        origin = torch.tensor(canvas.origin)

        def take(indices: Tensor) -> IlluminatedPatterns:
            part = batch.take(indices)._replace(corners=batch.corners[indices] - origin).to(device)
            return IlluminatedPatterns(part.amplitudes, part.mask, shift_probe(probe, part.fractions), part.corners)

        return make_object_patterns(take, len(batch.corners), shape, chunk_size=self.batch_size)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _merge_groups(patches: Tensor, weights: Tensor, corners: Tensor, group_indices: Tensor, batch_size: int) -> Tensor:
    """Return the patch of the center of each group, (m, N, N), after the overlap constraint within the group.

    Args:
        patches: (n, N, N) complex.
        weights: (n, N, N) power of the probe on the patches.
        corners: (n, 2) [0, 0] pixels of the patches.
        group_indices: (m, g²) indices of the patches of each group, the center first.
        batch_size: number of patches that are merged together.
    """
    groups_per_batch = min(max(1, batch_size // group_indices.shape[1]), len(group_indices))
    merged = [
        merge_patches(patches[indices], weights[indices], corners[indices])[:, 0]
        for indices in group_indices.split(groups_per_batch)
    ]
    return torch.cat(merged)
