"""What a lesson asks: the truth gets full marks, whatever its phase, and masked pixels say nothing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.physics.forward import from_object, shift_probe
from ptycho_torch.physics.noise import compute_noise_floor
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.simulation.dataset import SimulatedBatch, SimulatedDataset, SimulatedDatasetSettings
from ptycho_torch.training.losses import compute_loss_terms, convert_simulated_batch


def a_lesson(masked: float = 0.0, number: int = 0, photons: float = 1e5) -> SimulatedBatch:
    settings = SimulatedDatasetSettings(
        size=32, patterns=6, seed=3, masked=masked, photons=(photons, photons), overlap=(0.7, 0.8)
    )
    return SimulatedDataset(settings).make_batch(number)


class Knowing(nn.Module):
    """Answers with the true patches, each turned so that its mean over the light is real, but for ``wrong``."""

    def __init__(self, lesson: SimulatedBatch, wrong: float = 0.0) -> None:
        super().__init__()
        batch = convert_simulated_batch(lesson)
        weights = compute_power(shift_probe(lesson.probe, batch.fractions))
        patches = extract_patches(lesson.object, batch.corners, 32)
        self.patches = patches * torch.sgn((weights * patches).sum((-2, -1), keepdim=True)).conj() + wrong

    def forward(self, amplitudes: Tensor, probe: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.patches


def answering(network: nn.Module) -> PtychoModel:
    model = PtychoModel(NetworkConfig(width=4), [], size=32)
    model.network = network
    return model


@pytest.mark.parametrize("masked", [0.0, 1.0])
@pytest.mark.parametrize("number", range(3))
def test_the_truth_gets_full_marks(number: int, masked: float) -> None:
    lesson = a_lesson(masked, number)
    marks = compute_loss_terms(answering(Knowing(lesson)), lesson)
    assert float(marks.patch_distance) < 1e-10
    assert float(marks.merged_distance) < 1e-10
    rates = from_object(lesson.object, lesson.probe, lesson.positions).intensity
    floor = compute_noise_floor(rates)
    if lesson.mask is not None:
        floor = torch.where(lesson.mask, floor, 0.0)
    expected = float(floor.sum() / lesson.amplitudes.double().square().sum())
    assert float(marks.r) == pytest.approx(expected, rel=0.15)
    worse = compute_loss_terms(answering(Knowing(lesson, wrong=0.1)), lesson)
    assert float(worse.patch_distance) == pytest.approx(0.01, rel=1e-3)
    assert worse.r > marks.r


def test_the_phase_of_the_object_is_free() -> None:
    lesson = a_lesson()
    turned = lesson._replace(object=lesson.object * torch.polar(torch.tensor(1.0), torch.tensor(2.0)))
    looking = PtychoModel(NetworkConfig("overlap_unet", "residual", 4), [], size=32)
    for model in (answering(Knowing(lesson, wrong=0.05)), looking):
        for before, after in zip(compute_loss_terms(model, lesson), compute_loss_terms(model, turned), strict=True):
            if before is not None and after is not None:
                assert float(after.detach()) == pytest.approx(float(before.detach()), rel=1e-3)


def test_looks_at_the_whole_come_nearer_to_the_truth() -> None:
    """Where many patterns share the light, physics alone halves what a wrong first look misses."""
    lesson = a_lesson(photons=1e7)
    distances = []
    for name in ("lifted_unet", "overlap_unet"):
        model = PtychoModel(NetworkConfig(name, "residual", 4), [], size=32)
        distances.append(float(compute_loss_terms(model, lesson).merged_distance.detach()))
    assert distances[1] < distances[0] / 2


def test_a_network_does_not_see_masked_pixels() -> None:
    lesson = a_lesson(masked=1.0)
    assert lesson.mask is not None
    assert not lesson.mask.all()
    rubbish = torch.where(lesson.mask, lesson.amplitudes, 7 * lesson.amplitudes.max())
    model = PtychoModel(NetworkConfig("unrolled_unet", "residual", 4), [], size=32)
    for weight in model.network.parameters():  # the last layers are zero at first
        nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    batch = convert_simulated_batch(lesson)
    probe = shift_probe(lesson.probe, batch.fractions)
    assert torch.equal(model.predict(batch, probe), model.predict(batch._replace(amplitudes=rubbish), probe))


def test_being_told_another_probe_does_not_change_the_question() -> None:
    lesson = SimulatedDataset(
        replace(SimulatedDatasetSettings(size=32, patterns=6, masked=0.0), misled=1.0)
    ).make_batch(0)
    assert not torch.equal(lesson.probe, lesson.assumed_probe)
    marks = compute_loss_terms(answering(Knowing(lesson)), lesson)
    assert float(marks.merged_distance) < 1e-10
