"""Losses of a simulated batch: zero distance for true patches of any phase, and no effect of masked pixels."""

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


def make_simulated_batch(masked: float = 0.0, number: int = 0, photons: float = 1e5) -> SimulatedBatch:
    settings = SimulatedDatasetSettings(
        size=32, patterns=6, seed=3, masked=masked, photons=(photons, photons), overlap=(0.7, 0.8)
    )
    return SimulatedDataset(settings).make_batch(number)


class TruePatches(nn.Module):
    """A network that returns the true patches, with real illumination-weighted mean, plus a constant ``error``."""

    def __init__(self, simulated: SimulatedBatch, error: float = 0.0) -> None:
        super().__init__()
        batch = convert_simulated_batch(simulated)
        weights = compute_power(shift_probe(simulated.probe, batch.fractions))
        patches = extract_patches(simulated.object, batch.corners, 32)
        self.patches = patches * torch.sgn((weights * patches).sum((-2, -1), keepdim=True)).conj() + error

    def forward(self, amplitudes: Tensor, probe: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.patches


def make_model(network: nn.Module) -> PtychoModel:
    model = PtychoModel(NetworkConfig(width=4), [], size=32)
    model.network = network
    return model


@pytest.mark.parametrize("masked", [0.0, 1.0])
@pytest.mark.parametrize("number", range(3))
def test_true_patches_have_zero_distance_and_r_at_the_noise_floor(number: int, masked: float) -> None:
    simulated = make_simulated_batch(masked, number)
    terms = compute_loss_terms(make_model(TruePatches(simulated)), simulated)
    assert float(terms.patch_distance) < 1e-10
    assert float(terms.merged_distance) < 1e-10
    rates = from_object(simulated.object, simulated.probe, simulated.positions).intensity
    floor = compute_noise_floor(rates)
    if simulated.mask is not None:
        floor = torch.where(simulated.mask, floor, 0.0)
    expected = float(floor.sum() / simulated.amplitudes.double().square().sum())
    assert float(terms.r) == pytest.approx(expected, rel=0.15)
    worse = compute_loss_terms(make_model(TruePatches(simulated, error=0.1)), simulated)
    assert float(worse.patch_distance) == pytest.approx(0.01, rel=1e-3)
    assert worse.r > terms.r


def test_loss_does_not_depend_on_the_global_phase() -> None:
    simulated = make_simulated_batch()
    rotated = simulated._replace(object=simulated.object * torch.polar(torch.tensor(1.0), torch.tensor(2.0)))
    with_object_stages = PtychoModel(NetworkConfig("overlap_unet", "residual", 4), [], size=32)
    for model in (make_model(TruePatches(simulated, error=0.05)), with_object_stages):
        for before, after in zip(compute_loss_terms(model, simulated), compute_loss_terms(model, rotated), strict=True):
            if before is not None and after is not None:
                assert float(after.detach()) == pytest.approx(float(before.detach()), rel=1e-3)


def test_object_stages_reduce_the_distance_to_the_truth() -> None:
    """For overlapping patterns, untrained object stages halve the distance."""
    simulated = make_simulated_batch(photons=1e7)
    distances = []
    for name in ("lifted_unet", "overlap_unet"):
        model = PtychoModel(NetworkConfig(name, "residual", 4), [], size=32)
        distances.append(float(compute_loss_terms(model, simulated).merged_distance.detach()))
    assert distances[1] < distances[0] / 2


def test_values_of_masked_pixels_have_no_effect() -> None:
    simulated = make_simulated_batch(masked=1.0)
    assert simulated.mask is not None
    assert not simulated.mask.all()
    corrupted = torch.where(simulated.mask, simulated.amplitudes, 7 * simulated.amplitudes.max())
    model = PtychoModel(NetworkConfig("unrolled_unet", "residual", 4), [], size=32)
    for weight in model.network.parameters():  # the last layers are initially zero
        nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    batch = convert_simulated_batch(simulated)
    probe = shift_probe(simulated.probe, batch.fractions)
    assert torch.equal(model.predict(batch, probe), model.predict(batch._replace(amplitudes=corrupted), probe))


def test_assumed_probe_does_not_change_the_target() -> None:
    simulated = SimulatedDataset(
        replace(SimulatedDatasetSettings(size=32, patterns=6, masked=0.0), misled=1.0)
    ).make_batch(0)
    assert not torch.equal(simulated.probe, simulated.assumed_probe)
    terms = compute_loss_terms(make_model(TruePatches(simulated)), simulated)
    assert float(terms.merged_distance) < 1e-10
