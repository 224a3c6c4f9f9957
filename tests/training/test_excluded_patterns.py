"""Patterns that do not fit to the others: they change neither the trained network nor the predicted object."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import ptycho_torch as pt
from ptycho_torch.data.scan import Scan
from ptycho_torch.models.saved_model import Model

BAD = np.array([3, 20, 41])


@pytest.fixture(scope="module")
def clean() -> Scan:
    return pt.simulate_scan("tiny", photons=1e6, seed=0)


def spoil(scan: Scan, kind: str) -> Scan:
    """Return the scan with empty, bright or random frames at :data:`BAD`."""
    amplitudes = scan.amplitudes.copy()
    if kind == "noise":
        shape = amplitudes[BAD].shape
        amplitudes[BAD] = np.sqrt(np.random.default_rng(1).poisson(4e6 / shape[-1] ** 2, shape))
    else:
        amplitudes[BAD] *= {"empty": 0.0, "bright": 4.0}[kind]
    return replace(scan, amplitudes=amplitudes, photons_per_unit=1.0)


def train(scan: Scan, gridsize: int) -> Model:
    return pt.fit(scan, epochs=1, gridsize=gridsize, seed=0)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_bad_frames_change_neither_training_nor_object(
    clean: Scan, gridsize: int, caplog: pytest.LogCaptureFixture
) -> None:
    scans = [spoil(clean, kind) for kind in ("empty", "bright", "noise")]
    with caplog.at_level(logging.WARNING):
        models = [train(scan, gridsize) for scan in scans]
    assert "3 of 64 patterns do not fit to the others and are left out: 3, 20, 41" in caplog.text
    results = [models[0].predict(scan) for scan in scans]
    for model, result in zip(models, results, strict=True):
        assert model.provenance["excluded_patterns"] == [BAD.tolist()]
        assert result.metadata["excluded_patterns"] == BAD.tolist()
        for name, value in model.model.state_dict().items():
            assert torch.equal(value, models[0].model.state_dict()[name]), name
        np.testing.assert_array_equal(result.object, results[0].object)


def test_no_pattern_of_a_clean_scan_is_left_out(clean: Scan) -> None:
    model = train(clean, 1)
    assert model.provenance["excluded_patterns"] == [[]]
    assert "excluded_patterns" not in model.predict(clean).metadata
