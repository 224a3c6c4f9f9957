"""Run other packages on the same data, from the same start and by the same scorer as our engines.

::

    python benchmarks/peers.py --twin Run1084_twin_legacy.npz --star star.npz --figure peers.png --json peers.json

Makes an environment for each peer (pty-chi as `ptychi`, cdtools as `cdtools-py`, from PyPI) in the folder
``--environment`` unless it is there, runs every method ``--repeats`` times in turn, tells each run on stderr, and
prints one Markdown table for each task, with medians. Each peer runs by settings as its authors tell them and by the
best that a search over its public options found. Seconds are of the epochs alone for a peer, after one epoch of warming
up; ours have the set-up in them as well. ``--clock process_time`` counts seconds of the processor instead, which other
work blurs less: give it with ``--threads 1``.
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

import numpy as np
import peer_tasks
import torch
from peer_tasks import Peer, Task

from ptycho_torch.config.engines import PIE, EngineOptions
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.engines.pipeline import PipelineRun, compute_coverage
from ptycho_torch.io.npz import load_scan

PACKAGES = {"ptychi": "ptychi", "cdtools": "cdtools-py"}
Trace = list[tuple[float, dict[str, float]]]


@dataclass
class Settings:
    """How everything is run."""

    environment: Path
    clock: str
    threads: int

    def python(self, package: str) -> Path:
        """The Python of an environment that has ``package``."""
        folder = self.environment.absolute() / package
        if not (folder / "bin" / "python").exists():
            venv.create(folder, with_pip=True)
            subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", PACKAGES[package]], check=True)
        return folder / "bin" / "python"


class Scorer(SilentObserver):
    """Notes the figures after each epoch, and stops the clock for it."""

    def __init__(self, score: Callable[[], dict[str, float]], clock: Callable[[], float]) -> None:
        self.score, self.clock, self.trace, self.spent = score, clock, Trace(), 0.0
        self.started = clock()

        self.epoch = 0

    def advance(self, steps: int = 1, **figures: float) -> None:
        now = self.clock()
        self.epoch += 1
        if judged(self.epoch):
            self.trace.append((now - self.started - self.spent, self.score()))
        self.spent += self.clock() - now


def judged(epoch: int) -> bool:
    """Whether an epoch, counted from 1, is scored: scoring takes longer than most epochs do."""
    return epoch <= 8 or epoch % 4 == 0


def run_ours(task: Task, stage: EngineOptions, settings: Settings, seed: int) -> Trace:
    """(seconds, figures) after each epoch of ours, set-up included."""
    clock = getattr(time, settings.clock)
    scorer = Scorer(lambda: task.figures(chain.make_reconstruction()), clock)
    scale, estimate = task.start()
    chain = PipelineRun(task.scan, scale, [stage], estimate, seed)
    chain.run_stage(scorer)
    return scorer.trace


def run_peer(task: Task, peer: Peer, settings: Settings, seed: int) -> Trace:
    """(seconds, figures) after each epoch of a peer, set-up not counted."""
    scale, estimate = task.start()
    origin, scan = np.array(estimate.canvas.origin), task.scan
    options = peer.options | ({"reconstructor_options.random_seed": seed} if peer.package == "ptychi" else {})
    told = {"engine": peer.engine, "options": options, "clock": settings.clock, "epochs": 200}
    with tempfile.TemporaryDirectory() as name:
        source, destination = Path(name) / "task.npz", Path(name) / "result.npz"
        np.savez(
            source,
            counts=np.square(scan.amplitudes) * np.float32(scale),
            object=estimate.object.numpy(),
            probe=estimate.probe.numpy(),
            positions=scan.positions - origin,
            mask=np.ones(scan.amplitudes.shape[1:], bool) if scan.mask is None else scan.mask,
            settings=json.dumps(told | {"time_limit": task.seconds}),
        )
        script = Path(__file__).with_name(f"in_{peer.package}.py")
        done = subprocess.run(
            [settings.python(peer.package), script, source, destination],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": str(settings.threads), "MKL_NUM_THREADS": str(settings.threads)},
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        with np.load(destination) as out:
            found = [out[name] for name in ("seconds", "object", "probe", "positions")]
    coverage = compute_coverage(estimate).numpy().astype(np.float32)
    trace: Trace = []
    for epoch, (seconds, obj, probe, positions) in enumerate(zip(*found, strict=True), 1):
        if not judged(epoch) and epoch < len(found[0]):
            continue
        state = Reconstruction(obj, coverage, origin, probe.astype(np.complex64), positions + origin, scale)
        trace.append((float(seconds), task.figures(state)))
    return trace


def middle(traces: list[Trace]) -> Trace:
    """Medians of runs at each epoch that all have."""
    return [
        (median(at for at, _ in epoch), {name: median(f[name] for _, f in epoch) for name in epoch[0][1]})
        for epoch in zip(*traces, strict=False)
    ]


def row(told: str, traces: list[Trace], goal: float) -> str:
    """A row of the table: medians over the runs."""
    first = next(iter(traces[0][0][1]))
    reached = median(next((at for at, found in trace if found[first] <= goal), float("inf")) for trace in traces)
    lowest = median(min(found[first] for _, found in trace) for trace in traces)
    ends = {name: median(trace[-1][1][name] for trace in traces) for name in traces[0][-1][1]}
    in_all = median(trace[-1][0] for trace in traces)
    end = ", ".join(f"{name} {value:.4f}" for name, value in ends.items())
    return f"| {told} | {reached:.2f} | {in_all:.2f} | {lowest:.4f} | {end} |"


def compare(task: Task, repeats: int, settings: Settings) -> dict[str, list[Trace]]:
    """Every method in turn, so often; prints the table."""
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
    print(f"\n{task.told}\n\n| method | seconds to {task.goal} | seconds in all | lowest | at the end |")
    print("|---|---|---|---|---|")
    for name, traces in found.items():
        print(row(name, traces, task.goal), flush=True)
    return found


def draw(found: dict[str, dict[str, list[Trace]]], path: Path) -> None:
    """Error against time for every method, one panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(6 * len(found), 6.5), squeeze=False)
    for panel, (told, methods) in zip(panels[0], found.items(), strict=True):
        for name, traces in methods.items():
            line = middle(traces)
            first = next(iter(line[0][1]))
            ours = name.startswith("ptycho_torch")
            panel.loglog(
                [at for at, _ in line], [f[first] for _, f in line], label=name, lw=2.5 if ours else 1.2, marker="."
            )
            panel.set(title=told, xlabel="seconds", ylabel=first)
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
        panel.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, required=True, help="Run1084_twin_legacy.npz")
    parser.add_argument("--star", type=Path, help="the measured star as a canonical scan file")
    parser.add_argument("--environment", type=Path, default=Path("peer_environment"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="by commas: twin, gaussian, curved, positions, modes, star, star_modes"
    )
    parser.add_argument("--methods", default="", help="only those of the peers' methods that have this in their name")
    parser.add_argument("--clock", choices=("perf_counter", "process_time"), default="perf_counter")
    parser.add_argument("--seconds", type=float, help="after which a peer begins no epoch; default: the task's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    parser.add_argument("--json", type=Path, help="file for all figures of all runs")
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
    # The first use of anything is slower.
    run_ours(peer_tasks.twin_task(twin), PIE(epochs=1), settings, 0)
    found = {}
    for name in arguments.only.split(",") if arguments.only else parts:
        task = parts[name]()
        task = replace(task, peers={name: p for name, p in task.peers.items() if arguments.methods in name})
        if arguments.seconds:
            task = replace(task, seconds=arguments.seconds)
        found[task.told] = compare(task, arguments.repeats, settings)
    if arguments.json:
        arguments.json.write_text(json.dumps(found))
    if arguments.figure:
        draw(found, arguments.figure)


if __name__ == "__main__":
    main()
