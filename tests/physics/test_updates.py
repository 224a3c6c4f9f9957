"""Steps of a whole object towards all its patterns: gradients, fixed points, and no dependence on how it is cut up."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import from_patches, merge_patches, shift_probe
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.updates import (
    EXPECTED_OFFSET_PHOTONS,
    ILLUMINATION_FLOOR_FRACTION,
    IlluminatedPatterns,
    ObjectPatterns,
    average_patches,
    extract_object_patches,
    full_gradient_step,
    make_batch_patterns,
    make_object_patterns,
    minibatch_pass,
)


def lit_of(scan: Scan, mask: Tensor | None = None) -> IlluminatedPatterns:
    """The patterns of ``scan`` in float64, on the grid of its truth."""
    batch = make_batch(scan, 1.0)
    probes = shift_probe(scale_probe_to_photons(scan, 1.0).to(torch.complex128), batch.fractions.double())
    return IlluminatedPatterns(batch.amplitudes.double(), mask, probes, batch.corners)


def on_canvas(lit: IlluminatedPatterns, shape: tuple[int, int], chunk: int = 2**62) -> ObjectPatterns:
    return make_object_patterns(lambda indices: pick(lit, indices), len(lit.corners), shape, chunk_size=chunk)


def pick(lit: IlluminatedPatterns, indices: Tensor) -> IlluminatedPatterns:
    return IlluminatedPatterns(lit.amplitudes[indices], lit.mask, lit.probes[indices], lit.corners[indices])


def truth_of(scan: Scan) -> Tensor:
    assert scan.truth is not None
    return torch.from_numpy(scan.truth).to(torch.complex128)


def explained(lit: IlluminatedPatterns, obj: Tensor) -> IlluminatedPatterns:
    """The same patterns without counting noise, of ``obj``."""
    patches = extract_patches(obj, lit.corners, lit.amplitudes.shape[-1])
    return lit._replace(amplitudes=from_patches(patches, lit.probes).intensity.sqrt())


@pytest.mark.parametrize("modes", [1, 2])
def test_the_common_step_goes_up_the_likelihood(modes: int, scan_factory: Callable[..., Scan]) -> None:
    """It is the gradient of Σ (k + s) log(λ + s) − λ over the light, where no pixel is far too bright."""
    scan = scan_factory(modes=modes)
    obj = truth_of(scan)
    lit = explained(lit_of(scan), obj)
    scene = on_canvas(lit, tuple(obj.shape))
    off = (obj * (1 + 0.05 * torch.randn(obj.shape, generator=torch.Generator().manual_seed(0)))).requires_grad_()
    rates = from_patches(extract_patches(off, lit.corners, scan.size), lit.probes).intensity
    counts = lit.amplitudes.square()
    assert float(((counts - rates.detach()) / (rates.detach() + EXPECTED_OFFSET_PHOTONS)).amax()) < 4, (
        "no pixel is capped"
    )
    (((counts + EXPECTED_OFFSET_PHOTONS) * (rates + EXPECTED_OFFSET_PHOTONS).log()) - rates).sum().backward()
    assert off.grad is not None
    expected = off.grad / 4 / (scene.illumination + ILLUMINATION_FLOOR_FRACTION * scene.illumination.amax())
    found = full_gradient_step(scene, off.detach())
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()


def test_the_truth_stays(scan: Scan) -> None:
    obj = truth_of(scan)
    scene = on_canvas(explained(lit_of(scan), obj), tuple(obj.shape))
    assert full_gradient_step(scene, obj).abs().max() < 1e-10
    swept, velocity = minibatch_pass(scene, obj, torch.zeros_like(obj))
    assert (swept - obj).abs().max() < 1e-10
    assert velocity.abs().max() < 1e-10


def test_sweeps_come_nearer(scan: Scan) -> None:
    """From vacuum towards patterns without noise: R falls with every sweep, to a hundredth and less."""
    obj = truth_of(scan)
    lit = explained(lit_of(scan), obj)
    scene = on_canvas(lit, tuple(obj.shape))

    def r(guess: Tensor) -> float:
        rates = from_patches(extract_object_patches(scene, guess), lit.probes).intensity
        return float((rates.sqrt() - lit.amplitudes).square().sum() / lit.amplitudes.square().sum())

    guess = torch.ones_like(obj)
    velocity, errors = torch.zeros_like(obj), [r(torch.ones_like(obj))]
    for _ in range(12):
        guess, velocity = minibatch_pass(scene, guess, velocity)
        errors.append(r(guess))
    assert errors[1] < errors[0] / 3
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("chunk", [1, 5, 36])
def test_patterns_at_a_time_do_not_matter(chunk: int, scan: Scan) -> None:
    lit, obj = lit_of(scan), truth_of(scan)
    reference, other = (on_canvas(lit, tuple(obj.shape), size) for size in (2**62, chunk))
    start = torch.ones_like(obj)
    assert (full_gradient_step(reference, start) - full_gradient_step(other, start)).abs().max() < 1e-10
    for one, same in zip(*(minibatch_pass(scene, start, start / 9) for scene in (reference, other)), strict=True):
        assert (one - same).abs().max() < 1e-10
    assert other.patterns_per_pixel == pytest.approx(reference.patterns_per_pixel)


def test_merging_is_the_overlap_constraint(scan: Scan) -> None:
    """Patches of an object give it back where light falls; others are merged as everywhere else."""
    lit, obj = lit_of(scan), truth_of(scan)
    scene = on_canvas(lit, tuple(obj.shape))
    lit_up = scene.illumination > 0
    assert (average_patches(scene, extract_object_patches(scene, obj)) - obj)[lit_up].abs().max() < 1e-10
    patches = torch.randn(lit.probes[:, 0].shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    weights = compute_power(lit.probes)
    expected = merge_patches(patches[None], weights[None], lit.corners[None])[0]
    bright = weights > 0.1 * weights.amax()
    assert (extract_object_patches(scene, average_patches(scene, patches)) - expected)[bright].abs().max() < 1e-3


def test_masked_pixels_are_not_looked_at(scan: Scan) -> None:
    mask = torch.ones(1, scan.size, scan.size, dtype=torch.bool)
    mask[:, 2:5, :9] = False
    lit, obj = lit_of(scan, mask), truth_of(scan)
    rubbish = lit._replace(amplitudes=torch.where(mask, lit.amplitudes, 1e3))
    one, other = (on_canvas(some, tuple(obj.shape)) for some in (lit, rubbish))
    assert torch.equal(full_gradient_step(one, obj), full_gradient_step(other, obj))
    assert torch.equal(minibatch_pass(one, obj, 0 * obj)[0], minibatch_pass(other, obj, 0 * obj)[0])


def test_a_neighbourhood_may_be_anywhere(scan: Scan) -> None:
    lit = lit_of(scan)
    here, there = (make_batch_patterns(lit._replace(corners=lit.corners + shift)) for shift in (0, 10**9))
    assert here.shape == there.shape
    assert here.shape[0] == here.shape[1]
    assert torch.equal(here.illumination, there.illumination)
    alone = make_batch_patterns(pick(lit, torch.tensor([3])))
    assert np.isclose(alone.patterns_per_pixel, 1)
