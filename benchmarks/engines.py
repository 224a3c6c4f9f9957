"""Measure the iterative engines in one process: error against time, from given initial estimates, over seeds.

::

    python benchmarks/engines.py --twin Run1084_twin_legacy.npz --star star.npz --model model --repeats 5

Prints one Markdown table. Seconds are those of the engine with its setup, without imports and file reading. An error is
NRMSE over the scanned box after one complex factor, or R over all patterns. No other process should run at the same
time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ptycho_torch.config.engines import ENGINES, PIE, EngineOptions, NetworkEngine
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.alignment import fit_complex_scale
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.models.probe_estimation import make_gaussian_probe
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.simulation.probes import make_incoherent_modes
from ptycho_torch.simulation.scan import simulate_measurement


@dataclass
class Outcome:
    """Result of one run."""

    pipeline: PipelineRun
    seconds: float
    """Total seconds without scoring."""

    trace: list[tuple[float, float]]
    """(seconds, error) at the end of each epoch."""

    def time_to(self, error: float) -> float:
        """Return the first time in seconds at which the error was at most ``error``, or infinity."""
        return next((seconds for seconds, value in self.trace if value <= error), float("inf"))


class Scorer(SilentObserver):
    """Observer that scores each epoch while its clock is stopped."""

    def __init__(self, score: Callable[[], float]) -> None:
        self.score, self.trace, self.spent = score, [], 0.0
        self.started = time.perf_counter()

    def advance(self, steps: int = 1, **figures: float) -> None:
        now = time.perf_counter()
        self.trace.append((now - self.started - self.spent, self.score()))
        self.spent += time.perf_counter() - now


def run(
    scan: Scan,
    *stages: EngineOptions,
    seed: int = 0,
    error: Callable[[PipelineRun], float] | None = None,
    margin: int = 2,
    probe: np.ndarray | None = None,
) -> Outcome:
    """Run ``stages`` from an object of 1 with the scan's probe (or ``probe``, of any power)."""
    scale = photon_scale(scan).photons_per_unit
    initial_probe = scale_probe_to_photons(
        scan if probe is None else replace(scan, probe=probe.astype(np.complex64)), scale
    )
    started = time.perf_counter()
    estimate = make_vacuum_state(torch.from_numpy(scan.positions.copy()), initial_probe, margin)
    pipeline = PipelineRun(scan, scale, list(stages), estimate, seed)
    scorer = Scorer(lambda: error(pipeline) if error else float("nan"))
    scorer.started = started
    pipeline.run(scorer)
    return Outcome(pipeline, time.perf_counter() - started - scorer.spent, scorer.trace)


def compute_nrmse(pipeline: PipelineRun, positions: np.ndarray | None = None) -> float:
    """Return NRMSE over the scanned box after one complex factor."""
    positions = pipeline.scan.positions if positions is None else positions
    low, high = np.ceil(positions.min(0)).astype(int), np.floor(positions.max(0)).astype(int) + 1
    top, left = pipeline.state.canvas.origin
    rec = pipeline.state.object.numpy()[low[0] - top : high[0] - top, low[1] - left : high[1] - left]
    true = pipeline.scan.truth[low[0] : high[0], low[1] : high[1]]
    rec, true = rec.astype(complex), true.astype(complex)
    factor = fit_complex_scale(rec, true, np.ones(true.shape, bool))
    return float(np.linalg.norm(factor * rec - true) / np.linalg.norm(true))


def compute_r(outcome: Outcome) -> tuple[float, float]:
    """Return R over all patterns at the final positions, and its noise floor."""
    pipeline = outcome.pipeline
    result = pipeline.make_reconstruction()
    outcome = compute_fourier_error(
        result, replace(pipeline.scan, positions=result.positions), photons_per_unit=pipeline.photons_per_unit
    )
    return outcome.r, outcome.r_floor


def row(name: str, *cells: str) -> None:
    """Print one row of the table."""
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def spread(values: list[float], digits: int) -> str:
    """Return median and range as text."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def print_simulated_scan(twin: Scan, engines: list[str], repeats: int) -> None:
    """Print the rows with known probe and default settings."""
    for engine in engines:
        runs = [run(twin, ENGINES[engine](), seed=seed, error=compute_nrmse) for seed in range(repeats)]
        row(
            f"simulated scan, probe known: {engine}",
            f"{spread([r.time_to(0.15) for r in runs], 2)} s to NRMSE 0.15",
            f"{spread([r.seconds for r in runs], 2)} s in total",
            f"NRMSE {spread([compute_nrmse(r.pipeline) for r in runs], 4)}",
        )


def print_siemens_star(star: Scan, engines: list[str], repeats: int) -> None:
    """Print the rows on the Siemens star with an optimized probe of one mode."""
    for engine in engines:
        stage = ENGINES[engine](update_probe=True)
        runs = [
            run(star, stage, seed=seed, error=lambda pipeline: pipeline.run.history.r[-1]) for seed in range(repeats)
        ]
        row(
            f"Siemens star, probe updated: {engine}",
            f"{spread([r.time_to(0.0135) for r in runs], 2)} s to R 0.0135",
            f"{spread([r.seconds for r in runs], 2)} s in total",
            f"R {spread([compute_r(r)[0] for r in runs], 5)}, floor {compute_r(runs[0])[1]:.4f}",
        )


def print_siemens_star_best(star: Scan) -> None:
    """Print the rows with the lowest R: more epochs, modes, positions and nuisance parameters."""
    nuisance_settings = {"update_positions": True, "update_background": True, "update_intensity": True}
    for title, settings in (
        ("one mode, 40 epochs", {"epochs": 40}),
        ("one mode, positions, background, pattern scale, 16 epochs", {"epochs": 16} | nuisance_settings),
        ("three modes and positions, 8 epochs", {"epochs": 8, "probe_modes": 3, "update_positions": True}),
        (
            "three modes, positions, background, pattern scale, 20 epochs",
            {"epochs": 20, "probe_modes": 3} | nuisance_settings,
        ),
    ):
        outcome = run(star, PIE(update_probe=True, **settings), margin=7)
        r, floor = compute_r(outcome)
        row(f"Siemens star: pie, {title}", "", f"{outcome.seconds:.1f} s in total", f"R {r:.5f}, floor {floor:.4f}")


def print_positions(twin: Scan, repeats: int) -> None:
    """Print the row with position errors of 1.5 pixels rms, refined from a flat object."""
    remaining, seconds, errors = [], [], []
    for seed in range(repeats):
        jitter = np.random.default_rng(seed).normal(0, 1.5, twin.positions.shape)
        displaced = replace(twin, positions=twin.positions + jitter)
        outcome = run(displaced, PIE(epochs=40, update_positions=True), seed=seed, margin=7)
        position_errors = outcome.pipeline.make_reconstruction().positions - twin.positions
        position_errors -= position_errors.mean(0)
        remaining.append(float(np.sqrt(np.square(position_errors).sum(1).mean())))
        seconds.append(outcome.seconds)
        comparison = compare_with_truth(
            outcome.pipeline.make_reconstruction(), twin.truth, remove_shift=True
        ).to_metrics()
        errors.append(comparison["nrmse_scanned_box"])
    row(
        "simulated scan, position errors of 1.5 px rms per axis: pie",
        f"left: {spread(remaining, 3)} px rms (2-D)",
        f"{spread(seconds, 1)} s in total",
        f"NRMSE {spread(errors, 4)} (shift removed)",
    )


def print_modes(twin: Scan, repeats: int) -> None:
    """Print the row with two modes 80/20, 1 % background and 5 % masked pixels."""
    errors, overlaps, seconds = [], [], []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        modes = make_incoherent_modes(twin.probe[0].astype(complex), 2)
        modes *= np.sqrt(np.array([0.8, 0.2]) / np.square(np.abs(modes)).sum((1, 2)))[:, None, None]
        clean = simulate_measurement(twin.truth.astype(complex), modes, twin.positions, 1e6, rng)
        counts = np.square(clean.amplitudes, dtype=np.float64)
        counts = counts + rng.poisson(0.01 * counts.sum((1, 2)).mean() / counts[0].size, counts.shape)
        mask = rng.uniform(size=counts.shape[1:]) > 0.05
        scan = replace(clean, amplitudes=np.sqrt(counts).astype(np.float32), mask=mask)
        stage = PIE(epochs=60, update_probe=True, probe_modes=2, update_background=True)
        outcome = run(scan, stage, seed=seed, probe=modes[:1])
        result = outcome.pipeline.make_reconstruction()
        comparison = compare_with_truth(result, twin.truth, remove_shift=True, remove_ramp=True).to_metrics()
        errors.append(comparison["nrmse_scanned_box"])
        overlaps.append(min(_overlap(a, b) for a, b in zip(result.probe, modes, strict=True)))
        seconds.append(outcome.seconds)
    row(
        "two modes 80/20, 1 % background, 5 % masked: pie",
        f"modes overlap {spread(overlaps, 3)}",
        f"{spread(seconds, 1)} s in total",
        f"NRMSE {spread(errors, 4)}",
    )


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return |<a, b>| / |a| |b| at the best integer shift."""
    product = np.fft.ifft2(np.fft.fft2(a) * np.fft.fft2(b).conj())
    return float(np.abs(product).max() / (np.linalg.norm(a) * np.linalg.norm(b)))


def print_pipelines(twin: Scan, model: Path, repeats: int) -> None:
    """Print the rows of pipelines: 0.15 s of an engine from the network's object and from an object of 1."""
    network = NetworkEngine(model_path=model)
    short_stage = PIE(time_limit=0.15)
    row("simulated scan: network alone", "", "", f"NRMSE {compute_nrmse(run(twin, network).pipeline):.4f}")
    for title, stages in (
        ("network, then pie for 0.15 s", (network, short_stage)),
        ("object of 1, then pie for 0.15 s", (short_stage,)),
    ):
        errors = [compute_nrmse(run(twin, *stages, seed=seed).pipeline) for seed in range(repeats)]
        row(f"simulated scan: {title}", "", "", f"NRMSE {spread(errors, 4)}")


def print_unknown_probe(twin: Scan, star: Scan | None, engines: list[str], repeats: int) -> None:
    """Print the rows with unknown probe: a Gaussian with estimated curvature, of given and of estimated width."""
    for engine in engines:
        stage = ENGINES[engine](update_probe=True)
        for title, sigma in (("a Gaussian of sigma 15.3", 15.3), ("the patterns alone", None)):
            errors, seconds, times = [], [], []
            for seed in range(repeats):
                started = time.perf_counter()
                probe = make_gaussian_probe(twin, sigma, np.random.default_rng(seed))
                estimation = time.perf_counter() - started
                outcome = run(twin, stage, seed=seed, probe=probe, error=compute_aligned_nrmse)
                errors.append(compute_aligned_nrmse(outcome.pipeline))
                times.append(estimation + outcome.time_to(0.08))
                seconds.append(estimation + outcome.seconds)
            row(
                f"simulated scan, probe from {title}: {engine}",
                f"{spread(times, 2)} s to NRMSE 0.08",
                f"{spread(seconds, 2)} s in total",
                f"NRMSE {spread(errors, 4)} (shift and ramp removed)",
            )
        if star is not None:
            started = time.perf_counter()
            outcome = run(star, stage, probe=make_gaussian_probe(star, None, np.random.default_rng(0)))
            title = f"{time.perf_counter() - started:.1f} s in total"
            row(
                f"Siemens star, probe from the patterns alone: {engine}",
                "",
                title,
                "R {:.5f}, floor {:.4f}".format(*compute_r(outcome)),
            )


def compute_aligned_nrmse(pipeline: PipelineRun) -> float:
    """Return NRMSE over the scanned box after the ambiguities of an unknown probe: shift, ramp and complex factor."""
    outcome = compare_with_truth(
        pipeline.make_reconstruction(), pipeline.scan.truth, remove_shift=True, remove_ramp=True
    )
    return float(outcome.to_metrics()["nrmse_scanned_box"])


def print_dose(twin: Scan, engines: list[str]) -> None:
    """Print the rows at low dose: engines by noise model, a network trained on the scan, and pipelines of both."""
    for photons in (1e4, 1e3):
        scan = simulate_measurement(
            twin.truth.astype(complex), twin.probe.astype(complex), twin.positions, photons, np.random.default_rng(0)
        )

        def print_row(title: str, scan: Scan, *stages: EngineOptions, photons: float = photons) -> None:
            outcome = run(scan, *stages)
            row(
                f"simulated scan at {photons:.0e} photons per pattern: {title}",
                "",
                f"{outcome.seconds:.1f} s in total",
                f"NRMSE {compute_nrmse(outcome.pipeline):.4f}",
            )

        for engine in engines:
            for loss in ("amplitude", "poisson"):
                print_row(f"{engine}, {loss}", scan, ENGINES[engine](loss=loss))
        for title, words in (("network", ()), ("network with targets of pie", ("--teacher", "pie"))):
            with tempfile.TemporaryDirectory() as folder:
                save_scan(f"{folder}/scan.npz", scan)
                command = [sys.executable, "-m", "ptycho_torch.train", "--train_data_file", f"{folder}/scan.npz"]
                command += ["--output_dir", f"{folder}/model", "--quiet", "--logger", "none", *words]
                subprocess.run(command, check=True)
                network = NetworkEngine(model_path=Path(folder) / "model")
                print_row(title, scan, network)
                for loss in ("amplitude", "poisson"):
                    print_row(f"{title}, then pie, {loss}", scan, network, PIE(loss=loss))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, required=True, help="Run1084_twin_legacy.npz")
    parser.add_argument("--star", type=Path, help="the Siemens-star scan as a canonical scan file")
    parser.add_argument("--model", type=Path, help="model trained on the simulated scan")
    parser.add_argument("--engines", default="pie", help="names, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--only",
        default="",
        help="parts, separated by commas: twin, star, best, positions, modes, chain, blind, dose",
    )
    arguments = parser.parse_args()
    twin, engines, repeats = load_scan(arguments.twin), arguments.engines.split(","), arguments.repeats
    star = load_scan(arguments.star) if arguments.star else None
    parts: dict[str, Callable[[], None]] = {"twin": lambda: print_simulated_scan(twin, engines, repeats)}
    if star is not None:
        parts["star"] = lambda: print_siemens_star(star, engines, repeats)
        parts["best"] = lambda: print_siemens_star_best(star)
    parts["positions"] = lambda: print_positions(twin, min(3, repeats))
    parts["modes"] = lambda: print_modes(twin, min(3, repeats))
    if arguments.model:
        parts["chain"] = lambda: print_pipelines(twin, arguments.model, repeats)
    parts["blind"] = lambda: print_unknown_probe(twin, star, engines, min(3, repeats))
    parts["dose"] = lambda: print_dose(twin, engines)
    run(twin, PIE(epochs=1))  # the first run is slower: warm up
    print("| task | | seconds | result |\n|---|---|---|---|")
    for name in arguments.only.split(",") if arguments.only else parts:
        parts[name]()


if __name__ == "__main__":
    main()
