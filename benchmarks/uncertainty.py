"""Calibration of the stated uncertainty on simulated objects outside the training, at several doses.

::

    python benchmarks/uncertainty.py --folder estimation --photons 1e4 1e5 1e6

Trains one network per dose on one simulated scan (seed 0, letters), unless the folder holds it, and reconstructs other
objects (seed 7). Prints one Markdown table: NRMSE, the root mean square of the stated uncertainty in the same unit,
Spearman's correlation of uncertainty and error, and the shares of pixels whose error is within k times the uncertainty.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.uncertainty import add_uncertainty
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import (
    SIGMA_MULTIPLES,
    compute_calibration,
    compute_expected_shares,
)
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.models.saved_model import Model, load_model
from ptycho_torch.prediction.predict import predict_scan
from ptycho_torch.simulation.scan import simulate_scan


def load_or_train(folder: Path, photons: float) -> Model:
    """Return the network of one dose, load_or_train if the folder does not hold it."""
    scan, model = folder / f"train_{photons:g}.npz", folder / f"model_{photons:g}"
    if not (model / "bundle.json").is_file():
        save_scan(scan, simulate_scan("run1084", photons=photons, seed=0))
        words = ["--train_data_file", str(scan), "--output_dir", str(model), "--logger", "none", "--quiet"]
        subprocess.run([sys.executable, "-m", "ptycho_torch.train", *words], check=True)
    return load_model(model)


def row(name: str, bundle: Model, scan: Scan) -> str:
    """Return one row of the table."""
    scale = bundle.photons_per_unit
    started = time.process_time()
    result = predict_scan(bundle.model, scan, scale)
    network = time.process_time() - started
    stated = add_uncertainty(result, scan)
    estimation = time.process_time() - started - network
    assert scan.truth is not None
    comparison = compare_with_truth(stated, scan.truth)
    calibration = compute_calibration(stated, comparison)
    assert calibration is not None
    region = comparison.overlap_region.region
    size = np.linalg.norm(calibration.uncertainty[region]) / np.linalg.norm(comparison.overlap_region.truth[region])
    shares = " | ".join(f"{share:.2f}" for share in calibration.shares)
    figures = f"{comparison.nrmse:.3f} | {size:.3f} | {calibration.rank_correlation:.2f} | {shares}"
    return f"| {name} | {figures} | {network:.2f} + {estimation:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the networks and their training scans")
    parser.add_argument("--photons", type=float, nargs="+", default=[1e4, 1e5, 1e6])
    parser.add_argument("--objects", nargs="+", default=["letters", "cells", "texture", "star"])
    parser.add_argument("--twin", type=Path, help="a scan with its truth, an additional row for --model")
    parser.add_argument("--model", type=Path, help="network of that scan")
    config = parser.parse_args()
    config.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("| scan | NRMSE | stated | rank | " + " | ".join(f"≤ {k:g} σ" for k in SIGMA_MULTIPLES) + " | CPU s |")
    print("|---" * (5 + len(SIGMA_MULTIPLES)) + "|")
    expected = " | ".join(f"{share:.2f}" for share in compute_expected_shares())
    print(f"| complex Gaussian errors | | | | {expected} | |")
    if config.twin and config.model:
        print(row("Run1084 simulated scan, own network", load_model(config.model), load_scan(config.twin)), flush=True)
    for photons in config.photons:
        bundle = load_or_train(config.folder, photons)
        for kind in config.objects:
            scan = simulate_scan("run1084", object=kind, photons=photons, seed=7)
            print(row(f"{kind}, {photons:g} photons", bundle, scan), flush=True)


if __name__ == "__main__":
    main()
