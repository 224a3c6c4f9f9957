"""Measure the iterative engines in one process: error against time, from given starts, over several seeds.

::

    python benchmarks/engines.py --twin Run1084_twin_legacy.npz --star star.npz --model model --repeats 5

Prints one Markdown table. Seconds are of the engine alone, set-up included, without imports and file reading; an error
is NRMSE over the box of scan positions after one complex factor, or R over all patterns. Nothing else should run
meanwhile.
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
from ptycho_torch.engines.initialization import make_gaussian_probe
from ptycho_torch.engines.pipeline import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.alignment import fit_complex_scale
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.io.npz import load_scan, save_scan
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.simulation.probes import make_incoherent_modes
from ptycho_torch.simulation.scan import simulate_measurement


@dataclass
class Outcome:
    """What one run came to."""

    chain: PipelineRun
    seconds: float
    """In all, without the scoring."""

    trace: list[tuple[float, float]]
    """(seconds, error) at the end of each epoch."""

    def time_to(self, error: float) -> float:
        """Seconds at which the error was first as low; infinite if never."""
        return next((seconds for seconds, found in self.trace if found <= error), float("inf"))


class Scorer(SilentObserver):
    """Notes the error after each epoch, and stops the clock for it."""

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
    """Run ``stages`` from ones with the scan's probe (or ``probe``, of any power)."""
    scale = photon_scale(scan).photons_per_unit
    lit = scale_probe_to_photons(scan if probe is None else replace(scan, probe=probe.astype(np.complex64)), scale)
    started = time.perf_counter()
    estimate = make_vacuum_state(torch.from_numpy(scan.positions.copy()), lit, margin)
    chain = PipelineRun(scan, scale, list(stages), estimate, seed)
    scorer = Scorer(lambda: error(chain) if error else float("nan"))
    scorer.started = started
    while chain.num_finished_stages < len(stages):
        chain.run_stage(scorer)
    return Outcome(chain, time.perf_counter() - started - scorer.spent, scorer.trace)


def nrmse(chain: PipelineRun, positions: np.ndarray | None = None) -> float:
    """Over the box of scan positions, after one complex factor."""
    positions = chain.scan.positions if positions is None else positions
    low, high = np.ceil(positions.min(0)).astype(int), np.floor(positions.max(0)).astype(int) + 1
    top, left = chain.state.canvas.origin
    rec = chain.state.object.numpy()[low[0] - top : high[0] - top, low[1] - left : high[1] - left]
    true = chain.scan.truth[low[0] : high[0], low[1] : high[1]]
    rec, true = rec.astype(complex), true.astype(complex)
    factor = fit_complex_scale(rec, true, np.ones(true.shape, bool))
    return float(np.linalg.norm(factor * rec - true) / np.linalg.norm(true))


def r_of(outcome: Outcome) -> tuple[float, float]:
    """R over all patterns at the positions found, and its floor."""
    chain = outcome.chain
    result = chain.make_reconstruction()
    found = compute_fourier_error(
        result, replace(chain.scan, positions=result.positions), photons_per_unit=chain.photons_per_unit
    )
    return found.r, found.r_floor


def row(name: str, *cells: str) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def spread(values: list[float], digits: int) -> str:
    """Median with range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def of_twin(twin: Scan, engines: list[str], repeats: int) -> None:
    """Probe known, from ones, each engine's defaults."""
    for engine in engines:
        runs = [run(twin, ENGINES[engine](), seed=seed, error=nrmse) for seed in range(repeats)]
        row(
            f"twin, probe known: {engine}",
            f"{spread([r.time_to(0.15) for r in runs], 2)} s to NRMSE 0.15",
            f"{spread([r.seconds for r in runs], 2)} s in all",
            f"NRMSE {spread([nrmse(r.chain) for r in runs], 4)}",
        )


def of_star(star: Scan, engines: list[str], repeats: int) -> None:
    """Probe learned, one mode; then modes and positions."""
    for engine in engines:
        stage = ENGINES[engine](update_probe=True)
        runs = [run(star, stage, seed=seed, error=lambda chain: chain.run.history.r[-1]) for seed in range(repeats)]
        row(
            f"star, probe learned: {engine}",
            f"{spread([r.time_to(0.0135) for r in runs], 2)} s to R 0.0135",
            f"{spread([r.seconds for r in runs], 2)} s in all",
            f"R {spread([r_of(r)[0] for r in runs], 5)}, floor {r_of(runs[0])[1]:.4f}",
        )


def of_star_at_its_best(star: Scan) -> None:
    """As low as it goes: long, with modes and positions."""
    all_of_them = {"update_positions": True, "update_background": True, "update_intensity": True}
    for told, settings in (
        ("one mode, 40 epochs", {"epochs": 40}),
        ("one mode, positions, background, intensities, 16 epochs", {"epochs": 16} | all_of_them),
        ("three modes and positions, 8 epochs", {"epochs": 8, "probe_modes": 3, "update_positions": True}),
        ("three modes, positions, background, intensities, 20 epochs", {"epochs": 20, "probe_modes": 3} | all_of_them),
    ):
        found = run(star, PIE(update_probe=True, **settings), margin=7)
        r, floor = r_of(found)
        row(f"star: pie, {told}", "", f"{found.seconds:.1f} s in all", f"R {r:.5f}, floor {floor:.4f}")


def of_positions(twin: Scan, repeats: int) -> None:
    """1.5 pixels rms of jitter, refined from a flat object."""
    left, seconds, errors = [], [], []
    for seed in range(repeats):
        jitter = np.random.default_rng(seed).normal(0, 1.5, twin.positions.shape)
        moved = replace(twin, positions=twin.positions + jitter)
        found = run(moved, PIE(epochs=40, update_positions=True), seed=seed, margin=7)
        off = found.chain.make_reconstruction().positions - twin.positions
        off -= off.mean(0)
        left.append(float(np.sqrt(np.square(off).sum(1).mean())))
        seconds.append(found.seconds)
        comparison = compare_with_truth(found.chain.make_reconstruction(), twin.truth, remove_shift=True).to_metrics()
        errors.append(comparison["nrmse_scanned_box"])
    row(
        "twin, positions off by 1.5 px rms on each axis: pie",
        f"left: {spread(left, 3)} px rms (2-D)",
        f"{spread(seconds, 1)} s in all",
        f"NRMSE {spread(errors, 4)} (shift removed)",
    )


def of_modes(twin: Scan, repeats: int) -> None:
    """Two modes 80/20, 1 % background, 5 % of the pixels masked, on the twin's object and positions."""
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
        found = run(scan, stage, seed=seed, probe=modes[:1])
        result = found.chain.make_reconstruction()
        comparison = compare_with_truth(result, twin.truth, remove_shift=True, remove_ramp=True).to_metrics()
        errors.append(comparison["nrmse_scanned_box"])
        overlaps.append(min(_overlap(a, b) for a, b in zip(result.probe, modes, strict=True)))
        seconds.append(found.seconds)
    row(
        "two modes 80/20, 1 % background, 5 % masked: pie",
        f"modes overlap {spread(overlaps, 3)}",
        f"{spread(seconds, 1)} s in all",
        f"NRMSE {spread(errors, 4)}",
    )


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """|<a, b>| / |a| |b| at the best whole-pixel shift."""
    product = np.fft.ifft2(np.fft.fft2(a) * np.fft.fft2(b).conj())
    return float(np.abs(product).max() / (np.linalg.norm(a) * np.linalg.norm(b)))


def of_chain(twin: Scan, model: Path, repeats: int) -> None:
    """What 0.15 s of an engine make of the network's object, and of ones."""
    network = NetworkEngine(model_path=model)
    brief = PIE(time_limit=0.15)
    row("twin: network alone", "", "", f"NRMSE {nrmse(run(twin, network).chain):.4f}")
    for told, stages in (("network, then pie for 0.15 s", (network, brief)), ("ones, then pie for 0.15 s", (brief,))):
        errors = [nrmse(run(twin, *stages, seed=seed).chain) for seed in range(repeats)]
        row(f"twin: {told}", "", "", f"NRMSE {spread(errors, 4)}")


def of_blind(twin: Scan, star: Scan | None, engines: list[str], repeats: int) -> None:
    """Probe unknown: a Gaussian, curved as the patterns tell, of a given width and of the one they tell too."""
    for engine in engines:
        stage = ENGINES[engine](update_probe=True)
        for told, sigma in (("a Gaussian of sigma 15.3", 15.3), ("the patterns alone", None)):
            errors, seconds, times = [], [], []
            for seed in range(repeats):
                started = time.perf_counter()
                probe = make_gaussian_probe(twin, sigma, np.random.default_rng(seed))
                searched = time.perf_counter() - started
                found = run(twin, stage, seed=seed, probe=probe, error=nrmse_moved)
                errors.append(nrmse_moved(found.chain))
                times.append(searched + found.time_to(0.08))
                seconds.append(searched + found.seconds)
            row(
                f"twin, probe from {told}: {engine}",
                f"{spread(times, 2)} s to NRMSE 0.08",
                f"{spread(seconds, 2)} s in all",
                f"NRMSE {spread(errors, 4)} (shift and ramp removed)",
            )
        if star is not None:
            started = time.perf_counter()
            found = run(star, stage, probe=make_gaussian_probe(star, None, np.random.default_rng(0)))
            told = f"{time.perf_counter() - started:.1f} s in all"
            row(
                f"star, probe from the patterns alone: {engine}",
                "",
                told,
                "R {:.5f}, floor {:.4f}".format(*r_of(found)),
            )


def nrmse_moved(chain: PipelineRun) -> float:
    """Over the box of scan positions, after what an unknown probe leaves free: a shift, a ramp and a complex factor."""
    found = compare_with_truth(chain.make_reconstruction(), chain.scan.truth, remove_shift=True, remove_ramp=True)
    return float(found.to_metrics()["nrmse_scanned_box"])


def of_dose(twin: Scan, engines: list[str]) -> None:
    """Low doses: engines by noise model, a network trained on the scan alone, and the network followed by an engine."""
    for photons in (1e4, 1e3):
        scan = simulate_measurement(
            twin.truth.astype(complex), twin.probe.astype(complex), twin.positions, photons, np.random.default_rng(0)
        )

        def tell(told: str, scan: Scan, *stages: EngineOptions, photons: float = photons) -> None:
            found = run(scan, *stages)
            row(
                f"twin at {photons:.0e} photons a pattern: {told}",
                "",
                f"{found.seconds:.1f} s in all",
                f"NRMSE {nrmse(found.chain):.4f}",
            )

        for engine in engines:
            for loss in ("amplitude", "poisson"):
                tell(f"{engine}, {loss}", scan, ENGINES[engine](loss=loss))
        for told, words in (("network", ()), ("network taught by pie", ("--teacher", "pie"))):
            with tempfile.TemporaryDirectory() as folder:
                save_scan(f"{folder}/scan.npz", scan)
                command = [sys.executable, "-m", "ptycho_torch.train", "--train_data_file", f"{folder}/scan.npz"]
                command += ["--output_dir", f"{folder}/model", "--quiet", "--logger", "none", *words]
                subprocess.run(command, check=True)
                network = NetworkEngine(model_path=Path(folder) / "model")
                tell(told, scan, network)
                for loss in ("amplitude", "poisson"):
                    tell(f"{told}, then pie, {loss}", scan, network, PIE(loss=loss))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, required=True, help="Run1084_twin_legacy.npz")
    parser.add_argument("--star", type=Path, help="the measured star as a canonical scan file")
    parser.add_argument("--model", type=Path, help="a bundle trained on the twin")
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
    parts: dict[str, Callable[[], None]] = {"twin": lambda: of_twin(twin, engines, repeats)}
    if star is not None:
        parts["star"] = lambda: of_star(star, engines, repeats)
        parts["best"] = lambda: of_star_at_its_best(star)
    parts["positions"] = lambda: of_positions(twin, min(3, repeats))
    parts["modes"] = lambda: of_modes(twin, min(3, repeats))
    if arguments.model:
        parts["chain"] = lambda: of_chain(twin, arguments.model, repeats)
    parts["blind"] = lambda: of_blind(twin, star, engines, min(3, repeats))
    parts["dose"] = lambda: of_dose(twin, engines)
    run(twin, PIE(epochs=1))  # the first use of anything is slower
    print("| what | | seconds | result |\n|---|---|---|---|")
    for name in arguments.only.split(",") if arguments.only else parts:
        parts[name]()


if __name__ == "__main__":
    main()
