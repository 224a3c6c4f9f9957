"""Scans, files, results and document blocks for several tests; the scans are small and without symmetry."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.core.observer import Observer
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import paste_object
from ptycho_torch.engines.measurement_model import MeasurementModel
from ptycho_torch.engines.state import ReconstructionState, make_measurement, make_vacuum_state
from ptycho_torch.physics.batch import make_batch
from ptycho_torch.physics.forward import from_object, shift_probe
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.physics.patches import extract_patches, make_canvas, place_patches, split_positions

ROOT = Path(__file__).parents[1]
Complex = NDArray[np.complex128]
SHAPE = (85, 74)
PHOTONS_PER_UNIT = 2.5


Arrays = dict[str, NDArray[Any]]


class CommandOutcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def make_probe(size: int, modes: int = 1) -> NDArray[np.complex64]:
    """A bright spot with a curved phase and no symmetry; further modes are weaker and of another shape."""
    y, x = np.mgrid[:size, :size] - size / 2
    spot = np.exp(-((y - 1) ** 2 + 1.3 * (x + 0.5) ** 2 + 0.3 * x * y) / (2 * (size / 6) ** 2))
    curved = spot * np.exp(2j * (y**2 + 0.7 * x**2 + 0.5 * y) / size)
    return np.stack([curved * (0.3 * (x + mode) / size * 4) ** mode for mode in range(modes)]).astype(np.complex64)


def make_object(rows: int, columns: int) -> NDArray[np.complex128]:
    """Amplitude 0.7 to 1 and phase up to 1 rad: waves, and a bar that no rotation or mirror keeps."""
    y, x = np.mgrid[:rows, :columns]
    texture = np.sin(y / 3.1) * np.cos(x / 4.3 + y / 11) / 2 + 0.5
    bar = (np.abs(y - 0.4 * rows) < 3) & (x > 0.3 * columns)
    return (1 - 0.3 * texture) * np.exp(1j * (0.6 * texture + 0.4 * bar))


def make_scan(n: int = 36, size: int = 24, seed: int = 0, modes: int = 1, photons: float = 2e4) -> Scan:
    """A jittered raster of ``n`` positions, about 4 px apart, over an object with room to spare; Poisson counts.

    ``photons`` is the mean total of a pattern; 0 leaves out the counting noise (at 1e4 photons).
    """
    rng = np.random.default_rng(seed)
    columns = int(np.ceil(np.sqrt(n)))
    grid = np.stack(np.divmod(np.arange(n), columns), 1) * 4.0
    positions = grid + rng.uniform(-1, 1, (n, 2)) + size // 2 + 4
    obj = make_object(*(int(extent) + size for extent in positions.max(0) + 4)).astype(np.complex64)
    probe = make_probe(size, modes)
    fields = (torch.from_numpy(array).to(torch.complex128) for array in (obj, probe))
    expected = from_object(*fields, torch.from_numpy(positions)).intensity.numpy()
    expected *= (photons or 1e4) / expected.sum((1, 2)).mean()
    counts = rng.poisson(expected) if photons else expected
    amplitudes = np.fft.fftshift(np.sqrt(counts), axes=(1, 2)).astype(np.float32)
    return Scan(amplitudes, positions, probe, truth=obj, photons_per_unit=1.0)


class SimulatedCase(NamedTuple):
    """A scan, its true object (origin (0, 0)), and that object as a reconstruction on the frame of the scan."""

    scan: Scan
    truth: Complex
    reconstruction: Reconstruction


def evaluate_object(rows: NDArray[Any], columns: NDArray[Any]) -> Complex:
    """The object at coordinates of any fraction: no symmetry, periods of 5 pixels and more, no zeros."""
    y, x = rows[:, None], columns[None, :]
    rng = np.random.default_rng(3)
    amplitude, angle = 0.0 * (y + x), 0.0 * (y + x)
    for _ in range(12):
        ky, kx = rng.uniform(-1, 1, 2) * 0.9
        amplitude = amplitude + 0.04 * np.cos(ky * y + kx * x + rng.uniform(0, 6))
        angle = angle + 0.35 * np.cos(ky * x - kx * y + rng.uniform(0, 6))
    return np.asarray((0.8 + amplitude) * np.exp(1j * angle), np.complex128)


def make_probe_of_power(size: int, modes: int, photons: float) -> Complex:
    """A lopsided, curved Gaussian and its derivatives, (modes, size, size); ``photons`` in all."""
    axis = np.arange(size) - size // 2
    y, x = axis[:, None] - 0.7, axis[None, :] + 1.2
    spot = np.exp(-(y**2 + 1.3 * x**2 + 0.3 * x * y) / (2 * (size / 7) ** 2) + 0.02j * (y**2 - 0.5 * x**2))
    probe = np.stack([spot * (0.4 * (y + 2 * x) / size) ** mode for mode in range(modes)])
    return np.asarray(probe * np.sqrt(photons / np.sum(np.abs(probe) ** 2)), np.complex128)


def make_simulated_case(size: int = 24, modes: int = 1, photons: float = 1e5, noise: bool = False) -> SimulatedCase:
    """Simulate 90 jittered positions with the package's own forward model in complex128."""
    rng = np.random.default_rng(5)
    truth = evaluate_object(np.arange(SHAPE[0]), np.arange(SHAPE[1]))
    edge = size // 2 + 5
    lattice = np.mgrid[edge : SHAPE[0] - edge : 10j, edge : SHAPE[1] - edge : 9j].reshape(2, -1).T
    positions = lattice + rng.uniform(-1, 1, lattice.shape)
    probe = make_probe_of_power(size, modes, photons)
    rates = from_object(*map(torch.from_numpy, (truth, probe, positions))).intensity.numpy()
    counts = rng.poisson(rates) if noise else rates
    amplitudes = np.fft.fftshift(np.sqrt(counts / PHOTONS_PER_UNIT), axes=(-2, -1)).astype(np.float32)
    scan = Scan(amplitudes, positions, probe.astype(np.complex64), truth=truth.astype(np.complex64))
    return SimulatedCase(scan, truth, make_true_reconstruction(truth, probe, positions))


def make_true_reconstruction(truth: Complex, probe: Complex, positions: NDArray[np.float64]) -> Reconstruction:
    """The true object cut to the frame of the scan, with its illumination."""
    corners, fractions = split_positions(torch.from_numpy(positions), probe.shape[-1])
    frame = make_canvas(corners, probe.shape[-1])
    power = shift_probe(torch.from_numpy(probe), fractions).abs().square().sum(1)
    top, left = frame.origin
    return Reconstruction(
        object=truth[top : top + frame.shape[0], left : left + frame.shape[1]].astype(np.complex64),
        coverage=place_patches(power, corners - torch.tensor(frame.origin), frame.shape).numpy().astype(np.float32),
        origin_yx=np.array(frame.origin, np.int64),
        probe=probe.astype(np.complex64),
        positions=positions,
        photons_per_unit=PHOTONS_PER_UNIT,
        history={"epoch": [1.0, 2.0, 3.0], "loss": [3.0, 2.0, 1.5], "val_loss": [3.5, 2.5, 2.1]},
        metadata={"method": "the truth itself"},
    )


def make_canonical_arrays(n: int = 5, size: int = 8, seed: int = 0) -> Arrays:
    """The arrays of a valid file in the canonical layout without metadata: Poisson counts, brightest in the middle."""
    rng = np.random.default_rng(seed)
    axis = np.arange(size) - size // 2
    envelope = np.exp(-(axis[:, None] ** 2 + 1.5 * axis**2) / (size / 3) ** 2)
    counts = rng.poisson(400 * envelope * rng.uniform(0.5, 1.5, (n, size, size)))
    field = rng.normal(size=(2, size, size))
    obj = rng.normal(size=(2, size + 20, size + 23))
    positions = rng.uniform(size // 2 + 1, size // 2 + 18, (2, n))
    return {
        "diffraction": np.sqrt(counts).astype(np.float32),
        "probeGuess": (envelope * (field[0] + 1j * field[1])).astype(np.complex64),
        "objectGuess": (obj[0] + 1j * obj[1]).astype(np.complex64),
        "xcoords": positions[0],
        "ycoords": positions[1],
    }


def make_legacy_arrays(n: int = 5, size: int = 8, seed: int = 0) -> Arrays:
    """The same scan in the legacy layout: (H, W, n), float64, complex128."""
    arrays = make_canonical_arrays(n, size, seed)
    return arrays | {
        "diffraction": np.moveaxis(arrays["diffraction"], 0, 2).astype(np.float64),
        "probeGuess": arrays["probeGuess"].astype(np.complex128),
        "objectGuess": arrays["objectGuess"].astype(np.complex128),
    }


def scale_probe_to_truth(scan: Scan) -> torch.Tensor:
    """Return the probe (M, N, N) with the power that gives the photons of the scan through its true object."""
    assert scan.truth is not None
    obj, probe = (torch.from_numpy(array).to(torch.complex128) for array in (scan.truth, scan.probe))
    expected = from_object(obj, probe, torch.from_numpy(scan.positions)).intensity.sum()
    counts = np.square(scan.amplitudes, dtype=np.float64).sum()
    return torch.from_numpy(scan.probe) * float(np.sqrt(counts / float(expected)))


class TruePatchNetwork(torch.nn.Module):
    """A network that identifies each pattern of a scan and returns its true patch."""

    def __init__(self, scan: Scan) -> None:
        super().__init__()
        assert scan.truth is not None
        batch = make_batch(scan, 1.0)
        self.amplitudes = batch.amplitudes
        self.patches = extract_patches(torch.from_numpy(scan.truth), batch.corners, scan.size)

    def compute_channels(self, amplitudes: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
        del probe
        return amplitudes[:, None]

    def forward(self, amplitudes: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self.patches[torch.cdist(amplitudes.flatten(1), self.amplitudes.flatten(1)).argmin(1)]


def finish_pipeline(pipeline: Any, observer: Observer | None = None) -> Any:
    """Run the remaining stages of a pipeline in progress, and return it."""
    assert pipeline.run(observer)
    return pipeline


def list_python_blocks(page: Path) -> list[str]:
    """Return the Python blocks of a Markdown page, except those behind a comment ``<!-- not run: reason -->``."""
    blocks = re.finditer(
        r"(<!-- not run: \S[^>]*-->\s*)?```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
    )
    return [block[2] for block in blocks if not block[1]]


def run_python_blocks(page: Path) -> dict[str, Any]:
    """Run the Python blocks of a page in order, in one namespace; return the namespace."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for number, block in enumerate(list_python_blocks(page), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    return namespace


def make_true_state(scan: Scan, margin: int = 2) -> ReconstructionState:
    """Return the state at the true object, probe and positions of ``scan``."""
    state = make_vacuum_state(torch.from_numpy(scan.positions.copy()), torch.from_numpy(scan.probe), margin)
    assert scan.truth is not None
    state.object = paste_object(state, scan.truth, np.zeros(2, np.int64))
    return state


def make_measurement_model(scan: Scan, state: ReconstructionState) -> MeasurementModel:
    """Return the measurement model of ``scan`` at ``state``, with amplitude noise and a probe that may change."""
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    return MeasurementModel(measurement, state, fixed_probe=False)
