"""Pretrain networks on simulation alone, and score one pass over scans outside the training.

::

    python benchmarks/pretrained.py --twin Run1084_twin_legacy.npz --star star.npz --folder pretrained --seconds 600

Runs the command ``pretrain`` in ``--folder`` (existing models are reused) and prints one Markdown table per part. All
objects are outside the training. R is printed with its noise floor and compared with R of a flat object.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ptycho_torch.config.engines import LSQML, PIE, EngineOptions
from ptycho_torch.data.extent import compute_probe_diameter
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.evaluation.alignment import fit_complex_scale
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.evaluation.half_split import correlate_half_scans
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.prediction.predict import predict_scan
from ptycho_torch.simulation.objects import OBJECTS
from ptycho_torch.simulation.scan import simulate_measurement
from ptycho_torch.simulation.trajectories import TRAJECTORIES


@dataclass
class Bench:
    """Input files, output folder and training time."""

    twin: Path
    star: Path
    folder: Path
    seconds: float

    def run_command(self, *words: object) -> float:
        """Run a command in a separate process; return its seconds."""
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", *map(str, words)], check=True)
        return time.perf_counter() - started

    def model(self, name: str, *words: object) -> Path:
        """Return the folder of a network pretrained with these flags."""
        folder = self.folder / name
        if not (folder / "bundle.json").exists():
            flags = ["--time_limit", self.seconds, "--quiet", *words]
            print(f"`python -m ptycho_torch.pretrain --output_dir {name} {' '.join(map(str, flags))}`", flush=True)
            print(
                f"took {self.run_command('ptycho_torch.pretrain', '--output_dir', folder, *flags):.0f} s in total\n",
                flush=True,
            )
        return folder

    def reconstruct_siemens_star(self) -> Path:
        """Return the best engine's result on the Siemens star: three modes, refined positions."""
        folder = self.folder / "star_engine"
        if not (folder / "reconstruction.npz").exists():
            settings = "--engine pie --update_probe --probe_modes 3 --update_positions --epochs 20 --no_report --quiet"
            self.run_command("ptycho_torch.reconstruct", self.star, "--output_dir", folder, *settings.split())
        return folder / "reconstruction.npz"


def row(*cells: str) -> None:
    """Print a row of a table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def one_pass(
    folder: Path, scan: Scan, probe: np.ndarray | None = None, position_bound: float | None = None
) -> tuple[Reconstruction, float]:
    """Reconstruct ``scan`` with ``probe`` (√photons, default: the scan's) and return the result and its seconds.

    With ``position_bound`` (pixels per axis), positions are refined against the result. Warm-up is not counted.
    """
    model = load_model(folder).model
    photons = scan.photons_per_unit or 1.0
    initial_probe = scale_probe_to_photons(scan, photons) if probe is None else torch.from_numpy(probe)
    predict_scan(model, scan.select(np.arange(min(64, len(scan)))), photons, probe=initial_probe)
    started = time.perf_counter()
    found = predict_scan(model, scan, photons, probe=initial_probe, position_bound=position_bound)
    return found, time.perf_counter() - started


def run_engine(scan: Scan, stage: EngineOptions, initial: Reconstruction | None = None) -> tuple[Reconstruction, float]:
    """Run an engine, from an object of ones or from the result of a network; return its result and seconds."""
    started = time.perf_counter()
    photons = scan.photons_per_unit or 1.0
    result = Pipeline(stage).run(scan, initial=initial, photons_per_unit=photons, device="cpu")
    return result, time.perf_counter() - started


def r_of(found: Reconstruction, scan: Scan) -> str:
    """Return R and its noise floor as text."""
    measured = compute_fourier_error(
        found, replace(scan, positions=found.positions), photons_per_unit=scan.photons_per_unit or 1.0
    )
    return f"{measured.r:.5f} (floor {measured.r_floor:.4f})"


SLOW = 0.1
"""Share of Nyquist below which a low-frequency phase dominates the disagreement; it does not limit the resolution."""


def agreement(found: Reconstruction, other: Reconstruction) -> str:
    """Return the share of Nyquist at which the FRC of two results falls below ½, and its mean at low frequency.

    The crossing is searched beyond a tenth of Nyquist and the mean is below, after a factor, a ramp and a shift, in the
    largest square that both results cover.
    """
    low = np.maximum(found.origin_yx, other.origin_yx)
    high = np.minimum(*(one.origin_yx + one.object.shape for one in (found, other)))
    frc = correlate_half_scans(*(part(one, low, high) for one in (found, other))).frc
    fast = 2 * frc.frequency > SLOW
    beyond = frc._replace(frequency=frc.frequency[fast], correlation=frc.correlation[fast])
    crossing = beyond.find_crossing(0.5)
    return f"{2 * (0.5 if crossing is None else crossing):.2f} ({frc.correlation[~fast].mean():.2f})"


def part(found: Reconstruction, low: np.ndarray, high: np.ndarray) -> Reconstruction:
    """Return the part of a result between two corners in object coordinates."""
    cut = tuple(slice(*ends) for ends in np.transpose([low, high] - found.origin_yx))
    return replace(found, object=found.object[cut], coverage=found.coverage[cut], origin_yx=low)


LIKE_STAR = ("--min_photons", 1e5, "--max_photons", 2e6, "--min_overlap", 0.6, "--masked_fraction", 0)
"""Prior knowledge of the Siemens-star scan: approximate dose, overlap, no dead pixels."""


def print_siemens_star(bench: Bench) -> None:
    """Print the part on the Siemens star: networks pretrained with its probe and with other probes."""
    star = replace(load_scan(bench.star), photons_per_unit=1.0)
    best = load_reconstruction(bench.reconstruct_siemens_star())
    flat = replace(best, object=np.full_like(best.object, np.sqrt(np.square(np.abs(best.object)).mean())))
    print("\n| star | R | FRC with the engine's: ½ at, of Nyquist (mean below a tenth) | seconds |\n|---|---|---|---|")
    row("a flat object", r_of(flat, star), "", "")
    row("engine: pie, three modes, positions", r_of(best, star), "", "")
    known = ("--probe", bench.reconstruct_siemens_star(), *LIKE_STAR)
    models = {
        "`unrolled_unet`, pretrained with this probe": bench.model("star_probe", *known),
        "`unrolled_unet`, pretrained on probe families only": bench.model("general_128", "--size", 128, *LIKE_STAR),
        "`overlap_unet`, pretrained with this probe": bench.model("star_overlap", *known, *OVERLAP),
    }
    places = {
        "": (star, None),
        ", refined positions": (star, 5.0),
        ", at the engine's positions": (replace(star, positions=best.positions), None),
    }
    short_stage = PIE(time_limit=0.5, update_probe=True, update_intensity=True)
    further = {"0.5 s of pie": short_stage, "an epoch of pie": replace(short_stage, time_limit=None, epochs=1)}
    for title, folder in models.items():
        for where, (scan, bound) in places.items():
            found, seconds = one_pass(folder, scan, best.probe, bound)
            row(f"{title}{where}", r_of(found, scan), agreement(found, best), f"{seconds:.2f}")
            for more, stage in further.items():
                after, spent = run_engine(scan, stage, found)
                row(f"… and {more}", r_of(after, scan), agreement(after, best), f"{seconds + spent:.2f}")


def simulated(twin: Scan, name: str, photons: float, step: float, seed: int, positions: int = 400) -> Scan:
    """Return a scan of a random object with the probe of ``twin``, ``step`` pixels between neighbors."""
    rng = np.random.default_rng([seed, 12345])
    where = TRAJECTORIES["raster"](positions, step, 0.3, rng)
    where = where - where.min(0) + twin.size // 2 + 4
    rows, columns = (int(np.ceil(high)) + twin.size // 2 + 6 for high in where.max(0))
    obj = OBJECTS[name]((rows, columns), rng)
    return simulate_measurement(obj, twin.probe.astype(complex), where, photons, rng)


OVERLAP = ("--network", "overlap_unet")
"""The network with object stages."""

KINDS = ("letters", "cells", "dead_leaves")
"""Test objects; the first two kinds are not drawn in pretraining."""


def print_dose(bench: Bench) -> None:
    """Print the part on few photons: network, engine and pipeline on test objects; medians over the kinds."""
    twin = load_scan(bench.twin)
    single = bench.model("twin_probe", "--probe", bench.twin)
    whole = bench.model("twin_overlap", "--probe", bench.twin, *OVERLAP)
    diameter = compute_probe_diameter(twin.probe)
    print(
        "\n| photons per pattern | linear overlap | `unrolled_unet` | `overlap_unet` | lsqml, best of both losses "
        "| overlap_unet / lsqml | overlap_unet, then pie |"
    )
    print("|---|---|---|---|---|---|---|")
    for photons in (1e3, 1e4, 1e5):
        for overlap in (0.3, 0.65, 0.8, 0.93):
            found = []
            for name in KINDS:
                scan = simulated(twin, name, photons, (1 - overlap) * diameter, 21, 64 if overlap < 0.9 else 225)
                alone, together = (one_pass(folder, scan)[0] for folder in (single, whole))
                engines = [run_engine(scan, LSQML(loss=loss))[0] for loss in ("amplitude", "poisson")]
                chained, _ = run_engine(scan, PIE(loss="poisson"), together)
                errors = [covered_nrmse(result, scan) for result in (alone, together, *engines, chained)]
                engine = min(errors[2:4])
                found.append((errors[0], errors[1], engine, errors[1] / engine, errors[4]))
            row(f"{photons:.0e}", f"{100 * overlap:.0f} %", *(f"{value:.3f}" for value in np.median(found, axis=0)))


def print_overlap(bench: Bench) -> None:
    """Print the part on low linear overlap, 1 − step / diameter."""
    twin = load_scan(bench.twin)
    folder = bench.model("twin_probe", "--probe", bench.twin)
    diameter = compute_probe_diameter(twin.probe)
    overlaps = (0.3, 0.5, 0.8)
    print(f"\n| NRMSE at a linear overlap of (1e6 photons) | {' | '.join(f'{100 * o:.0f} %' for o in overlaps)} |")
    print("|---" * (len(overlaps) + 1) + "|")
    for name in KINDS:
        scans = [simulated(twin, name, 1e6, (1 - overlap) * diameter, 2, 64) for overlap in overlaps]
        row(f"{name}: network", *(f"{covered_nrmse(one_pass(folder, scan)[0], scan):.4f}" for scan in scans))
        engine = LSQML()
        row(f"{name}: lsqml", *(f"{covered_nrmse(run_engine(scan, engine)[0], scan):.4f}" for scan in scans))


def covered_nrmse(found: Reconstruction, scan: Scan) -> float:
    """Return illumination-weighted NRMSE over the whole canvas; gaps between probes have little weight."""
    assert scan.truth is not None
    top, left = found.origin_yx
    rows, columns = found.object.shape
    true = scan.truth[top : top + rows, left : left + columns].astype(complex)
    weight = found.coverage[: true.shape[0], : true.shape[1]]
    rec = found.object[: true.shape[0], : true.shape[1]].astype(complex)
    factor = fit_complex_scale(rec, true, weight)
    error = (weight * np.square(np.abs(factor * rec - true))).sum()
    return float(np.sqrt(error / (weight * np.square(np.abs(true))).sum()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, required=True, help="Run1084_twin_legacy.npz")
    parser.add_argument("--star", type=Path, required=True, help="the Siemens-star scan as a canonical scan file")
    parser.add_argument("--folder", type=Path, default=Path("pretrained"))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--only", default="", help="parts, separated by commas: star, dose, overlap")
    arguments = parser.parse_args()
    bench = Bench(arguments.twin, arguments.star, arguments.folder, arguments.seconds)
    parts: dict[str, Callable[[Bench], None]] = {
        "star": print_siemens_star,
        "dose": print_dose,
        "overlap": print_overlap,
    }
    for name in arguments.only.split(",") if arguments.only else parts:
        parts[name](bench)


if __name__ == "__main__":
    main()
