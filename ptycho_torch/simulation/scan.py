"""Simulation of a scan from object, probe and trajectory, and presets of these."""

import typing
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.config.base import require_not_negative, require_positive
from ptycho_torch.config.values import require_type
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.extent import compute_probe_diameter
from ptycho_torch.data.scan import Scan, check_scan
from ptycho_torch.physics.forward import from_object
from ptycho_torch.simulation.objects import OBJECTS
from ptycho_torch.simulation.probes import PROBES, make_incoherent_modes
from ptycho_torch.simulation.trajectories import TRAJECTORIES

NOISELESS_PHOTONS_PER_PATTERN = 1e6
"""Mean photons per pattern of a noiseless scan."""

MIN_PATTERN_SIZE_PX = 8
"""Smallest side of a pattern in pixels."""

OBJECT_MARGIN_PX = 4
"""Pixels of the object beyond the outermost patch."""


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of a simulated scan, except its seed."""

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
    """Linear overlap of neighboring probes: 1 − step / probe diameter."""

    jitter: float
    """Largest random displacement of a position, in steps."""

    modes: int
    """Incoherent probe modes."""

    photons: float
    """Mean photons per pattern; 0 gives the noiseless expectation, scaled to 10⁶."""


PRESETS = {
    "run1084": SimulationSettings("letters", "structured", "raster", 64, 1089, 0.94, 0.4, 1, 1e6),
    "star": SimulationSettings("star", "structured", "spiral", 128, 500, 0.86, 0.0, 1, 5e5),
    "tiny": SimulationSettings("letters", "structured", "raster", 32, 64, 0.80, 0.3, 1, 1e6),
}
"""``run1084``: similar to the scan of LCLS run 1084, 64² patterns over about 90 × 90 pixels. ``star``: similar to a
measured Siemens star, 128² patterns. ``tiny``: small, for tests that take seconds."""


def simulate_scan(preset: str = "run1084", *, photons: float | None = None, seed: int = 0, **settings: Any) -> Scan:
    """Simulate a scan of a test object; its ``truth`` is the object.

    Args:
        preset: ``run1084`` (1089 patterns of 64 × 64 pixels), ``star`` (500 of 128 × 128) or ``tiny`` (64 of 32 × 32).
        photons: mean photons per pattern; 0 gives the noiseless expectation. None: from the preset.
        seed: seed of the object, the positions and the counts; the same seed gives the same scan.
        **settings: replace values of the preset; None keeps a value.

            - ``object``: kind of object, such as ``letters``, ``star``, ``cells`` or ``dead_leaves``.
            - ``probe``: kind of probe, such as ``structured``, ``disk``, ``gaussian`` or ``zone_plate``.
            - ``trajectory``: ``raster``, ``spiral``, ``grid`` or ``scattered``.
            - ``size``: N, side of a pattern in pixels.
            - ``positions``: number of scan positions.
            - ``overlap``: linear overlap of neighboring probes, 1 − step / probe diameter, from 0 to below 1.
            - ``jitter``: largest random displacement of a position, in steps.
            - ``modes``: number of incoherent probe modes.

    Returns:
        The scan. Its amplitudes are square roots of photons, its positions are in object pixels, and its probe is in
        √photons.

    Raises:
        ConfigError: the preset, a setting, an object, a probe or a trajectory is unknown, or a number is out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"`preset` is {preset}; expected one of {', '.join(PRESETS)}")
    names = [field.name for field in fields(SimulationSettings)]
    for name in settings:
        if name not in names:
            raise ConfigError(f"`{name}` is not a setting of a simulation; expected one of {', '.join(names)}")
    changes = {name: value for name, value in (settings | {"photons": photons}).items() if value is not None}
    simulation = replace(PRESETS[preset], **changes)
    _check_numbers(simulation)
    return simulate_from_settings(simulation, seed)


def _check_numbers(settings: SimulationSettings) -> None:
    for name, hint in typing.get_type_hints(SimulationSettings).items():
        require_type(name, getattr(settings, name), hint)
    require_positive(settings, "size", "positions", "modes")
    require_not_negative(settings, "photons", "jitter")
    if not 0 <= settings.overlap < 1:
        raise ConfigError(f"`overlap` is {settings.overlap}; expected a number from 0 to below 1")


def simulate_from_settings(settings: SimulationSettings, seed: int) -> Scan:
    """Simulate the scan of ``settings``; the same seed gives the same scan.

    Raises:
        ConfigError: the object, the probe or the trajectory is unknown, or the size is too small.
    """
    for setting, name, choices in (
        ("object", settings.object, OBJECTS),
        ("probe", settings.probe, PROBES),
        ("trajectory", settings.trajectory, TRAJECTORIES),
    ):
        if name not in choices:
            raise ConfigError(f"`{setting}` is {name}; expected one of {', '.join(sorted(choices))}")
    if settings.size < MIN_PATTERN_SIZE_PX:
        raise ConfigError(f"`size` is {settings.size}; expected at least {MIN_PATTERN_SIZE_PX} pixels per side")
    rng = np.random.default_rng(seed)
    probe = make_incoherent_modes(PROBES[settings.probe](settings.size), settings.modes)
    step = (1 - settings.overlap) * compute_probe_diameter(probe)
    relative = TRAJECTORIES[settings.trajectory](settings.positions, step, settings.jitter, rng)
    positions = relative - relative.min(0) + settings.size // 2 + OBJECT_MARGIN_PX
    # Patches extend half a pattern to each side of a position and may be rounded up by one pixel.
    rows, columns = (
        int(np.ceil(high)) + settings.size - settings.size // 2 + OBJECT_MARGIN_PX for high in positions.max(0)
    )
    obj = OBJECTS[settings.object]((rows + 1, columns), rng)  # not square, which reveals exchanged axes
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
    """Simulate the measurement of ``obj`` by the forward model, in float64, with Poisson counts.

    Args:
        obj: (rows, columns) complex, origin (0, 0); becomes ``truth`` of the scan.
        probe: (M, N, N) or (N, N) complex, of any power; scaled to give ``photons``.
        positions: (n, 2) (y, x) in pixels; every patch must lie inside ``obj``.
        photons: mean photons per pattern; 0 gives the noiseless expectation with a mean of 10⁶.
        rng: random generator of the counts.
        metadata: metadata of the scan.

    Returns:
        The scan; its amplitudes are square roots of photons, and its probe has the matching power.

    Raises:
        ConfigError: a patch extends beyond the object.
    """
    modes = probe if probe.ndim == 3 else probe[None]
    try:
        batches = [
            from_object(torch.from_numpy(obj), torch.from_numpy(modes), torch.from_numpy(part)).intensity.numpy()
            for part in np.array_split(positions, -(-len(positions) // 64))
        ]
    except IndexError as error:
        raise ConfigError(
            f"`positions` lie too close to the edge of the object ({error}); expected every patch inside it"
        ) from error
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
