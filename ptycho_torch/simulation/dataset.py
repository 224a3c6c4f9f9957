"""An endless stream of simulated lessons for pretraining: never stored, and each a pure function of seed and number.

A lesson is a neighbourhood of a scan: a few patterns that overlap, of a drawn object, by a drawn probe, with a drawn
dose. Lesson k has the same bytes whatever was asked for before, so that a training that is resumed sees what it would
have seen, and processes can share a stream: best in runs of consecutive numbers, which share an object
(:attr:`SimulatedDatasetSettings.reuse`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.profile import compute_probe_diameter
from ptycho_torch.physics.forward import from_object, from_vacuum
from ptycho_torch.physics.patches import split_positions
from ptycho_torch.simulation.detector import draw_mask, draw_poisson_counts
from ptycho_torch.simulation.image_primitives import Shape
from ptycho_torch.simulation.objects import OBJECTS, Object, draw_transmission
from ptycho_torch.simulation.photographs import load_photographs
from ptycho_torch.simulation.probe_families import PROBE_FAMILIES, draw_probe, perturb_probe
from ptycho_torch.simulation.trajectories import TRAJECTORIES

MAX_PROBE_DIAMETER_FRACTION = 0.7
"""Diameter of a probe as a share of N for which an object is large enough at the smallest overlap."""

MIN_TRANSMITTED_FRACTION = 0.05
"""Least share of the light that a neighbourhood lets through: a darker one is put behind vacuum, as (1 + O) / 2."""

MIN_PATTERN_SIZE_PX = 32
"""Smallest N for which the probes are made."""


@dataclass(frozen=True, kw_only=True)
class SimulatedDatasetSettings:
    """What lessons are drawn from."""

    size: int = 64
    """N: side of a pattern in pixels, a multiple of 8 from 32 on."""

    patterns: int = 16
    """Patterns a lesson."""

    seed: int = 0
    """Seed of every lesson."""

    objects: tuple[tuple[str, float], ...] = (
        ("dead_leaves", 3.0),
        ("clouds", 2.0),
        ("photographs", 2.0),
        ("lines", 1.0),
        ("bars", 1.0),
        ("gratings", 1.0),
        ("spokes", 1.0),
    )
    """Names of :data:`~ptycho_torch.simulation.objects.OBJECTS` and how often each is drawn, in proportion."""

    families: tuple[str, ...] = tuple(PROBE_FAMILIES)
    """Names of :data:`~ptycho_torch.simulation.probe_families.PROBE_FAMILIES`; may be empty where probes are given."""

    given_share: float = 0.5
    """Share of the lessons with one of the given probes, where there are both those and families."""

    variation: float = 0.0
    """How much given probes are changed, 0 not at all, 1 a little: ``amount`` of
    :func:`~ptycho_torch.simulation.probe_families.perturb_probe`."""

    photons: tuple[float, float] = (1e3, 1e7)
    """Lowest and highest mean total a pattern, before any mask; drawn evenly in its logarithm."""

    overlap: tuple[float, float] = (0.3, 0.95)
    """Lowest and highest linear overlap: 1 − step / diameter of the probe."""

    trajectories: tuple[str, ...] = ("raster", "spiral", "scattered")
    """Names of :data:`~ptycho_torch.simulation.trajectories.TRAJECTORIES`."""

    masked: float = 0.25
    """Share of the lessons with pixels that do not count."""

    misled: float = 0.0
    """Share of the lessons whose :attr:`SimulatedBatch.assumed_probe` is off."""

    error: float = 0.5
    """How far off, as ``variation``."""

    power_error: float = 0.0
    """Standard deviation of the logarithm of the factor by which the probe's power misses that of the mean pattern: a
    neighbourhood is brighter or darker than the scan that its probe is scaled by."""

    reuse: int = 4
    """Consecutive lessons that see parts of one large object, turned and mirrored."""

    def __post_init__(self) -> None:
        if self.size % 8 or self.size < MIN_PATTERN_SIZE_PX:
            raise ConfigError(
                f"patterns have {self.size} pixels a side: expected a multiple of 8, from {MIN_PATTERN_SIZE_PX} on"
            )
        for name in ("patterns", "reuse"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("given_share", "masked", "misled"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must lie from 0 to 1")
        for name in ("seed", "variation", "error", "power_error"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must not be negative")
        if not 0 < self.photons[0] <= self.photons[1] < math.inf:
            raise ConfigError(f"photons are {self.photons}: expected a lowest above 0 and a highest")
        if not 0 <= self.overlap[0] <= self.overlap[1] < 1:
            raise ConfigError(f"overlaps are {self.overlap}: expected a lowest and a highest, from 0 to below 1")
        if not self.objects or min(weight for _, weight in self.objects) < 0 or not sum(w for _, w in self.objects):
            raise ConfigError(f"objects are {self.objects}: expected names with weights, none negative, one above 0")
        check_names("object", [name for name, _ in self.objects], OBJECTS)
        check_names("family of probes", self.families, PROBE_FAMILIES)
        check_names("trajectory", self.trajectories, TRAJECTORIES)


class SimulatedBatch(NamedTuple):
    """Patterns, and the truth about them. ``forward.from_object(object, probe, positions)`` is their expectation."""

    amplitudes: Tensor
    """(n, N, N) float32, in √photons, zero frequency at [0, 0]; 0 where the mask is False."""

    mask: Tensor | None
    """(1, N, N) bool, True where a pixel counts, zero frequency at [0, 0]; None: all count."""

    probe: Tensor
    """(M, N, N) complex64, in √photons, with the power of the mean pattern as it was counted."""

    assumed_probe: Tensor
    """(M, N, N) complex64: what a network is told of the probe, of the same power; ``probe`` but where it is misled."""

    object: Tensor
    """(rows, columns) complex64: the transmission times the factor that the probe's power lacks."""

    positions: Tensor
    """(n, 2) float64 (y, x) in pixels from ``object[0, 0]``."""


class SimulatedDataset:
    """Lessons by number.

    Args:
        settings: what lessons are drawn from.
        given: probes from files, (N, N) or (M, N, N) complex of any power.

    Raises:
        ConfigError: a probe is not N × N, or there is neither a probe nor a family.
    """

    def __init__(self, settings: SimulatedDatasetSettings, given_probes: Sequence[NDArray[Any]] = ()) -> None:
        self.settings = settings
        self.given_probes = [normalize_probe(probe, settings.size) for probe in given_probes]
        if not self.given_probes and not settings.families:
            raise ConfigError("neither a probe nor a family of probes is given: lessons need one")
        self._weights = np.array([weight for _, weight in settings.objects], dtype=np.float64)
        names = {name for name, weight in settings.objects if weight}
        # The pool of photographs is read once; it is a value of this stream.
        self._photographs = load_photographs() if "photographs" in names else None
        self._cached_object: tuple[int, Tensor] | None = None  # the last sheet, which its neighbours in number share

    def iterate_batches(self, start: int = 0) -> Iterator[SimulatedBatch]:
        """All lessons from number ``start`` on, without end."""
        while True:
            yield self.make_batch(start)
            start += 1

    def make_batch(self, number: int) -> SimulatedBatch:
        """Lesson ``number``, from 0 on: the same bytes whenever it is asked for."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 0, number])
        modes = self._draw_probe(rng)
        relative = self._draw_positions(modes, rng)
        obj, positions = crop_randomly(self._get_large_object(number // settings.reuse), relative, settings.size, rng)
        truth = torch.from_numpy(modes.astype(np.complex64))
        intensity = from_object(obj, truth, positions).intensity
        if float(intensity.sum()) < MIN_TRANSMITTED_FRACTION * len(positions):
            obj = (1 + obj) / 2
            intensity = from_object(obj, truth, positions).intensity
        dose = float(np.exp(rng.uniform(*np.log(settings.photons))))
        scale = dose * len(positions) / float(intensity.sum())
        counts = draw_poisson_counts(intensity * scale, rng)
        mask = None
        if rng.random() < settings.masked:
            mask = torch.from_numpy(draw_mask(from_vacuum(truth).intensity.double().numpy(), rng))[None]
            counts = torch.where(mask, counts, torch.zeros_like(counts))
        # As with a measured scan: the mean pattern stands for the probe's power, and the object absorbs the factor.
        power = max(float(counts.sum(dtype=torch.float64)) / len(positions), 1.0)
        power *= math.exp(settings.power_error * rng.standard_normal())
        assumed = truth
        if rng.random() < settings.misled:
            assumed = torch.from_numpy(perturb_probe(modes, settings.error, rng).astype(np.complex64))
        probe = truth * math.sqrt(power)
        return SimulatedBatch(
            amplitudes=counts.sqrt_(),
            mask=mask,
            probe=probe,
            assumed_probe=probe if assumed is truth else assumed * math.sqrt(power),
            object=obj * math.sqrt(scale / power),
            positions=positions,
        )

    def _draw_probe(self, rng: np.random.Generator) -> NDArray[np.complex128]:
        """A probe (M, N, N) of unit power: a given one, perhaps varied, or one of a family."""
        settings = self.settings
        if self.given_probes and (not settings.families or rng.random() < settings.given_share):
            probe = self.given_probes[rng.integers(len(self.given_probes))]
            return perturb_probe(probe, settings.variation, rng) if settings.variation else probe
        return draw_probe(settings.size, settings.families, rng)

    def _draw_positions(self, modes: NDArray[np.complex128], rng: np.random.Generator) -> NDArray[np.float64]:
        """Positions (n, 2) from (0, 0) on, close enough together for every object."""
        settings = self.settings
        step = (1 - rng.uniform(*settings.overlap)) * compute_probe_diameter(modes)
        draw = TRAJECTORIES[settings.trajectories[rng.integers(len(settings.trajectories))]]
        positions = draw(settings.patterns, step, rng.uniform(0, 0.4), rng)
        positions = positions - positions.min(0)
        return positions * min(1.0, self._max_extent_px / max(positions.max(), 1e-9))

    @property
    def _max_extent_px(self) -> float:
        """Farthest that a position may lie from the first, along either axis, in pixels."""
        settings = self.settings
        return float(
            (1 - settings.overlap[0])
            * MAX_PROBE_DIAMETER_FRACTION
            * settings.size
            * (math.sqrt(settings.patterns) + 0.5)
        )

    def _get_large_object(self, number: int) -> Tensor:
        """Large object ``number``, (rows, columns) complex64, of which lessons see parts."""
        if self._cached_object is None or self._cached_object[0] != number:
            self._cached_object = number, self._draw_large_object(number)
        return self._cached_object[1]

    def _draw_large_object(self, number: int) -> Tensor:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 1, number])
        side = settings.size + math.ceil(self._max_extent_px) + 2
        name = settings.objects[rng.choice(len(self._weights), p=self._weights / self._weights.sum())][0]
        obj = self._draw_object(name)((side, side), rng)
        return torch.from_numpy(obj.astype(np.complex64))

    def _draw_object(self, name: str) -> Callable[[Shape, np.random.Generator], Object]:
        if name == "photographs" and self._photographs is not None:
            pool = self._photographs
            return lambda shape, rng: draw_transmission(pool.draw_images(shape, rng), rng)
        return OBJECTS[name]


def crop_randomly(
    large_object: Tensor, positions: NDArray[np.float64], size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """The part of ``sheet`` that holds every window, at a random place, turned and mirrored at random.

    Args:
        sheet: (side, side) complex.
        positions: (n, 2) from (0, 0) on; no farther than the sheet holds.
        size: N.
        rng: source of the draw.

    Returns:
        The object (rows, columns), and the positions (n, 2) float64 counted from its [0, 0].
    """
    large_object = torch.rot90(large_object, int(rng.integers(4)))
    large_object = large_object.T if rng.random() < 0.5 else large_object
    shifted_positions = torch.from_numpy(positions + rng.uniform(0, 1, 2) + size // 2)
    corners = split_positions(shifted_positions, size).corners
    needed = (corners.amax(0) + size).tolist()
    top, left = (
        int(rng.integers(0, side - extent + 1)) for side, extent in zip(large_object.shape, needed, strict=True)
    )
    return large_object[top : top + needed[0], left : left + needed[1]].clone(), shifted_positions


def normalize_probe(probe: NDArray[Any], size: int) -> NDArray[np.complex128]:
    """``probe`` as (M, N, N) complex128 of unit power.

    Raises:
        ConfigError: it is not ``size`` × ``size``, not finite, or dark.
    """
    modes = np.asarray(probe, dtype=np.complex128)
    modes = modes[None] if modes.ndim == 2 else modes
    if modes.ndim != 3 or modes.shape[1:] != (size, size):
        raise ConfigError(f"a probe has the shape {np.shape(probe)}: expected {size} × {size} pixels, in modes or not")
    power = float(np.square(np.abs(modes)).sum())
    if not 0 < power < math.inf:
        raise ConfigError("a probe is dark or not finite")
    return modes / math.sqrt(power)


def check_names(kind: str, names: Sequence[str], known: dict[str, Any]) -> None:
    """Raise :class:`ConfigError` if one of ``names`` is not a key of ``known``."""
    for name in names:
        if name not in known:
            raise ConfigError(f"{name} is no {kind}: known are {', '.join(sorted(known))}")
