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
from ptycho_torch.engines.measurement_model import ProbeObjectView
from ptycho_torch.engines.probe_estimation import estimate_curvature, estimate_width
from ptycho_torch.engines.state import Measurement, ReconstructionState, make_vacuum_state
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.positions_file import read_positions
from ptycho_torch.io.probe_file import read_probe
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.forward import from_patches
from ptycho_torch.physics.probe import orthogonalize_modes
from ptycho_torch.simulation.probes import make_incoherent_modes
from ptycho_torch.simulation.wavefields import make_pixel_grid

NEW_MODE_POWER_FRACTION = 0.02
"""Share of the probe's power that each mode gets that is not in the start."""

SCALE_FIT_PATTERNS = 64
"""Patterns, spread over the scan, that a given object is brought to the measured photons by."""

log = logging.getLogger(__name__)


def make_initial_state(
    config: ReconstructConfig, scan: Scan, photons_per_unit: float, device: torch.device, margin: int
) -> ReconstructionState:
    """The estimate that the first stage starts from, with ``margin`` pixels of canvas beyond the outermost windows.

    The object is ones unless a file is given: what a scan file holds as its object is never read by itself.

    Raises:
        ConfigError: ``--init_probe`` is malformed.
        DataError: a file that was named lacks what is needed from it, or does not fit the scan.
    """
    probe = _make_initial_probe(config.init_probe, scan, np.random.default_rng(config.seed))
    positions = scan.positions
    if config.init_positions is not None:
        positions = read_positions(config.init_positions, len(scan), "--init_positions")
    scaled = scale_probe_to_photons(replace(scan, probe=probe), photons_per_unit).to(device)
    state = make_vacuum_state(torch.from_numpy(positions.copy()), scaled, margin)
    if config.init_object is not None:
        state.object = paste_object(state, *_read_initial_object(config.init_object)).to(device)
    return state


def compute_required_margin(stages: Sequence[StageConfig], scan: Scan) -> int:
    """Pixels of canvas beyond the outermost windows that keep all of them on it, wherever ``stages`` move them."""
    farthest = sum(stage.position_bound for stage in stages if stage.update_positions)
    for stage in stages:
        if stage.engine == "neural" and stage.model_path is not None:
            bundle = load_model(stage.model_path)
            known = bundle.find_scan(scan.digest())
            shifts = None if known is None else bundle.model.get_position_offsets(known)
            farthest += 0.0 if shifts is None else float(shifts.detach().abs().max())
    return 2 + int(np.ceil(farthest))


def paste_object(state: ReconstructionState, obj: NDArray[Any], origin_yx: NDArray[np.int64]) -> Tensor:
    """``obj`` (rows, columns) with its [0, 0] pixel at ``origin_yx``, on the canvas of ``estimate``; ones elsewhere.

    Raises:
        DataError: the two share no pixel.
    """
    (top, left), shape = state.canvas.origin, state.canvas.shape
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
def fit_object_scale(measurement: Measurement, state: ReconstructionState) -> float:
    """The factor on the object that fits the model's amplitudes best to those measured, in the least squares.

    Over some patterns spread over the scan. A start from elsewhere, a network or another unit, then costs no epochs.
    """
    chosen = torch.linspace(0, len(measurement) - 1, min(SCALE_FIT_PATTERNS, len(measurement))).round().long()
    view = ProbeObjectView(state)
    waves = from_patches(view.patches(chosen), view.probes(chosen), state.background)
    counts, mask = measurement.counts[chosen], measurement.select_mask(chosen)
    modelled = waves.intensity if mask is None else torch.where(mask, waves.intensity, torch.zeros_like(counts))
    power = float(modelled.sum(dtype=torch.float64))
    return float((modelled * counts).sqrt().sum(dtype=torch.float64)) / power if power > 0 else 1.0


def set_num_modes(probe: Tensor, modes: int) -> Tensor:
    """``probe`` (M, N, N) with as many incoherent modes as asked for, of the same power.

    Further ones are the strongest mode times polynomials, orthogonal and weak; of too many the strongest are kept.
    """
    power = probe.abs().square().sum()
    ordered = orthogonalize_modes(probe)[:modes]
    if modes > len(ordered):
        shapes = make_incoherent_modes(ordered[0].cpu().numpy().astype(np.complex128), modes)
        shapes = shapes / np.sqrt(np.square(np.abs(shapes)).sum((1, 2), keepdims=True))
        further = torch.from_numpy(shapes[len(ordered) :]).to(probe)
        ordered = torch.cat([ordered, further * (NEW_MODE_POWER_FRACTION * power).sqrt()])
    return ordered * (power / ordered.abs().square().sum()).sqrt()


def make_gaussian_probe(scan: Scan, sigma: float | None, rng: np.random.Generator) -> NDArray[np.complex64]:
    """A Gaussian amplitude, curved as the patterns tell: (1, N, N), of any power.

    The curvature is what an iteration that starts without it may never find: it puts it into the object, where it
    fits the patterns nearly as well.

    Args:
        scan: its probe is not looked at.
        sigma: of the amplitude, in pixels; None: as the patterns' width tells.
        rng: chooses the patterns that are compared.
    """
    curvature = estimate_curvature(scan, rng)
    sigma = estimate_width(scan, curvature) if sigma is None else sigma
    log.info("probe: a Gaussian of sigma %.2f pixels with a curvature of %.4f rad a square pixel", sigma, curvature)
    y, x = make_pixel_grid(scan.size)
    return np.exp((y**2 + x**2) * (0.5j * curvature - 0.5 / sigma**2))[None].astype(np.complex64)


def _parse_sigma(spec: str, value: str) -> float:
    try:
        sigma = float(value)
    except ValueError:
        sigma = 0.0
    if not 0 < sigma < np.inf:
        raise ConfigError(f"--init_probe is {spec}: expected gaussian:SIGMA with a sigma above 0, in pixels")
    return sigma


def _make_initial_probe(spec: str, scan: Scan, rng: np.random.Generator) -> NDArray[np.complex64]:
    """The probe's shape by ``--init_probe``: (M, N, N) of any power."""
    if spec == "file":
        return scan.probe
    kind, _, value = spec.partition(":")
    if kind == "gaussian":
        return make_gaussian_probe(scan, _parse_sigma(spec, value) if value else None, rng)
    return read_probe(Path(spec), scan.size, "--init_probe").modes


def _read_initial_object(path: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Object and origin of a reconstruction, or ``objectGuess`` of a scan file at (0, 0)."""
    arrays = read_arrays(path)
    obj = arrays.get("object", arrays.get("objectGuess"))
    if obj is None or obj.ndim != 2 or not np.isfinite(obj).all():
        raise DataError(
            f"{path}: no finite object or objectGuess of two axes in it "
            f"(found {', '.join(sorted(arrays)) or 'nothing'}); check --init_object"
        )
    return obj, np.asarray(arrays.get("origin_yx", (0, 0)), np.int64)
