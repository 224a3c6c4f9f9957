"""A simulated scan from its parts, and the presets that name all parts at once."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.profile import compute_probe_diameter
from ptycho_torch.data.scan import Scan, check_scan
from ptycho_torch.physics.forward import from_object
from ptycho_torch.simulation.objects import OBJECTS
from ptycho_torch.simulation.probes import PROBES, make_incoherent_modes
from ptycho_torch.simulation.trajectories import TRAJECTORIES

NOISELESS_PHOTONS_PER_PATTERN = 1e6
"""Mean total a pattern of a noiseless scan."""

OBJECT_MARGIN_PX = 4
"""Pixels of object beyond the outermost window."""


@dataclass(frozen=True)
class SimulationSettings:
    """All that defines a simulated scan but for its seed."""

    object: str
    """Key of :data:`~ptycho_torch.simulation.objects.OBJECTS`."""

    probe: str
    """Key of :data:`~ptycho_torch.simulation.probes.PROBES`."""

    trajectory: str
    """Key of :data:`~ptycho_torch.simulation.trajectories.TRAJECTORIES`."""

    size: int
    """N, side of a pattern in pixels."""

    positions: int
    """Number of scan positions."""

    overlap: float
    """Linear overlap of neighbouring probes: 1 − step / probe diameter."""

    jitter: float
    """Largest random displacement of a position, in steps."""

    modes: int
    """Incoherent probe modes."""

    photons: float
    """Mean total a pattern; 0 for the noiseless expectation, scaled to 10⁶."""


PRESETS = {
    "run1084": SimulationSettings("letters", "structured", "raster", 64, 1089, 0.94, 0.4, 1, 1e6),
    "star": SimulationSettings("star", "structured", "spiral", 128, 500, 0.86, 0.0, 1, 5e5),
    "tiny": SimulationSettings("letters", "structured", "raster", 32, 64, 0.80, 0.3, 1, 1e6),
}
"""``run1084``: like the scan of LCLS run 1084, 64² patterns over some 90 × 90 pixels. ``star``: like a measured Siemens
star of 128². ``tiny``: for trying things out, in seconds."""


def simulate_from_settings(settings: SimulationSettings, seed: int) -> Scan:
    """The scan of ``recipe``: the same for the same seed.

    Raises:
        ConfigError: an unknown object, probe or trajectory.
    """
    for kind, name, known in (
        ("object", settings.object, OBJECTS),
        ("probe", settings.probe, PROBES),
        ("trajectory", settings.trajectory, TRAJECTORIES),
    ):
        if name not in known:
            raise ConfigError(f"--{kind} is {name}: known are {', '.join(sorted(known))}")
    if settings.size < 8:
        raise ConfigError(f"--size is {settings.size}: a pattern needs at least 8 pixels a side")
    rng = np.random.default_rng(seed)
    probe = make_incoherent_modes(PROBES[settings.probe](settings.size), settings.modes)
    step = (1 - settings.overlap) * compute_probe_diameter(probe)
    relative = TRAJECTORIES[settings.trajectory](settings.positions, step, settings.jitter, rng)
    positions = relative - relative.min(0) + settings.size // 2 + OBJECT_MARGIN_PX
    # Windows start half a window before a position, end half a window after it, and may be rounded up by one pixel.
    rows, columns = (
        int(np.ceil(high)) + settings.size - settings.size // 2 + OBJECT_MARGIN_PX for high in positions.max(0)
    )
    obj = OBJECTS[settings.object]((rows + 1, columns), rng)  # not square, so that exchanged axes show
    return simulate_measurement(
        obj, probe, positions, settings.photons, rng, {"simulation": asdict(settings) | {"seed": seed}}
    )


def simulate_measurement(
    obj: NDArray[np.complex128],
    probe: NDArray[np.complex128],
    positions: NDArray[np.float64],
    photons: float,
    rng: np.random.Generator,
    metadata: dict[str, Any] | None = None,
) -> Scan:
    """Measure ``obj`` by the package's own forward model, in float64, with Poisson counts.

    Args:
        obj: (rows, columns) complex, origin (0, 0); the scan's truth.
        probe: (M, N, N) or (N, N) complex, of any power: it is scaled to give ``photons``.
        positions: (n, 2) (y, x) in pixels; every window must lie inside ``obj``.
        photons: mean total a pattern; 0 for the noiseless expectation, with a mean total of 10⁶.
        rng: source of the counts.
        metadata: kept with the scan.

    Returns:
        The scan; its amplitudes are square roots of photons, and its probe has the power that gives them.

    Raises:
        ConfigError: a window reaches outside the object.
    """
    modes = probe if probe.ndim == 3 else probe[None]
    try:
        batches = [
            from_object(torch.from_numpy(obj), torch.from_numpy(modes), torch.from_numpy(part)).intensity.numpy()
            for part in np.array_split(positions, -(-len(positions) // 64))
        ]
    except IndexError as error:
        raise ConfigError(f"a scan position lies too near the edge of the object: {error}") from error
    intensity = np.fft.fftshift(np.concatenate(batches), axes=(-2, -1))
    scale = (photons or NOISELESS_PHOTONS_PER_PATTERN) / intensity.sum((1, 2)).mean()
    counts = rng.poisson(intensity * scale) if photons else intensity * scale
    scan = Scan(
        amplitudes=np.sqrt(counts).astype(np.float32),
        positions=positions,
        probe=(modes * np.sqrt(scale)).astype(np.complex64),
        truth=obj.astype(np.complex64),
        photons_per_unit=1.0,
        metadata=metadata or {},
    )
    check_scan(scan)
    return scan


def make_simulation_settings(preset: str, **changes: Any) -> SimulationSettings:
    """The recipe of ``preset`` with those of ``changes`` that are not None."""
    return replace(PRESETS[preset], **{name: value for name, value in changes.items() if value is not None})
