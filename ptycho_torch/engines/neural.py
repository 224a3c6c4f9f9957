"""A trained network as an engine: one pass over the scan, stitched."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.data.grouping import Indices, nearest_groups
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.imaging.stitching import stitch
from ptycho_torch.networks.batch import Batch, batch_of_scan
from ptycho_torch.networks.model import PtychoModel
from ptycho_torch.physics.forward import merge_patches, probe_at
from ptycho_torch.physics.patches import Frame, frame_of
from ptycho_torch.physics.probe import power_of
from ptycho_torch.physics.ranks import ALONE, Ranks
from ptycho_torch.physics.scene import Lit, scene_of

TRUSTED = 0.5
"""Patterns whose patches stitching trusts less than this are not looked at again: dead ones, say."""

AGAIN = 2
"""Looks at a whole object beyond those of a lesson: they go on improving it."""

OBJECT_DIVISOR = 8
"""The sides of an object that a network looks at are divisible by this."""


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
        ranks: this process, the first, and those that call :func:`assist` meanwhile.

    Raises:
        ConfigError: fewer than g² positions, or no probe where the model has none or several.
    """
    observer = observer or SilentObserver()
    probe = model.probe if probe is None else probe
    centres = np.arange(len(scan)) if centres is None else centres
    batch, places = _needed(scan, photons_per_unit, gridsize, centres)
    observer.begin("inference", len(batch.corners))
    try:
        patches, weights = _predict(model, probe, batch, batch_size, precision, observer, ranks)
    finally:
        observer.end()
    if gridsize > 1:
        patches = _merge_groups(patches, weights, batch.corners, places, batch_size)
    own = places[:, 0]
    corners = batch.corners[own]
    frame = frame_of(corners, scan.size)
    stitched = stitch(patches if gridsize > 1 else patches[own], weights[own], corners, frame)
    if model.looks:
        trusted = batch.take(own[stitched.trust > TRUSTED])
        seen = _looked_at(model, probe, trusted, stitched.object, frame, batch_size, precision, observer)
        stitched = stitched._replace(object=torch.where(stitched.coverage > 0, seen, 1))
    return Reconstruction(
        object=stitched.object.numpy(),
        coverage=stitched.coverage.numpy(),
        origin_yx=np.array(frame.origin, dtype=np.int64),
        probe=probe.detach().cpu().numpy(),
        positions=scan.positions[centres],
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
    ranks: Ranks,
) -> None:
    """What the other ranks do while the first calls :func:`reconstruct_by_network`, with the same arguments.

    They predict their share of the patches, for the first to stitch.
    """
    batch, _ = _needed(scan, photons_per_unit, gridsize, centres)
    _predict(model, probe, batch, batch_size, precision, SilentObserver(), ranks)


class _Needed(NamedTuple):
    """Patterns that make up the groups, and where in ``batch`` each group's (m, g²) are."""

    batch: Batch
    places: Tensor


def _needed(scan: Scan, photons_per_unit: float, gridsize: int, centres: Indices) -> _Needed:
    groups = torch.from_numpy(np.ascontiguousarray(nearest_groups(scan.positions, gridsize, centres)))
    needed, places = groups.unique(return_inverse=True)
    return _Needed(batch_of_scan(scan, photons_per_unit).take(needed), places)


@torch.no_grad()
def _predict(
    model: PtychoModel,
    light: Tensor,
    batch: Batch,
    batch_size: int,
    precision: str,
    observer: Observer,
    ranks: Ranks,
) -> tuple[Tensor, Tensor]:
    """Patches (n, N, N) and their illumination (n, N, N), on the CPU, of each pattern by itself.

    The first rank gets all of them, another its share: whole batches, so that each is computed as one rank alone would.
    """
    model.eval()
    device = model.device
    light = light.to(device)
    n, size = batch.amplitudes.shape[:2]
    patches = torch.empty((n, size, size), dtype=torch.complex64)
    weights = torch.empty((n, size, size))
    batches = torch.arange(n).split(min(batch_size, n))
    for indices in batches[ranks.share(len(batches))]:
        part = batch.take(indices).to(device)
        probe = probe_at(light, part.fractions)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            patches[indices] = model.predict(part, probe).cpu()
        weights[indices] = power_of(probe).cpu()
        observer.advance(len(indices))
    shares = [ranks.share(len(batches), rank) for rank in range(ranks.size)]
    rows = [slice(share.start * batch_size, min(share.stop * batch_size, n)) for share in shares]
    for tensor in (patches, weights):
        ranks.collect(tensor, rows)
    elsewhere = n - len(range(n)[rows[ranks.rank]])
    if elsewhere:
        observer.advance(elsewhere)
    return patches, weights


@torch.no_grad()
def _looked_at(
    model: PtychoModel,
    light: Tensor,
    batch: Batch,
    obj: Tensor,
    frame: Frame,
    batch_size: int,
    precision: str,
    observer: Observer,
) -> Tensor:
    """``obj`` (rows, columns) complex on the canvas ``frame`` after the network's looks at the whole, on the CPU.

    ``batch_size`` patterns are computed at a time; those of a step of physics are many more or fewer, and always the
    same.
    """
    device = model.device
    light = light.to(device)
    origin = torch.tensor(frame.origin)

    def take(indices: Tensor) -> Lit:
        part = batch.take(indices)._replace(corners=batch.corners[indices] - origin).to(device)
        return Lit(part.amplitudes, part.mask, probe_at(light, part.fractions), part.corners)

    rows, columns = frame.shape
    shape = (-(-rows // OBJECT_DIVISOR) * OBJECT_DIVISOR, -(-columns // OBJECT_DIVISOR) * OBJECT_DIVISOR)
    canvas = torch.ones(shape, dtype=obj.dtype)
    canvas[:rows, :columns] = obj
    canvas = canvas.to(device)
    scene = scene_of(take, len(batch.corners), shape, chunk=batch_size)
    looks = model.look(canvas, scene, AGAIN)
    count = model.looks + AGAIN
    observer.begin("looks at the whole", count)
    try:
        for _ in range(count):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                canvas = next(looks)
            observer.advance()
    finally:
        observer.end()
    return canvas[:rows, :columns].cpu()


def _merge_groups(patches: Tensor, weights: Tensor, corners: Tensor, places: Tensor, batch_size: int) -> Tensor:
    """The centre's patch of each group (m, N, N), after the overlap constraint within the group.

    ``places`` (m, g²) indexes the first axis of the others.
    """
    merged = [
        merge_patches(patches[some], weights[some], corners[some])[:, 0]
        for some in places.split(min(max(1, batch_size // places.shape[1]), len(places)))
    ]
    return torch.cat(merged)
