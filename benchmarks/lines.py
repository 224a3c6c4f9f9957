"""The line-object benchmark that PtychoPINN publishes, reproduced from its description.

::

    python benchmarks/lines.py --probe Run1084_twin_legacy.npz --folder lines

N = 128, single patterns, 10⁹ photons per pattern. The network is trained on the patterns of two objects, without a
truth, and reconstructs the scan of a third in one pass; the metrics are those of PtychoPINN. Engines on the same scan
give a lower bound of the error. Scans and results stay in the folder and are reused. Prints one Markdown table.
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
from ptycho_torch.io.inputs import read_probe
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan, save_scan
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
"""Lines in a field of twice that side; the object is its middle."""

BLURS = ((1.0, 1.0), (5.0, 2.0), (10.0, 5.0))
"""Standard deviation (pixels) and weight of each blurred copy in the sum."""

SIZE = 128
"""N."""

PHOTONS = 1e9
"""Mean photons per pattern."""

TRAINING_STEP, TEST_STEP = 4, 10
"""Pixels between scan positions."""

SMOOTHING = 0.5
"""Standard deviation (pixels) by which amplitude and phase of the enlarged probe are smoothed."""


def make_object(random: np.random.RandomState) -> NDArray[np.complex128]:
    """Return an object of lines, (392, 392): blurred lines as amplitude, and a phase computed from the amplitude."""
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


def enlarge_probe(probe: NDArray[np.complexfloating], size: int = SIZE) -> NDArray[np.complex128]:
    """Return ``probe`` in a field of ``size``: amplitude padded by its edge, phase the nearest a·r² + b."""
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import unwrap_phase

    def squared_radius(side: int) -> NDArray[np.float64]:
        offset = np.arange(side) - (side - 1) / 2
        return offset[:, None] ** 2 + offset**2

    inner = squared_radius(len(probe)).ravel()
    curvature, constant = np.polyfit(inner, unwrap_phase(np.angle(probe)).ravel(), 1)
    amplitude = np.pad(np.abs(probe), (size - len(probe)) // 2, mode="edge")
    phase = unwrap_phase(np.angle(np.exp(1j * (curvature * squared_radius(size) + constant))))
    return gaussian_filter(amplitude, SMOOTHING) * np.exp(1j * gaussian_filter(phase, SMOOTHING))


def make_scan(obj: NDArray[np.complex128], probe: NDArray[np.complex128], step: int, rng: np.random.Generator) -> Scan:
    """Return a scan of ``obj`` on a grid of ``step`` pixels, from corner to corner."""
    along = np.arange(0, SIDE - SIZE + 1, step) + SIZE // 2
    positions = np.stack(np.meshgrid(along, along, indexing="ij"), -1).reshape(-1, 2).astype(float)
    return simulate_measurement(obj, probe, positions, PHOTONS, rng)


class Score(NamedTuple):
    """The metrics of PtychoPINN: amplitude and phase (rad)."""

    amplitude_mae: float
    phase_mae: float
    amplitude_ssim: float
    phase_ssim: float


def compute_score(found: Reconstruction, truth: NDArray[np.complexfloating]) -> Score:
    """Compute the metrics over the area of PtychoPINN's tiles: from (N − 10)/2 to the last step, minus 2 pixels.

    Mean amplitudes are equalized, and a plane is subtracted from both phases. For SSIM phases are mapped from ±π to
    0 … 1; the data range is the range of the true amplitude, and 1 for phases.
    """
    from skimage.metrics import structural_similarity

    first = (SIZE - TEST_STEP) // 2
    last = first + (SIDE - SIZE) // TEST_STEP * TEST_STEP + TEST_STEP
    low, high = first + 2, last - 2
    top, left = found.origin_yx
    rec = found.object[low - top : high - top, low - left : high - left].astype(complex)
    true = truth[low:high, low:high].astype(complex)
    true_amplitude = np.abs(true)
    amplitude = np.abs(rec) * true_amplitude.mean() / np.abs(rec).mean()
    rec = rec * np.exp(-1j * np.angle(np.vdot(true, rec)))
    phase, true_phase = subtract_plane(np.angle(rec)), subtract_plane(np.angle(true))
    return Score(
        float(np.abs(amplitude - true_amplitude).mean()),
        float(np.abs(phase - true_phase).mean()),
        structural_similarity(true_amplitude, amplitude, data_range=float(np.ptp(true_amplitude))),
        structural_similarity(*((part + np.pi) / (2 * np.pi) for part in (true_phase, phase)), data_range=1.0),
    )


def subtract_plane(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``phase`` minus its least-squares plane."""
    y, x = np.mgrid[: phase.shape[0], : phase.shape[1]]
    design = np.stack([y.ravel(), x.ravel(), np.ones(phase.size)], 1)
    fit, *_ = np.linalg.lstsq(design, phase.ravel(), rcond=None)
    return phase - (design @ fit).reshape(phase.shape)


@torch.no_grad()
def stitch_tiles(model: PtychoModel, scan: Scan, stitched: Reconstruction) -> Reconstruction:
    """Stitch as PtychoPINN does: the middle 10 × 10 pixels of each patch, so that each pixel depends on one pattern.

    The phase of each patch comes from phase synchronization; the networks of PtychoPINN determine it.
    """
    photons = scan.photons_per_unit or 1.0
    batch, probe = make_batch(scan, photons), scale_probe_to_photons(scan, photons)
    parts = [batch.take(rows) for rows in torch.arange(len(scan)).split(64)]
    patches = torch.cat([model.predict(part, shift_probe(probe, part.fractions)) for part in parts])
    weights = compute_power(probe).expand(len(scan), -1, -1)  # all positions lie on the grid
    phase_factors = stitch(patches, weights, batch.corners, make_canvas(batch.corners, SIZE)).phase_factors
    first = (SIZE - TEST_STEP) // 2
    tiles = (patches * phase_factors[:, None, None])[:, first : first + TEST_STEP, first : first + TEST_STEP].numpy()
    canvas = np.ones_like(stitched.object)
    for tile, (row, column) in zip(tiles, (batch.corners + first).numpy() - stitched.origin_yx, strict=True):
        canvas[row : row + TEST_STEP, column : column + TEST_STEP] = tile
    return replace(stitched, object=canvas)


def make_scans(folder: Path, probe: NDArray[np.complex128]) -> None:
    """Write two training scans (objects of PtychoPINN's seed 1) and the test scan (seed 2)."""
    training, test = np.random.RandomState(1), np.random.RandomState(2)
    objects = {"train_0": make_object(training), "train_1": make_object(training), "test": make_object(test)}
    for number, (name, obj) in enumerate(objects.items()):
        path = folder / f"{name}.npz"
        if not path.exists():
            step = TEST_STEP if name == "test" else TRAINING_STEP
            save_scan(path, make_scan(obj, probe, step, np.random.default_rng(number)))


def run_command(folder: Path, done: str, *words: object) -> float:
    """Run a command unless its result exists; return its processor seconds."""
    clock = folder / "seconds.json"
    if not (folder / done).exists() or not clock.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = ("-m", *words, "--output_dir", folder, "--quiet")
        print(f"`python {' '.join(map(str, words))}`\n", flush=True)
        subprocess.run([sys.executable, *map(str, words)], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock.write_text(json.dumps(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return float(json.loads(clock.read_text()))


def row(name: str, found: Score, note: str) -> str:
    """Return one row of the table."""
    return f"| {name} | {' | '.join(f'{figure:.4f}' for figure in found)} | {note} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", type=Path, required=True, help="file with the probe of LCLS run 1084, 64 × 64")
    parser.add_argument("--folder", type=Path, default=Path("lines"))
    parser.add_argument("--epochs", type=int, default=1, help="epochs of training")
    parser.add_argument("--objects", type=int, choices=(1, 2), default=2, help="training objects")
    parser.add_argument("--engines", default="pie,lsqml", help="engines to compare, separated by commas")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    make_scans(folder, enlarge_probe(read_probe(arguments.probe, 64, "probe").modes[0].astype(np.complex128)))
    path = folder / "test.npz"
    scan = load_scan(path)
    assert scan.truth is not None
    training = ("--train_data_file", *(folder / f"train_{number}.npz" for number in range(arguments.objects)))
    words = ("--network", "refined_unet", "--head", "residual", "--max_epochs", arguments.epochs, "--logger", "none")
    model = folder / f"model_{arguments.objects}_{arguments.epochs}"
    seconds = run_command(model, "bundle.json", "ptycho_torch.train", *training, *words)
    result = model.with_name(f"pass_{model.name}")
    flags = ("--model_path", model, "--test_data", path, "--no_report")
    spent = run_command(result, "reconstruction.npz", "ptycho_torch.inference", *flags)
    found = load_reconstruction(result / "reconstruction.npz")
    rows = [
        "| | amplitude MAE | phase MAE | amplitude SSIM | phase SSIM | CPU s |\n|---|---|---|---|---|---|",
        row("network", compute_score(found, scan.truth), f"{seconds:.0f} + {spent:.0f}"),
        row("network, tiles", compute_score(stitch_tiles(load_model(model).model, scan, found), scan.truth), ""),
    ]
    for name in filter(None, arguments.engines.split(",")):
        spent = run_command(
            folder / name, "reconstruction.npz", "ptycho_torch.reconstruct", path, "--engine", name, "--no_report"
        )
        found = load_reconstruction(folder / name / "reconstruction.npz")
        rows.append(row(f"`{name}`", compute_score(found, scan.truth), f"{spent:.0f}"))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
