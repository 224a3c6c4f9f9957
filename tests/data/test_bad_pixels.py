"""Defective pixels are found with their kind, and no pixel of an intact detector is reported."""

from typing import Any

import numpy as np
import pytest

import ptycho_torch as pt
from ptycho_torch.data.bad_pixels import find_bad_pixels

Array = np.ndarray[Any, Any]
KINDS = ("dark", "constant", "saturated", "hot")


def simulate_counts(photons: float = 1e6, **settings: Any) -> Array:
    scan = pt.simulate_scan("tiny", photons=photons, size=64, positions=100, seed=0, **settings)
    return np.rint(np.square(scan.amplitudes, dtype=np.float64))


@pytest.fixture(scope="module")
def counts() -> Array:
    return simulate_counts()


def test_each_kind_of_defect_is_found_where_it_is(counts: Array) -> None:
    frames = counts.copy()
    frames[:, 33, 30] = 0
    frames[:, 5, 7] = 12
    limit = np.quantile(frames[:, 31, 31], 0.6)
    frames[:, 31, 31] = np.minimum(frames[:, 31, 31], limit)
    frames[:, 60, 50] = np.random.default_rng(0).poisson(9000, len(frames))
    found = find_bad_pixels(frames)
    places = {kind: np.argwhere(getattr(found, kind)).tolist() for kind in KINDS}
    assert places == {"dark": [[33, 30]], "constant": [[5, 7]], "saturated": [[31, 31]], "hot": [[60, 50]]}
    assert "1 dark (the first at [33, 30])" in found.describe()


def test_beam_stop_is_found_whole(counts: Array) -> None:
    stop = np.hypot(*(np.mgrid[:64, :64] - 32)) < 14
    found = find_bad_pixels(np.where(stop, 0, counts))
    assert (found.dark == stop).all()


def test_masked_pixels_are_not_reported(counts: Array) -> None:
    stop = np.hypot(*(np.mgrid[:64, :64] - 32)) < 14
    assert not find_bad_pixels(np.where(stop, 0, counts), ~stop).combined.any()


@pytest.mark.parametrize("photons", [1e3, 1e6])
@pytest.mark.parametrize("probe", ["structured", "gaussian", "zone_plate", "vortex"])
@pytest.mark.parametrize("obj", ["letters", "gratings", "flat"])
def test_intact_detector_has_no_defect(photons: float, probe: str, obj: str) -> None:
    found = find_bad_pixels(simulate_counts(photons, probe=probe, object=obj))
    assert found.describe() == ""


def test_frames_without_variation_have_no_defect() -> None:
    frame = np.random.default_rng(0).poisson(50, (32, 32))
    assert not find_bad_pixels(np.repeat(frame[None], 30, 0)).combined.any()
