"""Object stages: exchange between overlapping patterns, free global phase, and separate gradients of the stages."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NETWORKS, NetworkConfig
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.object_patterns import IlluminatedPatterns, make_batch_patterns
from ptycho_torch.prediction.predict import predict_scan

NETWORKS_WITH_OBJECT_STAGES = sorted(name for name, network in NETWORKS.items() if network.object_stages)


@pytest.fixture(params=NETWORKS_WITH_OBJECT_STAGES)
def model(request: pytest.FixtureRequest, scan: Scan) -> PtychoModel:
    """Make a model with nonzero weights in its last layers, whose initial zeros leave the physics unchanged."""
    model = PtychoModel(NetworkConfig(request.param, "residual", width=4), scale_probe_to_photons(scan, 1.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def rotate_pattern(scan: Scan, index: int) -> Scan:
    """Return the scan with the pattern at ``index`` rotated by 180°."""
    amplitudes = scan.amplitudes.copy()
    amplitudes[index] = amplitudes[index][::-1, ::-1]
    return replace(scan, amplitudes=amplitudes)


def test_pattern_changes_the_object_under_its_neighbors(model: PtychoModel, scan: Scan) -> None:
    """From the same initial object, a change of one pattern changes the object at a neighboring position."""
    batch = make_batch(scan, 1.0)
    probes = shift_probe(model.probe.detach(), batch.fractions)
    objects = []
    for variant in (scan, rotate_pattern(scan, 0)):
        patterns = make_batch_patterns(
            IlluminatedPatterns(make_batch(variant, 1.0).amplitudes, None, probes, batch.corners)
        )
        *_, obj = model.refine_object_stages(torch.ones(patterns.shape, dtype=torch.complex64), patterns)
        objects.append(obj)
    change = (objects[1] - objects[0]).abs().detach()
    top, left = (batch.corners[1] - batch.corners.amin(0)).tolist()
    center = change[top + 8 : top + 16, left + 8 : left + 16]
    assert float(center.mean()) > 1e-3


def test_object_stages_commute_with_a_global_phase(model: PtychoModel, scan: Scan) -> None:
    batch = make_batch(scan, 1.0)
    patterns = make_batch_patterns(
        IlluminatedPatterns(batch.amplitudes, None, shift_probe(model.probe.detach(), batch.fractions), batch.corners)
    )
    start = torch.polar(torch.ones(patterns.shape), torch.linspace(0, 1, patterns.shape[0]).expand(patterns.shape))
    phase_factor = torch.polar(torch.tensor(1.0), torch.tensor(2.0))
    stages = (model.refine_object_stages(initial, patterns) for initial in (start, start * phase_factor))
    for obj, rotated in zip(*stages, strict=True):
        assert (obj * phase_factor - rotated).abs().max() < 1e-3 * obj.abs().max()


@pytest.mark.parametrize("gridsize", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_reconstruction_does_not_depend_on_the_batch_size(
    batch_size: int, gridsize: int, model: PtychoModel, scan: Scan
) -> None:
    expected, obj = (
        predict_scan(model, scan, 1.0, batch_size=size, gridsize=gridsize).object for size in (64, batch_size)
    )
    assert np.abs(obj - expected).max() < 1e-3 * np.abs(expected).max()


def test_scan_of_one_pattern_is_reconstructed(model: PtychoModel, scan: Scan) -> None:
    result = predict_scan(model, scan.select(np.array([5])), 1.0)
    assert result.object.shape == (scan.size + 4, scan.size + 4)
    assert np.isfinite(result.object).all()
    assert (result.object[result.coverage == 0] == 1).all()


def test_untrained_network_reduces_the_fourier_error_by_its_physics(scan_factory: Callable[..., Scan]) -> None:
    """The untrained layers add nothing; R is still less than a tenth of its value for vacuum."""
    scan = scan_factory(photons=1e6)
    for name in NETWORKS_WITH_OBJECT_STAGES:
        result = predict_scan(PtychoModel(NetworkConfig(name, width=4), scale_probe_to_photons(scan, 1.0)), scan, 1.0)
        flat = replace(result, object=np.ones_like(result.object))
        r, r_flat = (compute_fourier_error(each, scan, photons_per_unit=1.0).r for each in (result, flat))
        assert r < r_flat / 10


def test_a_pattern_of_noise_changes_the_result_little(model: PtychoModel, scan_factory: Callable[..., Scan]) -> None:
    """Stitching and object stages give a small weight to a pattern that no patch explains."""
    scan = scan_factory(photons=1e6)
    amplitudes = scan.amplitudes.copy()
    amplitudes[14] = np.random.default_rng(0).permuted(amplitudes[14].ravel()).reshape(amplitudes[14].shape)
    untrained = PtychoModel(NetworkConfig(model.config.name, width=4), scale_probe_to_photons(scan, 1.0))
    good, bad = (predict_scan(untrained, each, 1.0) for each in (scan, replace(scan, amplitudes=amplitudes)))
    assert np.isfinite(bad.object).all()
    weight = good.coverage / good.coverage.sum()
    assert (weight * np.abs(good.object - bad.object) ** 2).sum() < 0.1


def test_gradient_of_a_stage_reaches_only_its_own_weights(model: PtychoModel, scan: Scan) -> None:
    """Only the last stage also has a gradient to the probe."""
    model.probe_parameters[0].requires_grad_()
    details = model.forward_details(make_batch(scan, 1.0))
    stages = [*details.intermediate, details.fields]
    assert len(stages) == 1 + model.object_stages
    for module, fields in zip(["backbone", *["object_stage"] * model.object_stages], stages, strict=True):
        model.zero_grad()
        fields.intensity.sum().backward(retain_graph=True)
        names = {name for name, weight in model.network.named_parameters() if weight.grad is not None}
        assert {name.split(".")[0] for name in names} == {module}
        assert (model.probe_parameters[0].grad is not None) == (fields is details.fields)
