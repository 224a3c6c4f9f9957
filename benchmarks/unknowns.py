"""Measure the engines with every unknown free: two probe modes, positions, background and intensities.

::

    python benchmarks/unknowns.py --engines pie lsqml --epochs 60 --peer_python peer_environment/bin/python

Prints one Markdown table. The scan is simulated with a background of 1 %, position errors of 1.5 pixels rms per axis, a
source that fluctuates by 10 % and dead pixels; its file has one defocused mode of two. NRMSE is over the region covered
at the start, after removal of ramp and shift, held-out deviance on 2 % of the pixels. Seconds are processor time of one
thread, for other programs without imports and setup.

``--peer_python`` is the Python of an environment with the packages ``ptychi`` and ``cdtools-py``. Both programs get the
same counts, held-out pixels, initial object, probe modes and positions, and run with the settings of their examples and
at other step sizes (``--peers`` selects some by name). The scores of all programs are computed here.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peer_tasks import LEARNS, MOVES, STRIDES, Peer
from peers import call_peer

from ptycho_torch.config.engines import ENGINES
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.engines.cross_validation import predict_intensity
from ptycho_torch.engines.initialization import make_initial_state, set_num_modes
from ptycho_torch.engines.measurement_model import ProbeObjectView, compute_coverage
from ptycho_torch.engines.pipeline import Pipeline, PipelineRun
from ptycho_torch.engines.state import make_measurement
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.physics.noise import Poisson, compute_deviance_floor
from ptycho_torch.simulation.imperfections import Imperfections, ImperfectScan, simulate_imperfect_scan
from ptycho_torch.simulation.scan import SimulationSettings

HOLDOUT_FRACTION = 0.02

PTYCHI_EPOCHS = 100

ALL_UNKNOWNS = {
    "update_probe": True,
    "probe_modes": 2,
    "update_positions": True,
    "update_background": True,
    "update_intensity": True,
}

CDTOOLS_UNKNOWNS = ["obj", "probe", "background", "translation_offsets", "weights"]

PTYCHI_UNKNOWNS = (
    LEARNS
    | MOVES
    | {
        "opr_mode_weight_options.optimizable": True,
        "opr_mode_weight_options.optimize_intensity_variation": True,
        "opr_mode_weight_options.optimize_eigenmode_weights": False,
        "reconstructor_options.rescale_probe_intensity_in_first_epoch": False,
        "reconstructor_options.random_seed": 0,
    }
)


def make_cdtools(*stages: tuple[int, float, int]) -> Peer:
    """Return Adam of cdtools with stages of (epochs, learning rate, batch size); the last adapts its learning rate."""
    settings = [
        {"epochs": epochs, "lr": rate, "batch_size": batch, "calculation_width": batch}
        for epochs, rate, batch in stages
    ]
    settings[-1]["schedule"] = True
    return Peer("cdtools", "adam", {"learn": CDTOOLS_UNKNOWNS, "adam_stages": settings})


def make_ptychi(batch: int, batches: str, *more: dict[str, object]) -> Peer:
    """Return LSQ-ML of pty-chi; ``more`` holds options by dotted names."""
    options = {"reconstructor_options.batch_size": batch, "reconstructor_options.batching_mode": batches}
    for further in (PTYCHI_UNKNOWNS, *more):
        options |= further
    return Peer("ptychi", "LSQML", options)


POISSON = {"reconstructor_options.noise_model": "poisson"}
MOMENTUM = {"reconstructor_options.momentum_acceleration_gain": 0.5}

PEERS = {
    "cdtools Adam, lr 0.02, 0.005": make_cdtools((50, 0.02, 10), (50, 0.005, 50)),
    "cdtools Adam, lr 0.005, 0.002, 0.001": make_cdtools((20, 0.005, 10), (50, 0.002, 10), (50, 0.001, 50)),
    "cdtools Adam, lr 0.02, 0.005, 0.001": make_cdtools((40, 0.02, 10), (40, 0.005, 10), (40, 0.001, 10)),
    "pty-chi LSQ-ML, random 32": make_ptychi(32, "random"),
    "pty-chi LSQ-ML, random 32, long position steps": make_ptychi(32, "random", STRIDES),
    "pty-chi LSQ-ML, compact 48, momentum 0.5, long position steps": make_ptychi(48, "compact", MOMENTUM, STRIDES),
    "pty-chi LSQ-ML, random 32, Poisson, long position steps": make_ptychi(32, "random", POISSON, STRIDES),
}
"""Other programs: settings of their examples, and other step sizes."""


class Judge:
    """Scores of all programs on one scan, from the same start.

    Args:
        true: the scan and its true values.
        run: an unstarted run, with the initial estimate and the held-out pixels.
    """

    def __init__(self, true: ImperfectScan, run: PipelineRun) -> None:
        assert run.held_out is not None
        self.true, self.scale, self.held_out = true, run.photons_per_unit, run.held_out
        self.start = replace(run.state, probe=set_num_modes(run.state.probe, ALL_UNKNOWNS["probe_modes"]))
        self.coverage = compute_coverage(self.start).numpy().astype(np.float32)
        scan = replace(true.scan, mask=self.held_out)
        self.measurement = make_measurement(scan, self.scale, Poisson(), torch.device("cpu"))

    def print_row(self, name: str, result: Reconstruction, mode_intensities: np.ndarray, seconds: float) -> None:
        """Print one row of the table.

        Args:
            name: program and settings.
            result: the estimate.
            mode_intensities: (M, n) power of each mode in each pattern, relative to its power in ``result``.
            seconds: processor time.
        """
        assert self.true.scan.truth is not None
        same_region = replace(result, coverage=self.coverage)
        comparison = compare_with_truth(same_region, self.true.scan.truth, remove_ramp=True, remove_shift=True)
        errors = result.positions - self.true.positions
        errors = errors - errors.mean(0)
        deviance, floor = self.compute_held_out_deviance(result, mode_intensities)
        print(
            f"| {name} | {comparison.nrmse:.4f} | {np.sqrt(np.square(errors).mean()):.2f} | {deviance:.3f} "
            f"({floor:.3f}) | {seconds:.0f} |",
            flush=True,
        )

    def compute_held_out_deviance(self, result: Reconstruction, mode_intensities: np.ndarray) -> tuple[float, float]:
        """Return the mean Poisson deviance of the held-out pixels, and its expectation from counting noise alone."""
        state = make_initial_state(self.true.scan, self.scale, result)
        chunks = torch.arange(len(state.positions)).split(64)
        rates = torch.zeros_like(self.measurement.counts) + state.background
        for mode, intensities in zip(result.probe, mode_intensities, strict=True):
            single = replace(state, probe=torch.from_numpy(mode[None]), background=torch.zeros_like(state.background))
            single.intensities = torch.from_numpy(intensities.astype(np.float32))
            view = ProbeObjectView(single)
            rates += torch.cat([predict_intensity(view, chunk) for chunk in chunks])
        pixels = self.measurement.mask
        assert pixels is not None
        deviance = Poisson().deviance(rates[pixels], self.measurement.counts[pixels]).mean(dtype=torch.float64)
        return float(deviance), float(compute_deviance_floor(rates[pixels]).mean())


def run_peer(judge: Judge, name: str, peer: Peer, python: Path) -> None:
    """Run another program from the start of ``judge``, and print its row."""
    start, scan = judge.start, judge.true.scan
    origin = np.array(start.canvas.origin)
    assert scan.mask is not None
    counts = np.square(scan.amplitudes) * np.float32(judge.scale)
    arrays = {
        "counts": np.where(judge.held_out, np.float32(-1), counts),
        "object": start.object.numpy(),
        "probe": start.probe.numpy(),
        "positions": start.positions.numpy() - origin,
        "mask": scan.mask,
    }
    epochs = sum(stage["epochs"] for stage in peer.options.get("adam_stages", [])) or PTYCHI_EPOCHS
    request = {"engine": peer.engine, "options": peer.options, "clock": "process_time", "epochs": epochs}
    out = call_peer(python, peer.package, arrays, request | {"time_limit": 1e9}, 1)
    last = {key: values[-1] for key, values in out.items()}
    result = Reconstruction(
        last["object"].astype(np.complex64),
        judge.coverage,
        origin,
        last["probe"].astype(np.complex64),
        last["positions"].astype(np.float64) + origin,
        judge.scale,
        last["background"].astype(np.float32),
    )
    judge.print_row(f"{name}, {epochs} epochs", result, last["intensities"], float(last["seconds"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="*", default=["pie", "lsqml", "rpie"])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patterns", type=int, default=400)
    parser.add_argument("--object", default="cells")
    parser.add_argument("--overlap", type=float, default=0.85)
    parser.add_argument("--peer_python", type=Path, help="Python with ptychi and cdtools-py; default: no other program")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="other programs to run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = SimulationSettings(
        arguments.object, "structured", "spiral", arguments.size, arguments.patterns, arguments.overlap, 0.3, 2, 1e6
    )
    true = simulate_imperfect_scan(settings, Imperfections())
    options = {name: ENGINES[name](epochs=arguments.epochs, **ALL_UNKNOWNS) for name in {"pie", *arguments.engines}}
    judge = Judge(true, Pipeline(options["pie"]).start(true.scan, device="cpu", holdout=HOLDOUT_FRACTION))
    print("| program | NRMSE | position error (px) | held-out deviance (floor) | CPU s |")
    print("|---" * 5 + "|", flush=True)
    for engine in arguments.engines:
        started = time.process_time()
        result = Pipeline(options[engine]).run(true.scan, device="cpu", holdout=HOLDOUT_FRACTION)
        seconds = time.process_time() - started
        assert result.intensities is not None
        name = f"{engine}, {arguments.epochs} epochs"
        judge.print_row(name, result, np.stack([result.intensities] * len(result.probe)), seconds)
    if arguments.peer_python:
        for name in arguments.peers:
            run_peer(judge, name, PEERS[name], arguments.peer_python)


if __name__ == "__main__":
    main()
