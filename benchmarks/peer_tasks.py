"""Tasks of ``peers.py``: their data and scores, and the methods of every program with their settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ptycho_torch.config.engines import LSQML, PIE, EngineOptions
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import set_num_modes
from ptycho_torch.engines.state import ReconstructionState, make_vacuum_state
from ptycho_torch.evaluation.alignment import align, crop_to_overlap, fit_complex_scale
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.evaluation.metrics import compute_nrmse, make_scanned_box_mask
from ptycho_torch.models.probe_estimation import make_gaussian_probe
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.simulation.probes import make_incoherent_modes
from ptycho_torch.simulation.scan import simulate_measurement


@dataclass(frozen=True)
class Peer:
    """One method of another program."""

    package: str
    engine: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A scan to reconstruct, with its scores."""

    title: str
    scan: Scan
    figures: Callable[[Reconstruction], dict[str, float]]
    """Scores of a reconstruction; the goal applies to the first."""

    goal: float
    stages: dict[str, EngineOptions]
    peers: dict[str, Peer]
    probe: np.ndarray | None = None
    modes: int = 1
    margin: int = 2
    seconds: float = 10.0
    """Time limit of other programs."""

    def start(self) -> tuple[float, ReconstructionState]:
        """Return the photon scale and the initial estimate: an object of 1, the probe with the power of the counts."""
        scale = photon_scale(self.scan).photons_per_unit
        scan = self.scan if self.probe is None else replace(self.scan, probe=self.probe.astype(np.complex64))
        probe = set_num_modes(scale_probe_to_photons(scan, scale), self.modes)
        return scale, make_vacuum_state(torch.from_numpy(self.scan.positions.copy()), probe, self.margin)


def score_nrmse(scan: Scan, ramp: bool = False) -> Callable[[Reconstruction], dict[str, float]]:
    """Return a score: NRMSE over the scanned box after one complex factor, a shift and optionally a ramp."""

    def figures(result: Reconstruction) -> dict[str, float]:
        if not np.isfinite(result.object).all():
            return {"NRMSE": float("inf")}
        assert scan.truth is not None
        pair = crop_to_overlap(result, scan.truth)
        box, found = (
            make_scanned_box_mask(scan.positions, pair),
            align(pair, remove_shift=True, remove_ramp=ramp).object,
        )
        return {"NRMSE": compute_nrmse(found * fit_complex_scale(found, pair.truth, box), pair.truth, box)}

    return figures


def score_r(scan: Scan) -> Callable[[Reconstruction], dict[str, float]]:
    """Return a score: R over all patterns with the reconstructed object, probe and positions."""

    def figures(result: Reconstruction) -> dict[str, float]:
        if not np.isfinite(result.object).all():
            return {"R": float("inf")}
        moved = replace(scan, positions=result.positions)
        return {"R": compute_fourier_error(result, moved, photons_per_unit=result.photons_per_unit).r}

    return figures


def score_positions(twin: Scan) -> Callable[[Reconstruction], dict[str, float]]:
    """Return scores: rms position error per axis in pixels after its mean is removed, and NRMSE."""
    error = score_nrmse(twin)

    def figures(result: Reconstruction) -> dict[str, float]:
        off = result.positions - twin.positions
        return {"position error": float(np.sqrt(np.square(off - off.mean(0)).mean()))} | error(result)

    return figures


def score_modes(twin: Scan, modes: np.ndarray) -> Callable[[Reconstruction], dict[str, float]]:
    """Return scores: NRMSE, and the smaller overlap of the two modes with the true ones at the best integer shift."""
    error = score_nrmse(twin, ramp=True)

    def compute_overlap(a: np.ndarray, b: np.ndarray) -> float:
        product = np.fft.ifft2(np.fft.fft2(a) * np.fft.fft2(b).conj())
        return float(np.abs(product).max() / (np.linalg.norm(a) * np.linalg.norm(b)))

    def figures(result: Reconstruction) -> dict[str, float]:
        return error(result) | {
            "overlap": min(compute_overlap(*pair) for pair in zip(result.probe, modes, strict=True))
        }

    return figures


def pty_chi(engine: str, batch: int, *more: dict[str, Any], batches: str = "random") -> Peer:
    """Return a method of pty-chi; ``more`` holds options by dotted names, later ones override earlier ones."""
    options = {
        "probe_options.optimizable": False,
        "reconstructor_options.batch_size": batch,
        "reconstructor_options.batching_mode": batches,
    }
    if engine == "LSQML":
        # The initial probe has the right power; an epoch that only rescales it would be lost.
        options["reconstructor_options.rescale_probe_intensity_in_first_epoch"] = False
    for further in more:
        options |= further
    return Peer("ptychi", engine, options)


def cd_tools(lr: float, batch: int, *learn: str) -> Peer:
    """Return a method of cdtools: Adam."""
    adam = {"lr": lr, "batch_size": batch, "calculation_width": batch}
    return Peer("cdtools", "adam", {"learn": ["obj", *learn], "adam": adam})


LEARNS = {"probe_options.optimizable": True}
MOVES = {"probe_position_options.optimizable": True}
STRIDES = {
    "probe_position_options.step_size": 1.0,
    "probe_position_options.correction_options.update_magnitude_limit": 1.0,
}
COMPACT = {"reconstructor_options.momentum_acceleration_gain": 0.5}
ADAM = {"object_options.optimizer": "adam", "object_options.step_size": 0.05}
NESTEROV = {"object_options.optimizer_params": {"momentum": 0.9, "nesterov": True}}
"""Parameters that pty-chi passes to the SGD of torch."""
WIDE = {"object_options.alpha": 1.0}
HALF = {"object_options.step_size": 0.5}
SPARSE = {"object_options.alpha": 0.3, "probe_options.alpha": 1.0}


def twin_task(twin: Scan) -> Task:
    """Return the task with known probe and an initial object of 1."""
    return Task(
        "simulated scan, probe known",
        twin,
        score_nrmse(twin),
        0.15,
        {"pie": PIE(), "lsqml": LSQML()},
        {
            "pty-chi LSQ-ML, compact 48, momentum 0.5": pty_chi("LSQML", 48, COMPACT, batches="compact"),
            "pty-chi LSQ-ML, random 96": pty_chi("LSQML", 96),
            "pty-chi rPIE, random 32, alpha 1": pty_chi("RPIE", 32, WIDE),
            "pty-chi autodiff Adam, random 32, step 0.05": pty_chi("AutodiffPtychography", 32, ADAM),
            "pty-chi LSQ-ML, random 48, SGD momentum 0.9": pty_chi("LSQML", 48, NESTEROV),
            "pty-chi rPIE, random 32, alpha 1, SGD momentum 0.9": pty_chi("RPIE", 32, WIDE, HALF, NESTEROV),
            "cdtools Adam, batch 15, lr 0.02": cd_tools(0.02, 15),
        },
    )


def gaussian_task(twin: Scan, *, curved: bool = False) -> Task:
    """Return the task with unknown probe: a Gaussian of its width, without phase or with the estimated curvature."""
    size = twin.size
    y, x = np.mgrid[:size, :size] - size // 2
    power = np.square(np.abs(twin.probe)).sum(0)
    center = [(power * axis).sum() / power.sum() for axis in (y, x)]
    # The intensity of exp(−r² / 2σ²) has mean r² = σ².
    spread = (power * ((y - center[0]) ** 2 + (x - center[1]) ** 2)).sum() / power.sum()
    start = np.exp(-(y**2 + x**2) / (2 * spread))[None]
    if curved:
        start = make_gaussian_probe(twin, float(np.sqrt(spread)), np.random.default_rng(0))
    return Task(
        "simulated scan, probe unknown, initial curvature from the patterns"
        if curved
        else "simulated scan, probe unknown, initial probe without phase",
        twin,
        score_nrmse(twin, ramp=True),
        0.08,
        {
            "pie": PIE(update_probe=True),
            "lsqml": LSQML(update_probe=True),
        },
        {
            "pty-chi LSQ-ML, random 32": pty_chi("LSQML", 32, LEARNS),
            "pty-chi LSQ-ML, random 32, SGD momentum 0.9": pty_chi("LSQML", 32, LEARNS, NESTEROV),
            "pty-chi rPIE, random 8, alpha 0.3": pty_chi("RPIE", 8, LEARNS, SPARSE),
        },
        probe=start,
        seconds=20,
    )


def positions_task(twin: Scan) -> Task:
    """Return the task with position errors of 1.5 pixels rms per axis."""
    jitter = np.random.default_rng(0).normal(0, 1.5, twin.positions.shape)
    return Task(
        "simulated scan, position errors of 1.5 pixels rms per axis",
        replace(twin, positions=twin.positions + jitter),
        score_positions(twin),
        0.15,
        {"pie": PIE(epochs=40, update_positions=True)},
        {
            "pty-chi LSQ-ML, random 32": pty_chi("LSQML", 32, MOVES),
            "pty-chi LSQ-ML, random 48, SGD momentum 0.9": pty_chi("LSQML", 48, NESTEROV, MOVES),
            "pty-chi LSQ-ML, random 48, SGD momentum 0.9, long position steps": pty_chi(
                "LSQML", 48, NESTEROV, MOVES, STRIDES
            ),
            "pty-chi rPIE, random 32, alpha 1, SGD momentum 0.9, long position steps": pty_chi(
                "RPIE", 32, WIDE, HALF, NESTEROV, MOVES, STRIDES
            ),
        },
        margin=7,
        seconds=20,
    )


def modes_task(twin: Scan) -> Task:
    """Return the task with modes 80/20, 1 % background and 5 % masked pixels; the initial probe is the first mode."""
    rng = np.random.default_rng(0)
    modes = make_incoherent_modes(twin.probe[0].astype(complex), 2)
    modes *= np.sqrt(np.array([0.8, 0.2]) / np.square(np.abs(modes)).sum((1, 2)))[:, None, None]
    assert twin.truth is not None
    clean = simulate_measurement(twin.truth.astype(complex), modes, twin.positions, 1e6, rng)
    counts = np.square(clean.amplitudes, dtype=np.float64)
    counts = counts + rng.poisson(0.01 * counts.sum((1, 2)).mean() / counts[0].size, counts.shape)
    mask = rng.uniform(size=counts.shape[1:]) > 0.05
    return Task(
        "two modes 80/20, 1 % background, 5 % masked",
        replace(clean, amplitudes=np.sqrt(counts).astype(np.float32), mask=mask),
        score_modes(twin, modes),
        0.05,
        {"pie": PIE(epochs=60, update_probe=True, update_background=True)},
        {
            "pty-chi LSQ-ML, random 32": pty_chi("LSQML", 32, LEARNS),
            "pty-chi rPIE, random 8, alpha 0.3": pty_chi("RPIE", 8, LEARNS, SPARSE),
        },
        probe=modes[:1],
        modes=2,
        seconds=20,
    )


def star_task(star: Scan) -> Task:
    """Return the task on the Siemens star with one mode and the probe of the file, optimized."""
    return Task(
        "Siemens star, one mode",
        star,
        score_r(star),
        0.0135,
        {"pie": PIE(update_probe=True), "lsqml": LSQML(update_probe=True)},
        {
            "pty-chi LSQ-ML, random 64": pty_chi("LSQML", 64, LEARNS),
            "pty-chi rPIE, random 8, alpha 0.3": pty_chi("RPIE", 8, LEARNS, SPARSE),
        },
        seconds=40,
    )


def star_modes_task(star: Scan) -> Task:
    """Return the task on the Siemens star with three modes and position refinement."""
    return Task(
        "Siemens star, three modes and positions",
        star,
        score_r(star),
        0.0100,
        {"pie": PIE(epochs=60, update_probe=True, update_positions=True)},
        {
            "pty-chi LSQ-ML, random 64": pty_chi("LSQML", 64, LEARNS, MOVES),
            "pty-chi rPIE, random 8, alpha 0.3": pty_chi("RPIE", 8, LEARNS, MOVES, SPARSE),
        },
        modes=3,
        margin=7,
        seconds=60,
    )
