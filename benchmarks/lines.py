"""The benchmark of lines that PtychoPINN publishes, remade from its description.

::

    python benchmarks/lines.py --probe Run1084_twin_legacy.npz --folder lines

N = 128, one pattern at a time, 10⁹ photons a pattern. The network is trained on the patterns of two objects, without
any truth, and reads the scan of a third in one pass; the metrics are theirs as they tell them. Engines on that scan say
how much better it could be. Scans and results are kept in the folder and used again. Prints one Markdown table.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import load_scan, save_scan
from ptycho_torch.io.probe_file import read_probe
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.patches import make_canvas
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.prediction.stitching import stitch
from ptycho_torch.simulation.scan import simulate_measurement

SIDE = 392
"""Side of an object in pixels."""

LINES = 400
"""Lines in a field of twice that side, of which the middle is taken."""

BLURS = ((1.0, 1.0), (5.0, 2.0), (10.0, 5.0))
"""Standard deviation (pixels) and weight of each blurred copy that is summed."""

SIZE = 128
"""N."""

PHOTONS = 1e9
"""Mean total a pattern."""

TRAINING_STEP, TEST_STEP = 4, 10
"""Pixels between scan positions."""

SMOOTHING = 0.5
"""Standard deviation (pixels) by which amplitude and phase of the enlarged probe are smoothed."""


def lines_object(random: np.random.RandomState) -> NDArray[np.complex128]:
    """An object of lines, (392, 392): the amplitude is the sum of blurred lines, and the phase follows from it."""
    from scipy.ndimage import gaussian_filter
    from skimage.draw import line

    field = 2 * SIDE
    drawn = np.zeros((field, field))
    for _ in range(LINES):
        drawn[line(*(int(field * random.uniform()) for _ in range(4)))] = 1
    summed = sum(weight * gaussian_filter(drawn, width) for width, weight in BLURS)
    amplitude = summed[SIDE // 2 : -(SIDE // 2), SIDE // 2 : -(SIDE // 2)]
    phase = np.pi * np.tanh((amplitude - amplitude.max() / 2) / (3 * amplitude.mean()))
    return amplitude * np.exp(1j * phase)


def enlarged_probe(probe: NDArray[np.complexfloating], size: int = SIZE) -> NDArray[np.complex128]:
    """``probe`` in a field of ``size``: its amplitude goes on as it ends, its phase becomes the nearest a·r² + b."""
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import unwrap_phase

    def squared_radius(side: int) -> NDArray[np.float64]:
        place = np.arange(side) - (side - 1) / 2
        return place[:, None] ** 2 + place**2

    inner = squared_radius(len(probe)).ravel()
    curvature, constant = np.polyfit(inner, unwrap_phase(np.angle(probe)).ravel(), 1)
    amplitude = np.pad(np.abs(probe), (size - len(probe)) // 2, mode="edge")
    phase = unwrap_phase(np.angle(np.exp(1j * (curvature * squared_radius(size) + constant))))
    return gaussian_filter(amplitude, SMOOTHING) * np.exp(1j * gaussian_filter(phase, SMOOTHING))


def lines_scan(obj: NDArray[np.complex128], probe: NDArray[np.complex128], step: int, rng: np.random.Generator) -> Scan:
    """A scan of ``obj`` on a grid of ``step`` pixels, from corner to corner."""
    along = np.arange(0, SIDE - SIZE + 1, step) + SIZE // 2
    positions = np.stack(np.meshgrid(along, along, indexing="ij"), -1).reshape(-1, 2).astype(float)
    return simulate_measurement(obj, probe, positions, PHOTONS, rng)


class Score(NamedTuple):
    """PtychoPINN's metrics, amplitude and phase (rad)."""

    amplitude_mae: float
    phase_mae: float
    amplitude_ssim: float
    phase_ssim: float


def score(found: Reconstruction, truth: NDArray[np.complexfloating]) -> Score:
    """Over the middle that their tiles cover: from (N − 10)/2 on, as far as the scan's steps reach, less 2 pixels.

    Mean amplitudes are made alike; a plane is taken from both phases, which are then mapped from ±π to 0 … 1 for SSIM;
    SSIM's range is that of the true amplitude, and 1 for phases.
    """
    from skimage.metrics import structural_similarity

    first = (SIZE - TEST_STEP) // 2
    last = first + (SIDE - SIZE) // TEST_STEP * TEST_STEP + TEST_STEP
    low, high = first + 2, last - 2
    top, left = found.origin_yx
    rec = found.object[low - top : high - top, low - left : high - left].astype(complex)
    true = truth[low:high, low:high].astype(complex)
    wanted = np.abs(true)
    amplitude = np.abs(rec) * wanted.mean() / np.abs(rec).mean()
    rec = rec * np.exp(-1j * np.angle(np.vdot(true, rec)))
    phase, sought = without_plane(np.angle(rec)), without_plane(np.angle(true))
    return Score(
        float(np.abs(amplitude - wanted).mean()),
        float(np.abs(phase - sought).mean()),
        structural_similarity(wanted, amplitude, data_range=float(np.ptp(wanted))),
        structural_similarity(*((part + np.pi) / (2 * np.pi) for part in (sought, phase)), data_range=1.0),
    )


def without_plane(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """``phase`` less the plane that is nearest to it."""
    y, x = np.mgrid[: phase.shape[0], : phase.shape[1]]
    design = np.stack([y.ravel(), x.ravel(), np.ones(phase.size)], 1)
    fit, *_ = np.linalg.lstsq(design, phase.ravel(), rcond=None)
    return phase - (design @ fit).reshape(phase.shape)


@torch.no_grad()
def by_tiles(model: PtychoModel, scan: Scan, stitched: Reconstruction) -> Reconstruction:
    """As they stitch: of each patch the middle 10 × 10 pixels, so that each pixel has been told by one pattern alone.

    Their networks settle the phase of each patch; here it is that by which the patches agree.
    """
    photons = scan.photons_per_unit or 1.0
    batch, probe = make_batch(scan, photons), scale_probe_to_photons(scan, photons)
    parts = [batch.take(some) for some in torch.arange(len(scan)).split(64)]
    patches = torch.cat([model.predict(part, shift_probe(probe, part.fractions)) for part in parts])
    weights = compute_power(probe).expand(len(scan), -1, -1)  # all positions lie on the grid
    turns = stitch(patches, weights, batch.corners, make_canvas(batch.corners, SIZE)).phase_factors
    first = (SIZE - TEST_STEP) // 2
    tiles = (patches * turns[:, None, None])[:, first : first + TEST_STEP, first : first + TEST_STEP].numpy()
    canvas = np.ones_like(stitched.object)
    for tile, (row, column) in zip(tiles, (batch.corners + first).numpy() - stitched.origin_yx, strict=True):
        canvas[row : row + TEST_STEP, column : column + TEST_STEP] = tile
    return replace(stitched, object=canvas)


def make_scans(folder: Path, probe: NDArray[np.complex128]) -> None:
    """Two scans to train on, of objects from their seed 1, and the test scan, of the object from their seed 2."""
    training, test = np.random.RandomState(1), np.random.RandomState(2)
    objects = {"train_0": lines_object(training), "train_1": lines_object(training), "test": lines_object(test)}
    for number, (name, obj) in enumerate(objects.items()):
        path = folder / f"{name}.npz"
        if not path.exists():
            step = TEST_STEP if name == "test" else TRAINING_STEP
            save_scan(path, lines_scan(obj, probe, step, np.random.default_rng(number)))


def verb(folder: Path, done: str, *words: object) -> float:
    """Run a command as a person would, unless its result is there; the seconds of the processor that it took."""
    clock = folder / "seconds.json"
    if not (folder / done).exists() or not clock.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = ("-m", *words, "--output_dir", folder, "--quiet")
        print(f"`python {' '.join(map(str, words))}`\n", flush=True)
        subprocess.run([sys.executable, *map(str, words)], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock.write_text(json.dumps(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return float(json.loads(clock.read_text()))


def row(name: str, found: Score, told: str) -> str:
    return f"| {name} | {' | '.join(f'{figure:.4f}' for figure in found)} | {told} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", type=Path, required=True, help="file with the probe of LCLS run 1084, 64 × 64")
    parser.add_argument("--folder", type=Path, default=Path("lines"))
    parser.add_argument("--epochs", type=int, default=1, help="epochs of training")
    parser.add_argument("--objects", type=int, choices=(1, 2), default=2, help="objects to train on")
    parser.add_argument("--engines", default="pie,lsqml", help="engines beside the network, separated by commas")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    make_scans(folder, enlarged_probe(read_probe(arguments.probe, 64, "--probe").modes[0].astype(np.complex128)))
    path = folder / "test.npz"
    scan = load_scan(path)
    assert scan.truth is not None
    training = ("--train_data_file", *(folder / f"train_{number}.npz" for number in range(arguments.objects)))
    words = ("--network", "refined_unet", "--head", "residual", "--max_epochs", arguments.epochs, "--logger", "none")
    model = folder / f"model_{arguments.objects}_{arguments.epochs}"
    seconds = verb(model, "bundle.json", "ptycho_torch.train", *training, *words)
    place = model.with_name(f"pass_{model.name}")
    asked = ("--model_path", model, "--test_data", path, "--no_report")
    spent = verb(place, "reconstruction.npz", "ptycho_torch.inference", *asked)
    found = load_reconstruction(place / "reconstruction.npz")
    rows = [
        "| | amplitude MAE | phase MAE | amplitude SSIM | phase SSIM | CPU s |\n|---|---|---|---|---|---|",
        row("network", score(found, scan.truth), f"{seconds:.0f} + {spent:.0f}"),
        row("network, their tiles", score(by_tiles(load_model(model).model, scan, found), scan.truth), ""),
    ]
    for name in filter(None, arguments.engines.split(",")):
        spent = verb(
            folder / name, "reconstruction.npz", "ptycho_torch.reconstruct", path, "--engine", name, "--no_report"
        )
        found = load_reconstruction(folder / name / "reconstruction.npz")
        rows.append(row(f"`{name}`", score(found, scan.truth), f"{spent:.0f}"))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
