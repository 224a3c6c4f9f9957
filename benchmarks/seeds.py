"""Train from ten seeds at each of three pattern sizes, and count the collapsed networks.

::

    python benchmarks/seeds.py --folder seeds --seeds 10 --sizes 64 128 256

Scans are simulated. Each training is a short run of the command without targets; its collapse check (``seen`` in
bundle.json) is counted. Prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

POSITIONS = {64: 400, 128: 200, 256: 100}
EPOCHS = {64: 8, 128: 8, 256: 8}


def run(*words: object) -> float:
    """Run a command in a separate process; return its seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("seeds"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--network", default="stepped_unet")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(
        "| N | patterns, epochs | seconds per training | collapsed | R, median (range) | R untrained |\n"
        "|---|---|---|---|---|---|"
    )
    for size in arguments.sizes:
        scan = arguments.folder / f"scan_{size}.npz"
        shape = ("--size", size, "--positions", POSITIONS[size], "--overlap", 0.8)
        run("ptycho_torch.simulate", scan, "--preset", "run1084", *shape, "--photons", 1e6, "--quiet")
        reports, seconds = [], []
        for seed in range(arguments.seeds):
            folder = arguments.folder / f"model_{size}_{seed}"
            words = ("--max_epochs", EPOCHS[size], "--network", arguments.network, "--logger", "none", "--quiet")
            seconds.append(
                run("ptycho_torch.train", "--train_data_file", scan, "--output_dir", folder, "--seed", seed, *words)
            )
            reports += json.loads((folder / "bundle.json").read_text())["provenance"]["seen"]
        r = [report["r"] for report in reports]
        print(
            f"| {size} | {POSITIONS[size]}, {EPOCHS[size]} | {median(seconds):.0f} | "
            f"{sum(report['collapsed'] for report in reports)} of {len(reports)} | "
            f"{median(r):.4f} ({min(r):.4f} to {max(r):.4f}) | "
            f"{median(report['r_untaught'] for report in reports):.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
