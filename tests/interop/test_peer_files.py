"""Read the files that other programs write, and write files that other programs read.

Each program's own writer stores a scan without symmetry under its own conventions, and its own forward model
reproduces the patterns from the stored values; see `write_peer_files.py`. The files need the other programs
(`make interop`); tests of absent programs are skipped by name.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from peer_cases import CASES, WrittenFile
from truth import compute_intensities
from write_peer_files import FILES

import ptycho_torch as pt
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.scan import Scan

pytestmark = pytest.mark.interop

LARGEST_POSITION_ERROR_PIXELS = 0.05
LARGEST_INTENSITY_ERROR = 2e-3

PeerFile = Callable[[str, int], WrittenFile]

SETTINGS: dict[str, dict[str, Any]] = {
    "emdfile": {"voltage_kv": 200.0},
    "ptyrad": {"measurement": "counts"},
    "phaser": {"measurement": "counts"},
}
"""Settings for facts that a file does not contain."""

PATTERNS_BESIDE = ("ptyrad", "phaser")
"""Results without patterns, which the test gives by `patterns_file`."""

WITH_MASK = ("cdtools", "ptychodus", "ptypy")
"""Programs whose files hold a mask."""

WITH_OBJECT = (
    "ptychodus",
    "ptychodus_cxi",
    "ptychodus_npz",
    "ptychodus_training",
    "ptychodus_ptychopinn",
    "xptycho",
    "ptyrad",
    "phaser",
)
"""Files whose object, probe and positions give the patterns without a further constant."""


def read(name: str, written: WrittenFile) -> Scan:
    """Read a file with the settings it needs."""
    settings = dict(SETTINGS.get(name, {}))
    if name in PATTERNS_BESIDE:
        settings["patterns_file"] = written.path.with_name(f"{written.path.stem}_patterns.npy")
    return pt.load_scan(written.path, **settings)


def make_expected_mask(name: str, side: int) -> NDArray[np.bool_]:
    """Return the pixels that count, as the file states them."""
    mask = np.ones((side, side), bool)
    if FILES[name].program in WITH_MASK and name not in ("ptycho_fm", "fold_slice"):
        mask[2, 5:9] = False
    if name == "empad":  # the border that phaser masks
        mask[[0, 1, -2, -1]] = mask[:, [0, 1, -2, -1]] = False
    return mask


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest, peer_file: PeerFile) -> tuple[str, WrittenFile, Scan]:
    """Name, file and scan of each program and side."""
    name, side = request.param
    written = peer_file(name, side)
    return name, written, read(name, written)


def test_positions_are_those_of_the_truth_up_to_a_constant(case: tuple[str, WrittenFile, Scan]) -> None:
    """Compare positions in object pixels, in the order of the patterns."""
    _, written, scan = case
    difference = scan.positions - written.arrays["positions_yx"]
    assert np.abs(difference - difference.mean(0)).max() < LARGEST_POSITION_ERROR_PIXELS


def test_patterns_are_the_counts_in_their_order_and_orientation(case: tuple[str, WrittenFile, Scan]) -> None:
    """Compare squared amplitudes with the counts: any flip, shift or permutation differs."""
    name, written, scan = case
    counts = written.arrays["counts"].astype(float)
    mask = make_expected_mask(name, counts.shape[-1])
    found = np.ones_like(mask) if scan.mask is None else scan.mask
    np.testing.assert_array_equal(np.broadcast_to(found, scan.amplitudes.shape)[0], mask)
    photons = scan.amplitudes.astype(float) ** 2 * (scan.photons_per_unit or 1.0)
    np.testing.assert_allclose(photons[:, mask], counts[:, mask], rtol=1e-5, atol=1e-3)


def test_geometry_is_that_of_the_truth(case: tuple[str, WrittenFile, Scan]) -> None:
    """Compare wavelength and pixels wherever the file determines them."""
    name, written, scan = case
    geometry = scan.geometry or Geometry()
    assert geometry.radiation == written.facts["radiation"]
    for field in ("wavelength_m", "distance_m"):
        if getattr(geometry, field) is not None and written.facts[field] is not None:
            assert getattr(geometry, field) == pytest.approx(written.facts[field], rel=1e-4)
    if geometry.object_pixel_m is not None:
        assert geometry.object_pixel_m == pytest.approx((written.facts["object_pixel_m"],) * 2, rel=1e-4)
    if name not in WITHOUT_PIXEL:
        assert geometry.object_pixel_m is not None
    if name not in WITHOUT_WAVELENGTH:
        assert geometry.wavelength_m is not None


WITHOUT_PIXEL = ("ptychodus_ptychopinn",)
"""Files that determine no object pixel."""

WITHOUT_WAVELENGTH = ("ptychodus_ptychopinn", "ptychovit", "ptycho_fm")
"""Files that determine no wavelength."""


@pytest.mark.parametrize(("name", "side"), [case for case in CASES if case[0] in WITH_OBJECT])
def test_object_and_probe_of_the_file_reproduce_the_patterns(name: str, side: int, peer_file: PeerFile) -> None:
    """Compute the intensities by our conventions at our positions of the file's own object and probe."""
    written = peer_file(name, side)
    scan = read(name, written)
    assert scan.truth is not None
    assert scan.probe is not None
    simulated = compute_intensities(scan.truth.astype(complex), scan.probe[0].astype(complex), scan.positions)
    intensities = written.arrays["intensities"]
    simulated *= intensities.sum() / simulated.sum()
    assert np.abs(simulated - intensities).sum() < LARGEST_INTENSITY_ERROR * intensities.sum()
