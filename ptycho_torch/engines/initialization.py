"""Where a reconstruction starts from: an object, a probe and positions, each given or made."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.config.engines import StageConfig
from ptycho_torch.config.reconstruct import ReconstructConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.measurement_model import Scene
from ptycho_torch.engines.probe_estimation import curvature_of, width_of
from ptycho_torch.engines.state import Estimate, Measurement, flat_estimate
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.positions_file import read_positions
from ptycho_torch.io.probe_file import read_probe
from ptycho_torch.models.saved_model import load_bundle
from ptycho_torch.physics.batch import probe_in_photons
from ptycho_torch.physics.forward import from_patches
from ptycho_torch.physics.probe import orthogonalised
from ptycho_torch.simulation.probes import incoherent_modes, pixel_grid

NEW_MODE_SHARE = 0.02
"""Share of the probe's power that each mode gets that is not in the start."""

SCALE_PATTERNS = 64
"""Patterns, spread over the scan, that a given object is brought to the measured photons by."""

log = logging.getLogger(__name__)


def start_of(
    config: ReconstructConfig, scan: Scan, photons_per_unit: float, device: torch.device, margin: int
) -> Estimate:
    """The estimate that the first stage starts from, with ``margin`` pixels of canvas beyond the outermost windows.

    The object is ones unless a file is given: what a scan file holds as its object is never read by itself.

    Raises:
        ConfigError: ``--init_probe`` is malformed.
        DataError: a file that was named lacks what is needed from it, or does not fit the scan.
    """
    probe = _probe(config.init_probe, scan, np.random.default_rng(config.seed))
    positions = scan.positions
    if config.init_positions is not None:
        positions = read_positions(config.init_positions, len(scan), "--init_positions")
    scaled = probe_in_photons(replace(scan, probe=probe), photons_per_unit).to(device)
    estimate = flat_estimate(torch.from_numpy(positions.copy()), scaled, margin)
    if config.init_object is not None:
        estimate.object = placed_object(estimate, *_object(config.init_object)).to(device)
    return estimate


def margin_for(stages: Sequence[StageConfig], scan: Scan) -> int:
    """Pixels of canvas beyond the outermost windows that keep all of them on it, wherever ``stages`` move them."""
    farthest = sum(stage.position_bound for stage in stages if stage.update_positions)
    for stage in stages:
        if stage.engine == "neural" and stage.model_path is not None:
            bundle = load_bundle(stage.model_path)
            known = bundle.known(scan.digest())
            shifts = None if known is None else bundle.model.shifts_of(known)
            farthest += 0.0 if shifts is None else float(shifts.detach().abs().max())
    return 2 + int(np.ceil(farthest))


def placed_object(estimate: Estimate, obj: NDArray[Any], origin_yx: NDArray[np.int64]) -> Tensor:
    """``obj`` (rows, columns) with its [0, 0] pixel at ``origin_yx``, on the canvas of ``estimate``; ones elsewhere.

    Raises:
        DataError: the two share no pixel.
    """
    (top, left), shape = estimate.frame.origin, estimate.frame.shape
    low = np.maximum(origin_yx, (top, left))
    high = np.minimum(origin_yx + obj.shape, (top + shape[0], left + shape[1]))
    if (high <= low).any():
        raise DataError(
            f"the object to start from lies at {origin_yx.tolist()} with {obj.shape} pixels, and the scan's canvas at "
            f"{[top, left]} with {list(shape)}: they share no pixel; check --init_object"
        )
    there = np.s_[low[0] - origin_yx[0] : high[0] - origin_yx[0], low[1] - origin_yx[1] : high[1] - origin_yx[1]]
    canvas = np.ones(shape, np.complex64)
    canvas[low[0] - top : high[0] - top, low[1] - left : high[1] - left] = obj[there]
    return torch.from_numpy(canvas)


@torch.no_grad()
def fit_scale(measurement: Measurement, estimate: Estimate) -> float:
    """The factor on the object that fits the model's amplitudes best to those measured, in the least squares.

    Over some patterns spread over the scan. A start from elsewhere, a network or another unit, then costs no epochs.
    """
    chosen = torch.linspace(0, len(measurement) - 1, min(SCALE_PATTERNS, len(measurement))).round().long()
    scene = Scene(estimate)
    waves = from_patches(scene.patches(chosen), scene.probes(chosen), estimate.background)
    counts, mask = measurement.counts[chosen], measurement.mask_of(chosen)
    modelled = waves.intensity if mask is None else torch.where(mask, waves.intensity, torch.zeros_like(counts))
    power = float(modelled.sum(dtype=torch.float64))
    return float((modelled * counts).sqrt().sum(dtype=torch.float64)) / power if power > 0 else 1.0


def with_modes(probe: Tensor, modes: int) -> Tensor:
    """``probe`` (M, N, N) with as many incoherent modes as asked for, of the same power.

    Further ones are the strongest mode times polynomials, orthogonal and weak; of too many the strongest are kept.
    """
    power = probe.abs().square().sum()
    ordered = orthogonalised(probe)[:modes]
    if modes > len(ordered):
        shapes = incoherent_modes(ordered[0].cpu().numpy().astype(np.complex128), modes)
        shapes = shapes / np.sqrt(np.square(np.abs(shapes)).sum((1, 2), keepdims=True))
        further = torch.from_numpy(shapes[len(ordered) :]).to(probe)
        ordered = torch.cat([ordered, further * (NEW_MODE_SHARE * power).sqrt()])
    return ordered * (power / ordered.abs().square().sum()).sqrt()


def gaussian_probe(scan: Scan, sigma: float | None, rng: np.random.Generator) -> NDArray[np.complex64]:
    """A Gaussian amplitude, curved as the patterns tell: (1, N, N), of any power.

    The curvature is what an iteration that starts without it may never find: it puts it into the object, where it
    fits the patterns nearly as well.

    Args:
        scan: its probe is not looked at.
        sigma: of the amplitude, in pixels; None: as the patterns' width tells.
        rng: chooses the patterns that are compared.
    """
    curvature = curvature_of(scan, rng)
    sigma = width_of(scan, curvature) if sigma is None else sigma
    log.info("probe: a Gaussian of sigma %.2f pixels with a curvature of %.4f rad a square pixel", sigma, curvature)
    y, x = pixel_grid(scan.size)
    return np.exp((y**2 + x**2) * (0.5j * curvature - 0.5 / sigma**2))[None].astype(np.complex64)


def _sigma(asked: str, value: str) -> float:
    try:
        sigma = float(value)
    except ValueError:
        sigma = 0.0
    if not 0 < sigma < np.inf:
        raise ConfigError(f"--init_probe is {asked}: expected gaussian:SIGMA with a sigma above 0, in pixels")
    return sigma


def _probe(asked: str, scan: Scan, rng: np.random.Generator) -> NDArray[np.complex64]:
    """The probe's shape by ``--init_probe``: (M, N, N) of any power."""
    if asked == "file":
        return scan.probe
    kind, _, value = asked.partition(":")
    if kind == "gaussian":
        return gaussian_probe(scan, _sigma(asked, value) if value else None, rng)
    return read_probe(Path(asked), scan.size, "--init_probe").modes


def _object(path: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Object and origin of a reconstruction, or ``objectGuess`` of a scan file at (0, 0)."""
    arrays = read_arrays(path)
    obj = arrays.get("object", arrays.get("objectGuess"))
    if obj is None or obj.ndim != 2 or not np.isfinite(obj).all():
        raise DataError(
            f"{path}: no finite object or objectGuess of two axes in it "
            f"(found {', '.join(sorted(arrays)) or 'nothing'}); check --init_object"
        )
    return obj, np.asarray(arrays.get("origin_yx", (0, 0)), np.int64)
