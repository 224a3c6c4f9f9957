"""Measure whole commands: wall seconds and peak memory, medians of several runs.

::

    python benchmarks/commands.py --twin Run1084_twin_legacy.npz --star siemens-star-small.npz.bz2 --repeats 3

Prints one Markdown table with time, memory and quality of the result. No other process should run at the same time.
"""

import argparse
import csv
import json
import shlex
import sys
import tempfile
from pathlib import Path
from statistics import median

from ptycho_torch.profiling.processes import run_measured

MODULE = [sys.executable, "-m"]


def run_and_measure(words: list[str]) -> tuple[float, float]:
    """Run a command; return its wall seconds and the peak memory of its largest process in MB. Raises if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        found = run_measured(MODULE + words, log)
        if found.exit_code or found.peak_bytes is None:
            raise SystemExit(f"{shlex.join(words)}: exit code {found.exit_code}\n{log.read_text()}")
    return found.wall_seconds, found.peak_bytes / 2**20


def row(name: str, runs: list[tuple[float, float]], quality: str = "") -> None:
    """Print one row: the median wall time with its range, the largest memory, and the quality of the result."""
    seconds = [run[0] for run in runs]
    spread = f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
    print(f"| {name} | {spread} | {max(run[1] for run in runs):.0f} | {quality} |", flush=True)


def compute_rate(model: Path) -> float:
    """Return patterns per second of the training in ``model``, validation and checkpoints included."""
    seconds = json.loads((model / "timing.json").read_text())["train"]
    with (model / "history.csv").open() as file:
        return sum(int(line["groups"]) for line in csv.DictReader(file)) / seconds


def print_simulated_scan(twin: Path, folder: Path, repeats: int) -> None:
    """Print the rows of the Run1084 simulated scan."""
    short = shlex.split(
        f"ptycho_torch.train --train_data_file {twin} --test_data_file {twin} --output_dir {folder / 'short'} "
        "--max_epochs 2 --n_images 64 --gridsize 1 --batch_size 4 --device cpu --disable_mlflow"
    )
    row("short command (2 epochs of 64 patterns)", [run_and_measure(short) for _ in range(repeats)])
    model, result = folder / "model", folder / "result"
    train = shlex.split(f"ptycho_torch.train --train_data_file {twin} --output_dir {model} --quiet")
    infer = shlex.split(f"ptycho_torch.inference --model_path {model} --test_data {twin} --output_dir {result} --quiet")
    trained, inferred, rates = [], [], []
    for _ in range(repeats):
        trained.append(run_and_measure(train))
        rates.append(compute_rate(model))
        inferred.append(run_and_measure(infer))
    evaluate = ["ptycho_torch.evaluate", str(result / "reconstruction.npz"), "--truth", str(twin), "--scan", str(twin)]
    run_and_measure([*evaluate, "--output_dir", str(folder / "evaluation")])
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    quality = f"NRMSE {metrics['nrmse']:.3f}, {metrics['nrmse_scanned_box']:.3f} in the scanned box"
    row("training, defaults, all patterns", trained, f"{median(rates):.0f} patterns/s")
    row("inference of 1087 patterns, stitching and images", inferred, quality)
    total = [(a[0] + b[0], max(a[1], b[1])) for a, b in zip(trained, inferred, strict=True)]
    row("training and inference together", total, quality)


def print_siemens_star(source: Path, folder: Path, repeats: int) -> None:
    """Print the rows of the Siemens-star scan."""
    star, model, result = folder / "star.npz", folder / "star_model", folder / "star_result"
    convert = ["ptycho_torch.convert", str(source), str(star), "--measurement", "counts", "--origin", "corner"]
    row("Siemens star: convert", [run_and_measure(convert) for _ in range(repeats)])
    train = shlex.split(f"ptycho_torch.train --train_data_file {star} --output_dir {model} --update_probe --quiet")
    infer = shlex.split(f"ptycho_torch.inference --model_path {model} --test_data {star} --output_dir {result} --quiet")
    trained, inferred = [], []
    for _ in range(repeats):
        trained.append(run_and_measure(train))
        inferred.append(run_and_measure(infer))
    metrics = json.loads((result / "metrics.json").read_text())
    row("Siemens star: training with --update_probe, defaults", trained, f"{compute_rate(model):.0f} patterns/s")
    row("Siemens star: inference", inferred, f"R {metrics['r']:.4f}, floor {metrics['r_floor']:.4f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, help="Run1084_twin_legacy.npz")
    parser.add_argument("--star", type=Path, help="siemens-star-small.npz.bz2")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("| command | wall seconds, median (range) | peak MB | result |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.twin:
            print_simulated_scan(arguments.twin, Path(folder), arguments.repeats)
        if arguments.star:
            print_siemens_star(arguments.star, Path(folder), arguments.repeats)


if __name__ == "__main__":
    main()
