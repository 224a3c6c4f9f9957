"""Run other programs on the same data, from the same initial estimate and with the same scores as our engines.

::

    python benchmarks/peers.py --twin Run1084_twin_legacy.npz --star star.npz --figure peers.png --json peers.json

Creates an environment per program (pty-chi as `ptychi`, cdtools as `cdtools-py`, from PyPI) in the folder
``--environment`` unless it exists, runs every method ``--repeats`` times in turn, prints each run on stderr, and prints
one Markdown table per task, with medians. Each program runs with settings that its authors recommend and with the best
of a search over its public options. Its seconds are the seconds of the epochs after one warm-up epoch; seconds of this
package include the setup. ``--clock process_time`` counts processor seconds, which depend less on other processes; use
it with ``--threads 1``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import peer_tasks
import torch
from peer_tasks import Peer, Task

from ptycho_torch.config.engines import PIE, EngineOptions
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.engines.measurement_model import compute_coverage
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.io.scan import load_scan

PACKAGES = {"ptychi": "ptychi", "cdtools": "cdtools-py"}
Trace = list[tuple[float, dict[str, float]]]


@dataclass
class Settings:
    """Settings common to all runs."""

    environment: Path
    clock: str
    threads: int

    def python(self, package: str) -> Path:
        """Return the Python of an environment with ``package``, created if absent."""
        folder = self.environment.absolute() / package
        if not (folder / "bin" / "python").exists():
            venv.create(folder, with_pip=True)
            subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", PACKAGES[package]], check=True)
        return folder / "bin" / "python"


class Scorer(SilentObserver):
    """Observer that scores each epoch while its clock is stopped."""

    def __init__(self, score: Callable[[], dict[str, float]], clock: Callable[[], float]) -> None:
        self.score, self.clock, self.trace, self.spent = score, clock, Trace(), 0.0
        self.started = clock()

        self.epoch = 0

    def advance(self, steps: int = 1, **figures: float) -> None:
        now = self.clock()
        self.epoch += 1
        if is_scored(self.epoch):
            self.trace.append((now - self.started - self.spent, self.score()))
        self.spent += self.clock() - now


def is_scored(epoch: int) -> bool:
    """Return True if an epoch, counted from 1, is scored: scoring takes longer than most epochs."""
    return epoch <= 8 or epoch % 4 == 0


def run_ours(task: Task, stage: EngineOptions, settings: Settings, seed: int) -> Trace:
    """Return (seconds, scores) after each epoch of our engine, setup included."""
    clock = getattr(time, settings.clock)
    scorer = Scorer(lambda: task.figures(pipeline.make_reconstruction()), clock)
    scale, estimate = task.start()
    pipeline = PipelineRun(task.scan, scale, [stage], estimate, seed)
    pipeline.run_stage(scorer)
    return scorer.trace


def call_peer(
    python: Path, package: str, arrays: dict[str, np.ndarray], request: dict[str, Any], threads: int
) -> dict[str, np.ndarray]:
    """Run another program in its environment, and return the arrays of all its epochs.

    Args:
        python: Python of the environment of ``package``.
        package: ``ptychi`` or ``cdtools``.
        arrays: counts, object, probe, positions on the object and mask.
        request: engine, options, clock, number of epochs and time limit.
        threads: number of processor threads.
    """
    with tempfile.TemporaryDirectory() as name:
        source, destination = Path(name) / "task.npz", Path(name) / "result.npz"
        np.savez(source, settings=json.dumps(request), **arrays)  # type: ignore[arg-type]
        done = subprocess.run(
            [python, Path(__file__).with_name(f"in_{package}.py"), source, destination],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        with np.load(destination) as out:
            return dict(out)


def run_peer(task: Task, peer: Peer, settings: Settings, seed: int) -> Trace:
    """Return (seconds, scores) after each epoch of another program, setup excluded."""
    scale, estimate = task.start()
    origin, scan = np.array(estimate.canvas.origin), task.scan
    options = peer.options | ({"reconstructor_options.random_seed": seed} if peer.package == "ptychi" else {})
    request = {"engine": peer.engine, "options": options, "clock": settings.clock, "epochs": 200}
    arrays = {
        "counts": np.square(scan.amplitudes) * np.float32(scale),
        "object": estimate.object.numpy(),
        "probe": estimate.probe.numpy(),
        "positions": scan.positions - origin,
        "mask": np.ones(scan.amplitudes.shape[1:], bool) if scan.mask is None else scan.mask,
    }
    request |= {"time_limit": task.seconds}
    out = call_peer(settings.python(peer.package), peer.package, arrays, request, settings.threads)
    found = [out[name] for name in ("seconds", "object", "probe", "positions")]
    coverage = compute_coverage(estimate).numpy().astype(np.float32)
    trace: Trace = []
    for epoch, (seconds, obj, probe, positions) in enumerate(zip(*found, strict=True), 1):
        if not is_scored(epoch) and epoch < len(found[0]):
            continue
        state = Reconstruction(obj, coverage, origin, probe.astype(np.complex64), positions + origin, scale)
        trace.append((float(seconds), task.figures(state)))
    return trace


def compute_medians(traces: list[Trace]) -> Trace:
    """Return the medians over the runs at each epoch that all runs reached."""
    return [
        (median(at for at, _ in epoch), {name: median(f[name] for _, f in epoch) for name in epoch[0][1]})
        for epoch in zip(*traces, strict=False)  # runs within a time limit end at different epochs
    ]


def row(title: str, traces: list[Trace], goal: float) -> str:
    """Return a row of the table: medians over the runs."""
    first = next(iter(traces[0][0][1]))
    reached = median(next((at for at, found in trace if found[first] <= goal), float("inf")) for trace in traces)
    lowest = median(min(found[first] for _, found in trace) for trace in traces)
    ends = {name: median(trace[-1][1][name] for trace in traces) for name in traces[0][-1][1]}
    total = median(trace[-1][0] for trace in traces)
    end = ", ".join(f"{name} {value:.4f}" for name, value in ends.items())
    return f"| {title} | {reached:.2f} | {total:.2f} | {lowest:.4f} | {end} |"


def compare(task: Task, repeats: int, settings: Settings) -> dict[str, list[Trace]]:
    """Run every method ``repeats`` times in turn, and print the table."""
    methods: dict[str, Callable[[int], Trace]] = {}
    for name, stage in task.stages.items():
        methods[f"ptycho_torch {name}"] = partial(run_ours, task, stage, settings)
    for name, peer in task.peers.items():
        methods[name] = partial(run_peer, task, peer, settings)
    found: dict[str, list[Trace]] = {name: [] for name in methods}
    for seed in range(repeats):
        for name, method in methods.items():
            found[name].append(method(seed))
            print(row(name, found[name][-1:], task.goal), file=sys.stderr, flush=True)
    print(f"\n{task.title}\n\n| method | seconds to {task.goal} | total seconds | lowest | final |")
    print("|---|---|---|---|---|")
    for name, traces in found.items():
        print(row(name, traces, task.goal), flush=True)
    return found


def draw(found: dict[str, dict[str, list[Trace]]], path: Path) -> None:
    """Plot error against time for every method, one panel per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(6 * len(found), 6.5), squeeze=False)
    for panel, (title, methods) in zip(panels[0], found.items(), strict=True):
        for name, traces in methods.items():
            line = compute_medians(traces)
            first = next(iter(line[0][1]))
            ours = name.startswith("ptycho_torch")
            panel.loglog(
                [at for at, _ in line], [f[first] for _, f in line], label=name, lw=2.5 if ours else 1.2, marker="."
            )
            panel.set(title=title, xlabel="seconds", ylabel=first)
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
        panel.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, required=True, help="Run1084_twin_legacy.npz")
    parser.add_argument("--star", type=Path, help="the Siemens-star scan as a canonical scan file")
    parser.add_argument("--environment", type=Path, default=Path("peer_environment"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="by commas: twin, gaussian, curved, positions, modes, star, star_modes"
    )
    parser.add_argument(
        "--methods", default="", help="run only methods of other programs whose names contain this text"
    )
    parser.add_argument("--clock", choices=("perf_counter", "process_time"), default="perf_counter")
    parser.add_argument("--seconds", type=float, help="time limit of other programs; default: the task's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="PNG file for the plot")
    parser.add_argument("--json", type=Path, help="JSON file for all scores of all runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    twin, star = load_scan(arguments.twin), load_scan(arguments.star) if arguments.star else None
    parts: dict[str, Callable[[], Task]] = {
        "twin": lambda: peer_tasks.twin_task(twin),
        "gaussian": lambda: peer_tasks.gaussian_task(twin),
        "curved": lambda: peer_tasks.gaussian_task(twin, curved=True),
        "positions": lambda: peer_tasks.positions_task(twin),
        "modes": lambda: peer_tasks.modes_task(twin),
    }
    if star is not None:
        parts |= {"star": lambda: peer_tasks.star_task(star), "star_modes": lambda: peer_tasks.star_modes_task(star)}
    settings = Settings(arguments.environment, arguments.clock, arguments.threads)
    # The first run is slower: warm up.
    run_ours(peer_tasks.twin_task(twin), PIE(epochs=1), settings, 0)
    found = {}
    for name in arguments.only.split(",") if arguments.only else parts:
        task = parts[name]()
        task = replace(task, peers={name: p for name, p in task.peers.items() if arguments.methods in name})
        if arguments.seconds:
            task = replace(task, seconds=arguments.seconds)
        found[task.title] = compare(task, arguments.repeats, settings)
    if arguments.json:
        arguments.json.write_text(json.dumps(found))
    if arguments.figure:
        draw(found, arguments.figure)


if __name__ == "__main__":
    main()
