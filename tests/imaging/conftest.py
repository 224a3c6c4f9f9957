"""A scan whose object is known everywhere: a smooth asymmetric formula, so that it can be sampled between pixels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.forward import from_object, probe_at
from ptycho_torch.physics.patches import frame_of, place_patches, split_positions

Complex = NDArray[np.complex128]
SHAPE = (85, 74)
PHOTONS_PER_UNIT = 2.5


class Known(NamedTuple):
    """A scan, its true object (origin (0, 0)), and that object as a reconstruction on the frame of the scan."""

    scan: Scan
    truth: Complex
    reconstruction: Reconstruction


def field(rows: NDArray[Any], columns: NDArray[Any]) -> Complex:
    """The object at coordinates of any fraction: no symmetry, periods of 5 pixels and more, no zeros."""
    y, x = rows[:, None], columns[None, :]
    rng = np.random.default_rng(3)
    amplitude, angle = 0.0 * (y + x), 0.0 * (y + x)
    for _ in range(12):
        ky, kx = rng.uniform(-1, 1, 2) * 0.9
        amplitude = amplitude + 0.04 * np.cos(ky * y + kx * x + rng.uniform(0, 6))
        angle = angle + 0.35 * np.cos(ky * x - kx * y + rng.uniform(0, 6))
    return np.asarray((0.8 + amplitude) * np.exp(1j * angle), np.complex128)


def make_probe(size: int, modes: int, photons: float) -> Complex:
    """A lopsided, curved Gaussian and its derivatives, (modes, size, size); ``photons`` in all."""
    axis = np.arange(size) - size // 2
    y, x = axis[:, None] - 0.7, axis[None, :] + 1.2
    spot = np.exp(-(y**2 + 1.3 * x**2 + 0.3 * x * y) / (2 * (size / 7) ** 2) + 0.02j * (y**2 - 0.5 * x**2))
    probe = np.stack([spot * (0.4 * (y + 2 * x) / size) ** mode for mode in range(modes)])
    return np.asarray(probe * np.sqrt(photons / np.sum(np.abs(probe) ** 2)), np.complex128)


def make_known(size: int = 24, modes: int = 1, photons: float = 1e5, noise: bool = False) -> Known:
    """Simulate 90 jittered positions with the package's own forward model in complex128."""
    rng = np.random.default_rng(5)
    truth = field(np.arange(SHAPE[0]), np.arange(SHAPE[1]))
    edge = size // 2 + 5
    lattice = np.mgrid[edge : SHAPE[0] - edge : 10j, edge : SHAPE[1] - edge : 9j].reshape(2, -1).T
    positions = lattice + rng.uniform(-1, 1, lattice.shape)
    probe = make_probe(size, modes, photons)
    rates = from_object(*map(torch.from_numpy, (truth, probe, positions))).intensity.numpy()
    counts = rng.poisson(rates) if noise else rates
    amplitudes = np.fft.fftshift(np.sqrt(counts / PHOTONS_PER_UNIT), axes=(-2, -1)).astype(np.float32)
    scan = Scan(amplitudes, positions, probe.astype(np.complex64), truth=truth.astype(np.complex64))
    return Known(scan, truth, on_frame(truth, probe, positions))


def on_frame(truth: Complex, probe: Complex, positions: NDArray[np.float64]) -> Reconstruction:
    """The true object cut to the frame of the scan, with its illumination."""
    corners, fractions = split_positions(torch.from_numpy(positions), probe.shape[-1])
    frame = frame_of(corners, probe.shape[-1])
    power = probe_at(torch.from_numpy(probe), fractions).abs().square().sum(1)
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


@pytest.fixture(scope="session")
def known() -> Known:
    """Without noise."""
    return make_known()


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Known]:
    """Makes a known scan from ``size``, ``modes``, ``photons`` and ``noise``."""
    return make_known


@pytest.fixture(scope="session")
def object_at() -> Callable[..., Complex]:
    """Samples the object's formula at any rows and columns."""
    return field
