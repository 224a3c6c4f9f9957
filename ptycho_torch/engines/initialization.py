"""Initial object, probe and positions of a reconstruction."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.measurement_model import ProbeObjectView
from ptycho_torch.engines.state import Measurement, ReconstructionState, make_vacuum_state
from ptycho_torch.io.container import recognize_kind
from ptycho_torch.io.foreign_result import assemble_positions, get_stored_origin
from ptycho_torch.io.inputs import read_probe
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.scan import read_result_parts
from ptycho_torch.models.probe_estimation import make_gaussian_probe
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.forward import from_patches
from ptycho_torch.physics.noise import fit_amplitude_scale, masked_sum, select_scale_patterns
from ptycho_torch.physics.probe import orthogonalize_modes
from ptycho_torch.simulation.probes import make_incoherent_modes

MAX_FRAME_SPREAD_PX = 0.5
"""Standard deviation per axis of the difference of two lists of positions of one scan that differ by their origin."""

NEW_MODE_POWER_FRACTION = 0.02
"""Power of each added incoherent mode, as a fraction of the power of the probe."""

log = logging.getLogger(__name__)


class InitialObject(NamedTuple):
    """An object and its position in object coordinates."""

    values: NDArray[Any]
    """(rows, columns) complex."""

    origin_yx: NDArray[np.int64]
    """Object coordinates of ``values[0, 0]``, (2,)."""


def make_initial_state(
    scan: Scan,
    photons_per_unit: float,
    initial: Reconstruction | InitialObject | NDArray[Any] | Tensor | None = None,
    *,
    init_probe: NDArray[Any] | None = None,
    positions: NDArray[np.float64] | None = None,
    device: torch.device | None = None,
    margin: int = 2,
) -> ReconstructionState:
    """Return the state from which the first engine starts.

    The true object of a simulated scan is never used: without ``initial`` the object is vacuum (ones).

    Args:
        scan: Scan to reconstruct.
        photons_per_unit: Photons per squared unit of the amplitudes of the scan.
        initial: A reconstruction of the scan, of which object, probe, positions, background and intensities are
            used; or an object. An array has the origin (0, 0), like ``scan.truth``. Object pixels outside it are 1.
        init_probe: (M, N, N) complex, rescaled to the mean number of photons per pattern. Default: the probe of
            ``initial``, otherwise of the scan.
        positions: (n, 2) (y, x) in object pixels. Default: the positions of ``initial`` if it has one position per
            pattern, otherwise of the scan.
        device: Device of the state. Default: the CPU.
        margin: Pixels of canvas beyond the outermost patches.

    Raises:
        DataError: ``initial`` does not fit the scan.
    """
    device = torch.device("cpu") if device is None else device
    earlier = initial if isinstance(initial, Reconstruction) else None
    if positions is None:
        matches = earlier is not None and earlier.positions.shape == scan.positions.shape
        positions = earlier.positions if earlier is not None and matches else scan.positions
    if init_probe is None and earlier is not None:
        probe = _rescale_probe(earlier, scan, photons_per_unit)
    else:
        shape = scan.probe if init_probe is None else np.asarray(init_probe)
        probe = scale_probe_to_photons(replace(scan, probe=shape), photons_per_unit)
    extent = float(np.ptp(positions, axis=0).max())
    if len(positions) > 1 and extent < 1:
        log.warning(
            "the scan positions extend over %.3g pixels; expected more than 1; they may be in meters: check the unit "
            "of `positions`",
            extent,
        )
    state = make_vacuum_state(torch.from_numpy(positions.copy()), probe.to(device), margin)
    if earlier is not None:
        _copy_nuisance_parameters(earlier, state, photons_per_unit)
    if initial is not None:
        state.object = paste_object(state, *_as_initial_object(initial)).to(device)
    return state


def _rescale_probe(reconstruction: Reconstruction, scan: Scan, photons_per_unit: float) -> Tensor:
    """Return the probe of ``reconstruction`` for another number of photons per unit, (M, N, N) complex64."""
    if reconstruction.probe.shape[-1] != scan.size:
        raise DataError(
            f"the probe of the initial reconstruction is {reconstruction.probe.shape}; expected the "
            f"{scan.size} × {scan.size} pixels of the patterns; choose another `initial`"
        )
    ratio = photons_per_unit / reconstruction.photons_per_unit
    return torch.from_numpy((reconstruction.probe * np.sqrt(ratio)).astype(np.complex64))


def _copy_nuisance_parameters(earlier: Reconstruction, state: ReconstructionState, photons_per_unit: float) -> None:
    """Copy background and intensities, as far as their shapes match, into ``state``."""
    if earlier.background is not None and earlier.background.shape == tuple(state.background.shape):
        ratio = photons_per_unit / earlier.photons_per_unit
        state.background = torch.from_numpy(earlier.background * np.float32(ratio)).to(state.background)
    if earlier.intensities is not None and len(earlier.intensities) == len(state.intensities):
        state.intensities = torch.from_numpy(earlier.intensities.copy()).to(state.intensities)


def _as_initial_object(initial: Reconstruction | InitialObject | NDArray[Any] | Tensor) -> InitialObject:
    """Return the object of ``initial`` with its origin."""
    if isinstance(initial, InitialObject):
        return initial
    if isinstance(initial, Reconstruction):
        return InitialObject(initial.object, np.asarray(initial.origin_yx, np.int64))
    values = initial.detach().cpu().numpy() if isinstance(initial, Tensor) else np.asarray(initial)
    if values.ndim != 2 or values.dtype.kind not in "biufc" or not np.isfinite(values).all():
        raise DataError(
            f"the initial object is {values.dtype} of shape {values.shape}; expected a finite array of two axes; "
            "choose another `initial`"
        )
    return InitialObject(values, np.zeros(2, np.int64))


def paste_object(state: ReconstructionState, obj: NDArray[Any], origin_yx: NDArray[np.int64]) -> Tensor:
    """Return ``obj`` (rows, columns) with its [0, 0] pixel at ``origin_yx`` on the canvas of ``state``; ones elsewhere.

    Raises:
        DataError: Object and canvas share no pixel.
    """
    (top, left), shape = state.canvas.origin, state.canvas.shape
    low = np.maximum(origin_yx, (top, left))
    high = np.minimum(origin_yx + obj.shape, (top + shape[0], left + shape[1]))
    if (high <= low).any():
        raise DataError(
            f"the initial object is at {origin_yx.tolist()} with {obj.shape} pixels, and the canvas of the scan at "
            f"{[top, left]} with {list(shape)}: they share no pixel; check `init_object`"
        )
    overlap = np.s_[low[0] - origin_yx[0] : high[0] - origin_yx[0], low[1] - origin_yx[1] : high[1] - origin_yx[1]]
    canvas = np.ones(shape, np.complex64)
    canvas[low[0] - top : high[0] - top, low[1] - left : high[1] - left] = obj[overlap]
    return torch.from_numpy(canvas)


@torch.no_grad()
def fit_object_scale(measurement: Measurement, state: ReconstructionState) -> float:
    """Return the factor on the object that fits the model's amplitudes to the measured amplitudes by least squares.

    The fit uses patterns spread over the scan. It removes the arbitrary unit of an initial object, which would cost
    several epochs otherwise.
    """
    included = state.find_included()
    chosen = included[select_scale_patterns(len(included))]
    view = ProbeObjectView(state)
    if bool(state.background.any()):
        return _fit_scale_above_background(measurement, state, view, chosen)
    fields = from_patches(view.patches(chosen), view.probes(chosen), state.background)
    return fit_amplitude_scale(fields.intensity, measurement.counts[chosen], measurement.select_mask(chosen))


def _fit_scale_above_background(
    measurement: Measurement, state: ReconstructionState, view: ProbeObjectView, chosen: Tensor
) -> float:
    """Return the factor on the object that fits the photons of the patterns ``chosen`` (m,) above the background."""
    fields, mask = from_patches(view.patches(chosen), view.probes(chosen)), measurement.select_mask(chosen)
    excess = measurement.counts[chosen] - state.background
    signal, _ = masked_sum(excess.double(), mask)
    predicted, _ = masked_sum(fields.intensity.double(), mask)
    return float((signal / predicted).sqrt()) if signal > 0 and predicted > 0 else 1.0


def set_num_modes(probe: Tensor, modes: int) -> Tensor:
    """Return ``probe`` (M, N, N) with ``modes`` orthogonal incoherent modes and unchanged total power.

    Added modes are the strongest mode times polynomials; superfluous modes are the weakest.
    """
    power = probe.abs().square().sum()
    ordered = orthogonalize_modes(probe)[:modes]
    if modes > len(ordered):
        shapes = make_incoherent_modes(ordered[0].cpu().numpy().astype(np.complex128), modes)
        shapes = shapes / np.sqrt(np.square(np.abs(shapes)).sum((1, 2), keepdims=True))
        added = torch.from_numpy(shapes[len(ordered) :]).to(probe)
        ordered = torch.cat([ordered, added * (NEW_MODE_POWER_FRACTION * power).sqrt()])
    return ordered * (power / ordered.abs().square().sum()).sqrt()


def make_initial_probe(spec: str, scan: Scan, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Return the probe (M, N, N), of arbitrary power, that the setting ``init_probe`` describes.

    Args:
        spec: ``auto`` for the probe of the scan, or one estimated from the patterns if it has none; ``file`` for the
            probe of the scan; ``gaussian`` or ``gaussian:SIGMA`` for :func:`make_gaussian_probe`,
            otherwise the path of an NPZ file.
        scan: Scan to reconstruct.
        rng: Selects the patterns from which a Gaussian is estimated.

    Raises:
        ConfigError: ``spec`` is malformed.
        DataError: The file has no probe that fits the scan.
    """
    if spec == "auto":
        return make_gaussian_probe(scan, None, rng) if scan.probe is None else scan.probe
    if spec == "file":
        return scan.require_probe()
    kind, _, value = spec.partition(":")
    if kind == "gaussian":
        return make_gaussian_probe(scan, _parse_sigma(spec, value) if value else None, rng)
    return read_probe(Path(spec), scan.size, "init_probe").modes


def _parse_sigma(spec: str, value: str) -> float:
    try:
        sigma = float(value)
    except ValueError:
        sigma = 0.0
    if not 0 < sigma < np.inf:
        raise ConfigError(f"`init_probe` is {spec}; expected gaussian:SIGMA with SIGMA in pixels, above 0")
    return sigma


def read_initial_object(path: Path, positions: NDArray[np.float64] | None = None) -> InitialObject:
    """Read the object of a reconstruction, or that of a file of any format, whose first pixel is (0, 0).

    Args:
        path: file of the object.
        positions: (n, 2) (y, x) in object pixels, on which the object is placed by the positions that a file of
            another program holds, whose origin is its own.

    Raises:
        DataError: The file has no finite object of two axes.
    """
    if recognize_kind(path) != "npz":
        parts = read_result_parts(path)
        if parts.object is None:
            raise DataError(
                f"{path}: no object (format {parts.report.format}); expected an object; check `init_object`"
            )
        origin = get_stored_origin(parts)
        if positions is not None and parts.positions is not None:
            origin = origin + _compute_frame_shift(assemble_positions(parts, path), positions, path)
        return InitialObject(np.squeeze(parts.object), origin)
    arrays = read_arrays(path)
    obj = arrays.get("object", arrays.get("objectGuess"))
    if obj is None or obj.ndim != 2 or not np.isfinite(obj).all():
        raise DataError(
            f"{path}: found {', '.join(sorted(arrays)) or 'nothing'}; expected object or objectGuess, a finite array "
            "of two axes; check `init_object`"
        )
    return InitialObject(obj, np.asarray(arrays.get("origin_yx", (0, 0)), np.int64))


def _compute_frame_shift(stored: NDArray[np.float64], positions: NDArray[np.float64], path: Path) -> NDArray[np.int64]:
    """Return the whole pixels (2,) from the origin of the positions ``stored`` to that of ``positions``."""
    reason = f"{len(stored)} positions for {len(positions)}"
    if stored.shape == positions.shape:
        difference = positions - stored
        spread = float(difference.std(0).max())
        if spread < MAX_FRAME_SPREAD_PX:
            return np.rint(difference.mean(0)).astype(np.int64)
        reason = f"its positions differ from those of the scan by {spread:.3g} pixels (standard deviation)"
    log.warning(
        "%s: the place of the object is uncertain: %s; its first pixel is put at the origin of the file; check "
        "`init_object`, or set `init` to this file",
        path,
        reason,
    )
    return np.zeros(2, np.int64)
