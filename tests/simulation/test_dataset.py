"""Simulated batches for pretraining: determined by seed and number, consistent with the forward model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter
from ptycho_torch.physics.forward import from_object
from ptycho_torch.physics.patches import check_patches_inside, split_positions
from ptycho_torch.simulation.dataset import SimulatedBatch, SimulatedDataset, SimulatedDatasetSettings, crop_randomly
from ptycho_torch.simulation.detector import (
    MAX_INVERSION_PHOTONS,
    MIN_EXPANSION_PHOTONS,
    draw_mask,
    draw_poisson_counts,
    make_beam_stop,
)
from ptycho_torch.simulation.probe_families import PROBE_FAMILIES
from ptycho_torch.simulation.probes import PROBES, make_incoherent_modes

SMALL = SimulatedDatasetSettings(size=32, patterns=9)


def to_bytes(batch: SimulatedBatch) -> list[bytes]:
    return [b"" if part is None else part.numpy().tobytes() for part in batch]


def predict_rates(batch: SimulatedBatch) -> torch.Tensor:
    obj, probe = batch.object.to(torch.complex128), batch.probe.to(torch.complex128)
    return from_object(obj, probe, batch.positions).intensity


def test_batch_is_a_pure_function_of_seed_and_number() -> None:
    settings = replace(SMALL, masked=0.5, misled=0.5)
    forward = SimulatedDataset(settings)
    batches = {number: to_bytes(forward.make_batch(number)) for number in range(12)}
    backward = SimulatedDataset(settings)
    assert all(to_bytes(backward.make_batch(number)) == batches[number] for number in (11, 2, 10, 3, 0))
    assert len({content[0] for content in batches.values()}) == 12
    endless = forward.iterate_batches(5)
    assert to_bytes(next(endless)) == batches[5]
    assert to_bytes(next(endless)) == batches[6]


def test_other_seed_gives_other_batches() -> None:
    one, other = (SimulatedDataset(replace(SMALL, seed=seed)).make_batch(0) for seed in (0, 1))
    assert not torch.equal(one.amplitudes, other.amplitudes)
    assert not torch.equal(one.positions, other.positions)
    assert one.probe.shape != other.probe.shape or not torch.allclose(one.probe, other.probe)
    assert one.object.shape != other.object.shape or not torch.equal(one.object, other.object)


@pytest.mark.parametrize(("size", "patterns"), [(32, 16), (64, 5), (96, 4), (128, 1)])
def test_batches_have_the_documented_shapes_and_values(size: int, patterns: int) -> None:
    dataset = SimulatedDataset(SimulatedDatasetSettings(size=size, patterns=patterns, masked=0.5, reuse=2))
    for number in range(16):
        batch = dataset.make_batch(number)
        assert batch.amplitudes.shape == (patterns, size, size)
        assert batch.amplitudes.dtype == torch.float32
        assert batch.probe.shape[1:] == (size, size)
        assert batch.probe.dtype == batch.object.dtype == torch.complex64
        assert batch.positions.shape == (patterns, 2)
        assert batch.positions.dtype == torch.float64
        check_patches_inside(split_positions(batch.positions, size).corners, size, batch.object.shape)
        assert all(torch.isfinite(torch.view_as_real(part)).all() for part in (batch.probe, batch.object))
        counts = batch.amplitudes.double().square()
        assert ((counts - counts.round()).abs() <= 1e-6 * counts + 1e-6).all()
        photons = batch.probe.abs().double().square().sum()
        assert float(photons) == pytest.approx(max(float(counts.sum()) / patterns, 1), rel=1e-4)
        assert batch.assumed_probe is batch.probe
        if batch.mask is not None:
            assert batch.mask.shape == (1, size, size)
            assert (batch.amplitudes[~batch.mask.expand_as(batch.amplitudes)] == 0).all()


@pytest.mark.parametrize("photons", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_object_and_probe_give_the_expectation_of_the_counts(photons: float, masked: float) -> None:
    """Pearson's χ² and the mean, over bright pixels; the factor between probe and object cancels."""
    dataset = SimulatedDataset(replace(SMALL, photons=(photons, photons), masked=masked))
    residuals, ratios, totals = [], [], []
    for number in range(12):
        batch = dataset.make_batch(number)
        rates, counts = predict_rates(batch), batch.amplitudes.double().square()
        kept = torch.ones_like(rates, dtype=torch.bool) if batch.mask is None else batch.mask.expand_as(rates)
        bright = kept & (rates > 1)
        residuals.append(((counts - rates).square() / rates)[bright])
        ratios.append(float(counts[kept].sum() / rates[kept].sum()))
        totals.append(float(rates.sum()) / len(counts))
    assert float(torch.cat(residuals).mean()) == pytest.approx(1, abs=0.05)
    assert np.mean(ratios) == pytest.approx(1, abs=4 / np.sqrt(photons * 12 * 9) + 1e-5)
    assert totals == pytest.approx([photons] * 12, rel=1e-3)


def test_doses_are_log_uniform() -> None:
    dataset = SimulatedDataset(replace(SMALL, patterns=2, masked=0.0))
    doses = np.log10([float(dataset.make_batch(number).amplitudes.square().sum()) / 2 for number in range(150)])
    assert 2.8 < doses.min() < 3.4
    assert 6.6 < doses.max() < 7.2
    assert doses.mean() == pytest.approx(5, abs=0.35)


@pytest.mark.parametrize("trajectory", ["raster", "spiral", "grid"])
def test_steps_match_the_overlap(trajectory: str) -> None:
    for overlap in (0.35, 0.8):
        settings = replace(SMALL, overlap=(overlap, overlap), trajectories=(trajectory,), patterns=16)
        dataset = SimulatedDataset(settings, [PROBES["disk"](32)])
        batch = dataset.make_batch(7)
        step = (1 - overlap) * compute_probe_diameter(batch.probe.numpy())
        median_step = compute_median_step(batch.positions.numpy())
        assert median_step is not None
        assert 0.2 * step < median_step < 1.4 * step
        if trajectory == "grid":
            assert median_step == pytest.approx(step, rel=1e-3)


def test_given_probes_are_used_and_perturbed() -> None:
    given = [make_incoherent_modes(PROBES["structured"](32), 2), PROBES["disk"](32) * 17]
    only = replace(SMALL, families=())
    dataset = SimulatedDataset(only, given)
    mode_counts = {batch.probe.shape[0] for batch in (dataset.make_batch(number) for number in range(12))}
    assert mode_counts == {1, 2}
    disk = [batch.probe for batch in map(dataset.make_batch, range(12)) if len(batch.probe) == 1]
    shape = disk[0] / disk[0].abs().max()
    assert all(torch.allclose(probe / probe.abs().max(), shape, atol=1e-5) for probe in disk)
    other = SimulatedDataset(replace(only, variation=1.0), given[1:]).make_batch(0).probe
    assert not torch.allclose(other / other.abs().max(), shape, atol=1e-2)
    with pytest.raises(ConfigError, match="no probe is given"):
        SimulatedDataset(only)


def test_assumed_probe_differs_with_equal_power() -> None:
    batch = SimulatedDataset(replace(SMALL, misled=1.0)).make_batch(0)
    true, assumed = (part.abs().square().sum((-2, -1)).sum() for part in (batch.probe, batch.assumed_probe))
    assert float(true) == pytest.approx(float(assumed), rel=1e-4)
    assert not torch.allclose(batch.probe, batch.assumed_probe, rtol=1e-2, atol=1e-2)


def test_object_absorbs_an_error_of_the_probe_power() -> None:
    exact, off = (SimulatedDataset(replace(SMALL, power_error=error)).make_batch(3) for error in (0.0, 0.3))
    assert not torch.allclose(exact.probe, off.probe, rtol=1e-3)
    assert torch.equal(exact.amplitudes, off.amplitudes)
    assert torch.allclose(predict_rates(exact), predict_rates(off), rtol=1e-4, atol=1e-3)


def test_consecutive_batches_use_different_parts_of_one_object() -> None:
    dataset = SimulatedDataset(replace(SMALL, reuse=3, objects=(("texture", 1.0),)))
    requested = []

    class CountingDataset(SimulatedDataset):
        def _get_large_object(self, number: int) -> torch.Tensor:
            requested.append(number)
            return super()._get_large_object(number)

    objects = [
        bytes(CountingDataset(dataset.settings).make_batch(number).object.numpy().tobytes()) for number in range(7)
    ]
    assert requested == [0, 0, 0, 1, 1, 1, 2]
    assert len(set(objects)) == 7
    assert not torch.equal(dataset._get_large_object(0), dataset._get_large_object(1))
    assert torch.equal(dataset._get_large_object(0), SimulatedDataset(dataset.settings)._get_large_object(0))


def test_objects_are_rotated_and_mirrored() -> None:
    """A ramp along rows may be reversed or run along columns."""
    large_object = torch.arange(40, dtype=torch.float32)[:, None].expand(40, 40) + 0j
    sides = set()
    for seed in range(30):
        obj, _ = crop_randomly(large_object, np.zeros((1, 2)), 32, np.random.default_rng(seed))
        first = obj.real[0, 0]
        sides.add((float((obj.real[-1, 0] - first).sign()), float((obj.real[0, -1] - first).sign())))
    assert sides == {(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)}


@pytest.mark.parametrize("positions", [[[0.0, 0.0]], [[0.0, 7.3], [11.9, 0.0], [3.0, 20.0]]])
def test_crop_contains_every_patch(positions: list[list[float]]) -> None:
    large_object = torch.arange(60 * 60, dtype=torch.float32).reshape(60, 60) + 0j
    for seed in range(40):
        obj, places = crop_randomly(large_object, np.array(positions), 32, np.random.default_rng(seed))
        corners = split_positions(places, 32).corners
        check_patches_inside(corners, 32, obj.shape)
        assert corners.min() >= 0
        assert corners.amin(0).max() <= 1
        assert (corners.amax(0) + 32).tolist() == list(obj.shape)  # the crop is tight
        assert np.allclose(places - places[0], np.array(positions) - positions[0])


@pytest.mark.parametrize(
    "rate",
    [0.0, 0.003, 0.3, 3.0, MAX_INVERSION_PHOTONS, 12.0, MIN_EXPANSION_PHOTONS - 0.1, MIN_EXPANSION_PHOTONS, 60.0, 1e4],
)
def test_counts_have_poisson_moments(rate: float) -> None:
    number = 300_000
    counts = draw_poisson_counts(torch.full((number,), rate), np.random.default_rng(5)).double()
    assert torch.equal(counts, counts.round())
    assert float(counts.min()) >= 0
    error = 5 / np.sqrt(number)
    assert float(counts.mean()) == pytest.approx(rate, abs=error * np.sqrt(rate) + 1e-9)
    spread = np.sqrt(2 * rate**2 + rate)  # of the squared deviation
    assert float((counts - rate).square().mean()) == pytest.approx(rate, abs=error * spread + 0.002 * rate)
    third = float((counts - rate).pow(3).mean())
    assert third == pytest.approx(rate, abs=error * np.sqrt(15 * rate**3 + 40 * rate**2 + rate) + 0.02 * rate)


@pytest.mark.parametrize("rate", [0.4, 3.5, 10.0, MIN_EXPANSION_PHOTONS])
def test_counts_have_the_poisson_distribution(rate: float) -> None:
    number = 400_000
    counts = draw_poisson_counts(torch.full((number,), rate), np.random.default_rng(6)).long()
    k = torch.arange(80, dtype=torch.float64)
    expected = torch.exp(k * np.log(rate) - rate - torch.lgamma(k + 1))
    median_step = torch.bincount(counts, minlength=80).double() / number
    assert float((median_step - expected).abs().sum()) / 2 < 0.006  # the total variation; sampling alone gives 0.003


def test_mask_keeps_most_pixels_and_most_of_the_power() -> None:
    probe = PROBES["zone_plate"](64)
    power = np.square(np.abs(np.fft.fft2(probe)))
    kept = []
    for seed in range(60):
        mask = draw_mask(power, np.random.default_rng(seed))
        assert not mask.all()
        assert mask.mean() > 0.7
        kept.append((power * mask).sum() / power.sum())
    assert min(kept) > 0.2
    assert np.median(kept) > 0.75


def test_beam_stop_is_a_central_disk_within_its_share() -> None:
    power = np.square(np.abs(np.fft.fft2(PROBES["gaussian"](64))))
    stop = make_beam_stop(power, 0.3)
    assert stop[0, 0]
    assert 0.05 < (power * stop).sum() / power.sum() <= 0.3
    assert np.array_equal(stop, np.roll(stop[::-1, ::-1], (1, 1), (0, 1)))
    assert not make_beam_stop(power, 1e-9).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 60}, "multiple of 8"),
        ({"size": 16}, "multiple of 8"),
        ({"patterns": 0}, "patterns"),
        ({"objects": (("unicorn", 1.0),)}, "unicorn"),
        ({"objects": ()}, "objects"),
        ({"families": ("unicorn",)}, "unicorn"),
        ({"trajectories": ("unicorn",)}, "unicorn"),
        ({"photons": (1e4, 1e3)}, "photons"),
        ({"overlap": (0.5, 1.0)}, "overlap"),
        ({"masked": 1.5}, "masked"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimulatedDatasetSettings(**changes)


@pytest.mark.parametrize("name", PROBE_FAMILIES)
def test_every_family_alone_gives_batches(name: str) -> None:
    batch = SimulatedDataset(replace(SMALL, families=(name,))).make_batch(0)
    assert float(batch.amplitudes.sum()) > 0
