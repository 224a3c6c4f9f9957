"""Measure the engines with every unknown free: two probe modes, positions, background and intensities.

::

    python benchmarks/unknowns.py --engines pie lsqml --epochs 60

Prints one Markdown table. The scan is simulated with a background of 1 %, position errors of 1.5 pixels rms per axis, a
source that fluctuates by 10 % and dead pixels; its file has one defocused mode of two. NRMSE is over the covered region
after removal of ramp and shift, held-out deviance on 2 % of the pixels. Seconds are processor time.
"""

import argparse
import time

import numpy as np

from ptycho_torch.config.engines import ENGINES
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.simulation.imperfections import Imperfections, ImperfectScan, simulate_imperfect_scan
from ptycho_torch.simulation.scan import SimulationSettings

HOLDOUT_FRACTION = 0.02

ALL_UNKNOWNS = {
    "update_probe": True,
    "probe_modes": 2,
    "update_positions": True,
    "update_background": True,
    "update_intensity": True,
}


def print_row(name: str, result: Reconstruction, true: ImperfectScan, seconds: float) -> None:
    """Print one row of the table."""
    assert true.scan.truth is not None
    comparison = compare_with_truth(result, true.scan.truth, remove_ramp=True, remove_shift=True)
    errors = result.positions - true.positions
    errors = errors - errors.mean(0)
    history = result.history
    deviance, floor = history["held_out_deviance"][-1], history["held_out_floor"][-1]
    print(
        f"| {name} | {comparison.nrmse:.4f} | {np.sqrt(np.square(errors).mean()):.2f} | {history['r'][-1]:.5f} "
        f"({history['r_floor'][-1]:.5f}) | {deviance:.3f} ({floor:.3f}) | {seconds:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["pie", "lsqml", "rpie"])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patterns", type=int, default=400)
    parser.add_argument("--object", default="cells")
    parser.add_argument("--overlap", type=float, default=0.85)
    arguments = parser.parse_args()
    settings = SimulationSettings(
        arguments.object, "structured", "spiral", arguments.size, arguments.patterns, arguments.overlap, 0.3, 2, 1e6
    )
    true = simulate_imperfect_scan(settings, Imperfections())
    print("| engine | NRMSE | position error (px) | R (floor) | held-out deviance (floor) | CPU s |")
    print("|---" * 6 + "|", flush=True)
    for engine in arguments.engines:
        started = time.process_time()
        options = ENGINES[engine](epochs=arguments.epochs, **ALL_UNKNOWNS)  # type: ignore[arg-type]
        result = Pipeline(options).run(true.scan, device="cpu", holdout=HOLDOUT_FRACTION)
        print_row(engine, result, true, time.process_time() - started)


if __name__ == "__main__":
    main()
