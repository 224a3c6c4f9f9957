"""Lessons for pretraining: a pure function of seed and number, and true to the forward model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import ConfigError
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


def bytes_of(lesson: SimulatedBatch) -> list[bytes]:
    return [b"" if part is None else part.numpy().tobytes() for part in lesson]


def expectation(lesson: SimulatedBatch) -> torch.Tensor:
    obj, probe = lesson.object.to(torch.complex128), lesson.probe.to(torch.complex128)
    return from_object(obj, probe, lesson.positions).intensity


def test_a_lesson_is_a_pure_function_of_seed_and_number() -> None:
    settings = replace(SMALL, masked=0.5, misled=0.5)
    forward = SimulatedDataset(settings)
    lessons = {number: bytes_of(forward.make_batch(number)) for number in range(12)}
    backward = SimulatedDataset(settings)
    assert all(bytes_of(backward.make_batch(number)) == lessons[number] for number in (11, 2, 10, 3, 0))
    assert len({content[0] for content in lessons.values()}) == 12
    endless = forward.iterate_batches(5)
    assert bytes_of(next(endless)) == lessons[5]
    assert bytes_of(next(endless)) == lessons[6]


def test_another_seed_is_another_stream() -> None:
    one, other = (SimulatedDataset(replace(SMALL, seed=seed)).make_batch(0) for seed in (0, 1))
    assert not torch.equal(one.amplitudes, other.amplitudes)
    assert not torch.equal(one.positions, other.positions)
    assert one.probe.shape != other.probe.shape or not torch.allclose(one.probe, other.probe)
    assert one.object.shape != other.object.shape or not torch.equal(one.object, other.object)


@pytest.mark.parametrize(("size", "patterns"), [(32, 16), (64, 5), (96, 4), (128, 1)])
def test_lessons_have_the_promised_shapes_and_values(size: int, patterns: int) -> None:
    stream = SimulatedDataset(SimulatedDatasetSettings(size=size, patterns=patterns, masked=0.5, reuse=2))
    for number in range(16):
        lesson = stream.make_batch(number)
        assert lesson.amplitudes.shape == (patterns, size, size)
        assert lesson.amplitudes.dtype == torch.float32
        assert lesson.probe.shape[1:] == (size, size)
        assert lesson.probe.dtype == lesson.object.dtype == torch.complex64
        assert lesson.positions.shape == (patterns, 2)
        assert lesson.positions.dtype == torch.float64
        check_patches_inside(split_positions(lesson.positions, size).corners, size, lesson.object.shape)
        assert all(torch.isfinite(torch.view_as_real(part)).all() for part in (lesson.probe, lesson.object))
        counts = lesson.amplitudes.double().square()
        assert ((counts - counts.round()).abs() <= 1e-6 * counts + 1e-6).all()
        photons = lesson.probe.abs().double().square().sum()
        assert float(photons) == pytest.approx(max(float(counts.sum()) / patterns, 1), rel=1e-4)
        assert lesson.assumed_probe is lesson.probe
        if lesson.mask is not None:
            assert lesson.mask.shape == (1, size, size)
            assert (lesson.amplitudes[~lesson.mask.expand_as(lesson.amplitudes)] == 0).all()


@pytest.mark.parametrize("photons", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_object_and_probe_give_the_expectation_of_the_counts(photons: float, masked: float) -> None:
    """Pearson's χ² and the mean, over bright pixels; the factor between probe and object cancels."""
    stream = SimulatedDataset(replace(SMALL, photons=(photons, photons), masked=masked))
    residuals, ratios, totals = [], [], []
    for number in range(12):
        lesson = stream.make_batch(number)
        rates, counts = expectation(lesson), lesson.amplitudes.double().square()
        kept = torch.ones_like(rates, dtype=torch.bool) if lesson.mask is None else lesson.mask.expand_as(rates)
        bright = kept & (rates > 1)
        residuals.append(((counts - rates).square() / rates)[bright])
        ratios.append(float(counts[kept].sum() / rates[kept].sum()))
        totals.append(float(rates.sum()) / len(counts))
    assert float(torch.cat(residuals).mean()) == pytest.approx(1, abs=0.05)
    assert np.mean(ratios) == pytest.approx(1, abs=4 / np.sqrt(photons * 12 * 9) + 1e-5)
    assert totals == pytest.approx([photons] * 12, rel=1e-3)


def test_doses_are_even_in_their_logarithm() -> None:
    stream = SimulatedDataset(replace(SMALL, patterns=2, masked=0.0))
    doses = np.log10([float(stream.make_batch(number).amplitudes.square().sum()) / 2 for number in range(150)])
    assert 2.8 < doses.min() < 3.4
    assert 6.6 < doses.max() < 7.2
    assert doses.mean() == pytest.approx(5, abs=0.35)


@pytest.mark.parametrize("trajectory", ["raster", "spiral", "grid"])
def test_steps_are_those_of_the_overlap(trajectory: str) -> None:
    from ptycho_torch.data.profile import compute_median_step, compute_probe_diameter

    for overlap in (0.35, 0.8):
        settings = replace(SMALL, overlap=(overlap, overlap), trajectories=(trajectory,), patterns=16)
        stream = SimulatedDataset(settings, [PROBES["disk"](32)])
        lesson = stream.make_batch(7)
        step = (1 - overlap) * compute_probe_diameter(lesson.probe.numpy())
        found = compute_median_step(lesson.positions.numpy())
        assert found is not None
        assert 0.2 * step < found < 1.4 * step
        if trajectory == "grid":
            assert found == pytest.approx(step, rel=1e-3)


def test_given_probes_are_used_and_varied_on_demand() -> None:
    given = [make_incoherent_modes(PROBES["structured"](32), 2), PROBES["disk"](32) * 17]
    only = replace(SMALL, families=())
    stream = SimulatedDataset(only, given)
    seen = {lesson.probe.shape[0] for lesson in (stream.make_batch(number) for number in range(12))}
    assert seen == {1, 2}
    disk = [lesson.probe for lesson in map(stream.make_batch, range(12)) if len(lesson.probe) == 1]
    shape = disk[0] / disk[0].abs().max()
    assert all(torch.allclose(probe / probe.abs().max(), shape, atol=1e-5) for probe in disk)
    other = SimulatedDataset(replace(only, variation=1.0), given[1:]).make_batch(0).probe
    assert not torch.allclose(other / other.abs().max(), shape, atol=1e-2)
    with pytest.raises(ConfigError, match="neither"):
        SimulatedDataset(only)


def test_a_misled_network_sees_another_probe_of_the_same_power() -> None:
    lesson = SimulatedDataset(replace(SMALL, misled=1.0)).make_batch(0)
    true, told = (part.abs().square().sum((-2, -1)).sum() for part in (lesson.probe, lesson.assumed_probe))
    assert float(true) == pytest.approx(float(told), rel=1e-4)
    assert not torch.allclose(lesson.probe, lesson.assumed_probe, rtol=1e-2, atol=1e-2)


def test_a_wrong_power_of_the_probe_is_absorbed_by_the_object() -> None:
    exact, off = (SimulatedDataset(replace(SMALL, power_error=error)).make_batch(3) for error in (0.0, 0.3))
    assert not torch.allclose(exact.probe, off.probe, rtol=1e-3)
    assert torch.equal(exact.amplitudes, off.amplitudes)
    assert torch.allclose(expectation(exact), expectation(off), rtol=1e-4, atol=1e-3)


def test_consecutive_lessons_share_an_object_and_see_it_differently() -> None:
    stream = SimulatedDataset(replace(SMALL, reuse=3, objects=(("texture", 1.0),)))
    asked = []

    class Watched(SimulatedDataset):
        def _sheet(self, number: int) -> torch.Tensor:
            asked.append(number)
            return super()._sheet(number)

    objects = [bytes(Watched(stream.settings).make_batch(number).object.numpy().tobytes()) for number in range(7)]
    assert asked == [0, 0, 0, 1, 1, 1, 2]
    assert len(set(objects)) == 7
    assert not torch.equal(stream._sheet(0), stream._sheet(1))
    assert torch.equal(stream._sheet(0), SimulatedDataset(stream.settings)._sheet(0))


def test_objects_are_seen_from_all_sides() -> None:
    """Rows that count upwards may count downwards, or be columns."""
    sheet = torch.arange(40, dtype=torch.float32)[:, None].expand(40, 40) + 0j
    sides = set()
    for seed in range(30):
        obj, _ = crop_randomly(sheet, np.zeros((1, 2)), 32, np.random.default_rng(seed))
        first = obj.real[0, 0]
        sides.add((float((obj.real[-1, 0] - first).sign()), float((obj.real[0, -1] - first).sign())))
    assert sides == {(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)}


@pytest.mark.parametrize("positions", [[[0.0, 0.0]], [[0.0, 7.3], [11.9, 0.0], [3.0, 20.0]]])
def test_a_cut_holds_every_window(positions: list[list[float]]) -> None:
    sheet = torch.arange(60 * 60, dtype=torch.float32).reshape(60, 60) + 0j
    for seed in range(40):
        obj, places = crop_randomly(sheet, np.array(positions), 32, np.random.default_rng(seed))
        corners = split_positions(places, 32).corners
        check_patches_inside(corners, 32, obj.shape)
        assert corners.min() >= 0
        assert corners.amin(0).max() <= 1
        assert (corners.amax(0) + 32).tolist() == list(obj.shape)  # and no more than that
        assert np.allclose(places - places[0], np.array(positions) - positions[0])


@pytest.mark.parametrize(
    "rate",
    [0.0, 0.003, 0.3, 3.0, MAX_INVERSION_PHOTONS, 12.0, MIN_EXPANSION_PHOTONS - 0.1, MIN_EXPANSION_PHOTONS, 60.0, 1e4],
)
def test_counts_have_the_moments_of_poisson(rate: float) -> None:
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
def test_counts_have_the_distribution_of_poisson(rate: float) -> None:
    number = 400_000
    counts = draw_poisson_counts(torch.full((number,), rate), np.random.default_rng(6)).long()
    k = torch.arange(80, dtype=torch.float64)
    expected = torch.exp(k * np.log(rate) - rate - torch.lgamma(k + 1))
    found = torch.bincount(counts, minlength=80).double() / number
    assert float((found - expected).abs().sum()) / 2 < 0.006  # the total variation; sampling alone gives 0.003


def test_a_mask_leaves_most_pixels_and_most_of_the_light() -> None:
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


def test_a_beam_stop_is_a_disk_at_zero_frequency_that_hides_no_more_than_its_share() -> None:
    power = np.square(np.abs(np.fft.fft2(PROBES["gaussian"](64))))
    stop = make_beam_stop(power, 0.3)
    assert stop[0, 0]
    assert 0.05 < (power * stop).sum() / power.sum() <= 0.3
    assert np.array_equal(stop, np.roll(stop[::-1, ::-1], (1, 1), (0, 1)))
    assert not make_beam_stop(power, 1e-9).any()


@pytest.mark.parametrize(
    ("changes", "told"),
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
def test_bad_settings_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SimulatedDatasetSettings(**changes)


@pytest.mark.parametrize("name", PROBE_FAMILIES)
def test_every_family_alone_gives_lessons(name: str) -> None:
    lesson = SimulatedDataset(replace(SMALL, families=(name,))).make_batch(0)
    assert float(lesson.amplitudes.sum()) > 0
