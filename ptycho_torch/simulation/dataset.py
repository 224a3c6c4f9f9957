"""Endless dataset of simulated batches for pretraining; each batch is a pure function of seed and number.

A batch is a neighborhood of a scan: a few overlapping patterns of a random object with a random probe and dose. Batch k
does not depend on the batches requested before. A resumed training therefore continues with the same batches, and
processes can share a dataset, most efficiently in runs of consecutive numbers, which share an object
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
from ptycho_torch.data.extent import compute_probe_diameter
from ptycho_torch.physics.forward import from_object, from_vacuum
from ptycho_torch.physics.patches import split_positions
from ptycho_torch.simulation.detector import draw_mask, draw_poisson_counts
from ptycho_torch.simulation.image_primitives import Shape
from ptycho_torch.simulation.objects import OBJECTS, Object, draw_transmission
from ptycho_torch.simulation.photographs import load_photographs
from ptycho_torch.simulation.probe_families import PROBE_FAMILIES, draw_probe, perturb_probe
from ptycho_torch.simulation.trajectories import TRAJECTORIES

MAX_PROBE_DIAMETER_FRACTION = 0.7
"""Largest probe diameter, as a fraction of N, for which the object is large enough at the smallest overlap."""

MIN_TRANSMITTED_FRACTION = 0.05
"""Smallest transmitted share of the intensity; a more absorbing object O is replaced by (1 + O) / 2."""

MIN_PATTERN_SIZE_PX = 32
"""Smallest N of the probe families."""


@dataclass(frozen=True, kw_only=True)
class SimulatedDatasetSettings:
    """Distribution of the simulated batches."""

    size: int = 64
    """N: side of a pattern in pixels, a multiple of 8, at least 32."""

    patterns: int = 16
    """Patterns per batch."""

    seed: int = 0
    """Seed of all batches."""

    objects: tuple[tuple[str, float], ...] = (
        ("dead_leaves", 3.0),
        ("clouds", 2.0),
        ("photographs", 2.0),
        ("lines", 1.0),
        ("bars", 1.0),
        ("gratings", 1.0),
        ("spokes", 1.0),
    )
    """Names of :data:`~ptycho_torch.simulation.objects.OBJECTS` with relative frequencies."""

    families: tuple[str, ...] = tuple(PROBE_FAMILIES)
    """Names of :data:`~ptycho_torch.simulation.probe_families.PROBE_FAMILIES`; may be empty if probes are given."""

    given_share: float = 0.5
    """Share of the batches with a given probe, if there are given probes and families."""

    variation: float = 0.0
    """Perturbation of given probes, 0 for none: ``amount`` of
    :func:`~ptycho_torch.simulation.probe_families.perturb_probe`."""

    photons: tuple[float, float] = (1e3, 1e7)
    """Range of the mean photons per pattern before masking; log-uniform."""

    overlap: tuple[float, float] = (0.3, 0.95)
    """Range of the linear overlap, 1 − step / probe diameter."""

    trajectories: tuple[str, ...] = ("raster", "spiral", "scattered")
    """Names of :data:`~ptycho_torch.simulation.trajectories.TRAJECTORIES`."""

    masked: float = 0.25
    """Share of the batches with masked pixels."""

    misled: float = 0.0
    """Share of the batches with a perturbed :attr:`SimulatedBatch.assumed_probe`."""

    error: float = 0.5
    """Perturbation of the assumed probe, in the unit of ``variation``."""

    power_error: float = 0.0
    """Standard deviation of the logarithm of the ratio of probe power to mean photons per pattern. In a measured scan,
    a neighborhood is brighter or darker than the mean pattern that scales the probe."""

    reuse: int = 4
    """Number of consecutive batches that use rotated and mirrored parts of one large object."""

    def __post_init__(self) -> None:
        if self.size % 8 or self.size < MIN_PATTERN_SIZE_PX:
            raise ConfigError(f"`size` is {self.size}; expected a multiple of 8, at least {MIN_PATTERN_SIZE_PX} pixels")
        for name in ("patterns", "reuse"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected at least 1")
        for name in ("given_share", "masked", "misled"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected a share from 0 to 1")
        for name in ("seed", "variation", "error", "power_error"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected a finite number of at least 0")
        if not 0 < self.photons[0] <= self.photons[1] < math.inf:
            raise ConfigError(f"`photons` is {self.photons}; expected a lowest value above 0 and a highest value")
        if not 0 <= self.overlap[0] <= self.overlap[1] < 1:
            raise ConfigError(f"`overlap` is {self.overlap}; expected a lowest and a highest value from 0 to below 1")
        if not self.objects or min(weight for _, weight in self.objects) < 0 or not sum(w for _, w in self.objects):
            raise ConfigError(f"`objects` is {self.objects}; expected names with weights, none negative, one above 0")
        check_names("objects", [name for name, _ in self.objects], OBJECTS)
        check_names("families", self.families, PROBE_FAMILIES)
        check_names("trajectories", self.trajectories, TRAJECTORIES)


class SimulatedBatch(NamedTuple):
    """Simulated patterns with ground truth; ``forward.from_object(object, probe, positions)`` is their expectation."""

    amplitudes: Tensor
    """(n, N, N) float32, in √photons, zero frequency at [0, 0]; 0 where the mask is False."""

    mask: Tensor | None
    """(1, N, N) bool, True where a pixel counts, zero frequency at [0, 0]; None: all count."""

    probe: Tensor
    """(M, N, N) complex64, in √photons, with the power of the mean counted pattern."""

    assumed_probe: Tensor
    """(M, N, N) complex64: the probe given to the network, of the same power; equals ``probe`` unless perturbed."""

    object: Tensor
    """(rows, columns) complex64: the transmission times the factor that the probe power lacks."""

    positions: Tensor
    """(n, 2) float64 (y, x) in pixels from ``object[0, 0]``."""


class SimulatedDataset:
    """Dataset of simulated batches, by number.

    Args:
        settings: distribution of the batches.
        given_probes: probes from files, (N, N) or (M, N, N) complex, of any power.

    Raises:
        ConfigError: a probe is not N × N, or there is neither a probe nor a family.
    """

    def __init__(self, settings: SimulatedDatasetSettings, given_probes: Sequence[NDArray[Any]] = ()) -> None:
        self.settings = settings
        self.given_probes = [normalize_probe(probe, settings.size) for probe in given_probes]
        if not self.given_probes and not settings.families:
            raise ConfigError("no probe is given and `families` is empty; expected a probe or a family")
        self._weights = np.array([weight for _, weight in settings.objects], dtype=np.float64)
        names = {name for name, weight in settings.objects if weight}
        # Photographs are read once per dataset.
        self._photographs = load_photographs() if "photographs" in names else None
        self._cached_object: tuple[int, Tensor] | None = None  # the last large object, shared by consecutive batches

    def iterate_batches(self, start: int = 0) -> Iterator[SimulatedBatch]:
        """Iterate over all batches from number ``start``, without end."""
        while True:
            yield self.make_batch(start)
            start += 1

    def make_batch(self, number: int) -> SimulatedBatch:
        """Return batch ``number``, counted from 0; equal numbers give equal bytes."""
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
        # As for a measured scan, the mean pattern gives the power of the probe, and the object absorbs the factor.
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
        """Draw a probe (M, N, N) of unit power: a given probe, possibly perturbed, or a probe of a family."""
        settings = self.settings
        if self.given_probes and (not settings.families or rng.random() < settings.given_share):
            probe = self.given_probes[rng.integers(len(self.given_probes))]
            return perturb_probe(probe, settings.variation, rng) if settings.variation else probe
        return draw_probe(settings.size, settings.families, rng)

    def _draw_positions(self, modes: NDArray[np.complex128], rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw positions (n, 2) with minimum (0, 0), within the extent of the large objects."""
        settings = self.settings
        step = (1 - rng.uniform(*settings.overlap)) * compute_probe_diameter(modes)
        draw = TRAJECTORIES[settings.trajectories[rng.integers(len(settings.trajectories))]]
        positions = draw(settings.patterns, step, rng.uniform(0, 0.4), rng)
        positions = positions - positions.min(0)
        return positions * min(1.0, self._max_extent_px / max(positions.max(), 1e-9))

    @property
    def _max_extent_px(self) -> float:
        """Largest extent of the positions along either axis, in pixels."""
        settings = self.settings
        return float(
            (1 - settings.overlap[0])
            * MAX_PROBE_DIAMETER_FRACTION
            * settings.size
            * (math.sqrt(settings.patterns) + 0.5)
        )

    def _get_large_object(self, number: int) -> Tensor:
        """Return large object ``number``, (rows, columns) complex64, whose parts are the objects of batches."""
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
    """Crop a random part of a large object that contains every patch, randomly rotated and mirrored.

    Args:
        large_object: (side, side) complex.
        positions: (n, 2) (y, x) in pixels with minimum (0, 0), within the extent of the object.
        size: N.
        rng: random generator.

    Returns:
        The object (rows, columns), and the positions (n, 2) float64 relative to its [0, 0].
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
    """Return ``probe`` as (M, N, N) complex128 of unit power.

    Raises:
        ConfigError: the probe is not ``size`` × ``size`` pixels, not finite, or zero.
    """
    modes = np.asarray(probe, dtype=np.complex128)
    modes = modes[None] if modes.ndim == 2 else modes
    if modes.ndim != 3 or modes.shape[1:] != (size, size):
        raise ConfigError(f"`probe` has shape {np.shape(probe)}; expected (N, N) or (modes, N, N) with N = {size}")
    power = float(np.square(np.abs(modes)).sum())
    if not 0 < power < math.inf:
        raise ConfigError("`probe` is zero or not finite; expected finite values with power above 0")
    return modes / math.sqrt(power)


def check_names(setting: str, names: Sequence[str], choices: dict[str, Any]) -> None:
    """Raise :class:`ConfigError` if one of ``names`` is not a key of ``choices``."""
    for name in names:
        if name not in choices:
            raise ConfigError(f"`{setting}` has {name}; expected names of {', '.join(sorted(choices))}")
