"""Looks at the whole object: neighbours tell of each other, phases are free, and each look answers for itself."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NETWORKS, NetworkConfig
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.object_patterns import IlluminatedPatterns, make_batch_patterns
from ptycho_torch.prediction.predict import predict_scan

LOOKING = sorted(name for name, network in NETWORKS.items() if network.object_stages)


@pytest.fixture(params=LOOKING)
def model(request: pytest.FixtureRequest, scan: Scan) -> PtychoModel:
    """With weights away from the start, where nothing is added to what physics says."""
    model = PtychoModel(NetworkConfig(request.param, "residual", width=4), scale_probe_to_photons(scan, 1.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def turned(scan: Scan, index: int) -> Scan:
    """With the pattern at ``index`` turned by half a turn."""
    amplitudes = scan.amplitudes.copy()
    amplitudes[index] = amplitudes[index][::-1, ::-1]
    return replace(scan, amplitudes=amplitudes)


def test_a_patch_hears_of_its_neighbours(model: PtychoModel, scan: Scan) -> None:
    """With the same object to start from, photons of one pattern change it under another, though not far away."""
    batch = make_batch(scan, 1.0)
    probes = shift_probe(model.probe.detach(), batch.fractions)
    found = []
    for one in (scan, turned(scan, 0)):
        scene = make_batch_patterns(IlluminatedPatterns(make_batch(one, 1.0).amplitudes, None, probes, batch.corners))
        *_, obj = model.refine_object_stages(torch.ones(scene.shape, dtype=torch.complex64), scene)
        found.append(obj)
    changed = (found[1] - found[0]).abs().detach()
    top, left = (batch.corners[1] - batch.corners.amin(0)).tolist()
    middle = changed[top + 8 : top + 16, left + 8 : left + 16]
    assert float(middle.mean()) > 1e-3


def test_the_phase_of_an_object_is_free(model: PtychoModel, scan: Scan) -> None:
    batch = make_batch(scan, 1.0)
    scene = make_batch_patterns(
        IlluminatedPatterns(batch.amplitudes, None, shift_probe(model.probe.detach(), batch.fractions), batch.corners)
    )
    start = torch.polar(torch.ones(scene.shape), torch.linspace(0, 1, scene.shape[0]).expand(scene.shape))
    turn = torch.polar(torch.tensor(1.0), torch.tensor(2.0))
    for one, other in zip(
        model.refine_object_stages(start, scene), model.refine_object_stages(start * turn, scene), strict=True
    ):
        assert (one * turn - other).abs().max() < 1e-3 * one.abs().max()


@pytest.mark.parametrize("gridsize", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_does_not_matter(batch_size: int, gridsize: int, model: PtychoModel, scan: Scan) -> None:
    found, same = (
        predict_scan(model, scan, 1.0, batch_size=size, gridsize=gridsize).object for size in (64, batch_size)
    )
    assert np.abs(found - same).max() < 1e-3 * np.abs(found).max()


def test_one_pattern_alone(model: PtychoModel, scan: Scan) -> None:
    found = predict_scan(model, scan.select(np.array([5])), 1.0)
    assert found.object.shape == (scan.size + 4, scan.size + 4)
    assert np.isfinite(found.object).all()
    assert (found.object[found.coverage == 0] == 1).all()


def test_before_it_learns_it_is_an_engine(scan_factory: Callable[..., Scan]) -> None:
    """Untrained it adds nothing, and physics alone takes it most of the way from vacuum."""
    from ptycho_torch.evaluation.fourier_error import compute_fourier_error

    scan = scan_factory(photons=1e6)
    for name in LOOKING:
        found = predict_scan(PtychoModel(NetworkConfig(name, width=4), scale_probe_to_photons(scan, 1.0)), scan, 1.0)
        flat = replace(found, object=np.ones_like(found.object))
        r, r_flat = (compute_fourier_error(one, scan, photons_per_unit=1.0).r for one in (found, flat))
        assert r < r_flat / 10


def test_a_dead_pattern_is_not_looked_at(model: PtychoModel, scan_factory: Callable[..., Scan]) -> None:
    """A pattern of noise among many changes a result little: stitching mistrusts it, and so do the looks."""
    scan = scan_factory(photons=1e6)
    amplitudes = scan.amplitudes.copy()
    amplitudes[14] = np.random.default_rng(0).permuted(amplitudes[14].ravel()).reshape(amplitudes[14].shape)
    whole = PtychoModel(NetworkConfig(model.config.name, width=4), scale_probe_to_photons(scan, 1.0))
    good, bad = (predict_scan(whole, one, 1.0) for one in (scan, replace(scan, amplitudes=amplitudes)))
    assert np.isfinite(bad.object).all()
    weight = good.coverage / good.coverage.sum()
    assert (weight * np.abs(good.object - bad.object) ** 2).sum() < 0.1


def test_each_look_answers_for_itself(model: PtychoModel, scan: Scan) -> None:
    """What one leaves sends a gradient to its own weights alone, and the last one's to the probe besides."""
    model.probe_parameters[0].requires_grad_()
    found = model.forward_details(make_batch(scan, 1.0))
    stages = [*found.intermediate, found.fields]
    assert len(stages) == 1 + model.object_stages
    for own, fields in zip(["backbone", *["object_stage"] * model.object_stages], stages, strict=True):
        model.zero_grad()
        fields.intensity.sum().backward(retain_graph=True)
        moved = {name for name, weight in model.network.named_parameters() if weight.grad is not None}
        assert {name.split(".")[0] for name in moved} == {own}
        assert (model.probe_parameters[0].grad is not None) == (fields is found.fields)
