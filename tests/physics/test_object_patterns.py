"""Steps of a whole object toward all its patterns: gradients, fixed points, independence of chunks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.data.scan import Scan
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import from_patches, shift_probe
from ptycho_torch.physics.object_patterns import (
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
from ptycho_torch.physics.overlap import merge_patches
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.physics.probe import compute_power


def make_patterns(scan: Scan, mask: Tensor | None = None) -> IlluminatedPatterns:
    """Return the patterns of ``scan`` in float64, on the grid of its truth."""
    batch = make_batch(scan, 1.0)
    probes = shift_probe(scale_probe_to_photons(scan, 1.0).to(torch.complex128), batch.fractions.double())
    return IlluminatedPatterns(batch.amplitudes.double(), mask, probes, batch.corners)


def place(patterns: IlluminatedPatterns, shape: tuple[int, int], chunk: int = 2**62) -> ObjectPatterns:
    return make_object_patterns(lambda indices: pick(patterns, indices), len(patterns.corners), shape, chunk_size=chunk)


def pick(patterns: IlluminatedPatterns, indices: Tensor) -> IlluminatedPatterns:
    return IlluminatedPatterns(
        patterns.amplitudes[indices], patterns.mask, patterns.probes[indices], patterns.corners[indices]
    )


def get_truth(scan: Scan) -> Tensor:
    assert scan.truth is not None
    return torch.from_numpy(scan.truth).to(torch.complex128)


def remove_noise(patterns: IlluminatedPatterns, obj: Tensor) -> IlluminatedPatterns:
    """Replace the patterns by noise-free patterns of ``obj``."""
    patches = extract_patches(obj, patterns.corners, patterns.amplitudes.shape[-1])
    return patterns._replace(amplitudes=from_patches(patches, patterns.probes).intensity.sqrt())


@pytest.mark.parametrize("modes", [1, 2])
def test_full_gradient_step_is_the_likelihood_gradient(modes: int, scan_factory: Callable[..., Scan]) -> None:
    """The step is the gradient of Σ (k + s) log(λ + s) − λ divided by the illumination where no pixel is limited."""
    scan = scan_factory(modes=modes)
    obj = get_truth(scan)
    patterns = remove_noise(make_patterns(scan), obj)
    problem = place(patterns, tuple(obj.shape))
    off = (obj * (1 + 0.05 * torch.randn(obj.shape, generator=torch.Generator().manual_seed(0)))).requires_grad_()
    rates = from_patches(extract_patches(off, patterns.corners, scan.size), patterns.probes).intensity
    counts = patterns.amplitudes.square()
    assert float(((counts - rates.detach()) / (rates.detach() + EXPECTED_OFFSET_PHOTONS)).amax()) < 4, (
        "no pixel is limited"
    )
    (((counts + EXPECTED_OFFSET_PHOTONS) * (rates + EXPECTED_OFFSET_PHOTONS).log()) - rates).sum().backward()
    assert off.grad is not None
    expected = off.grad / 4 / (problem.illumination + ILLUMINATION_FLOOR_FRACTION * problem.illumination.amax())
    step = full_gradient_step(problem, off.detach())
    assert (step - expected).abs().max() < 1e-10 * expected.abs().max()


def test_truth_is_a_fixed_point(scan: Scan) -> None:
    obj = get_truth(scan)
    problem = place(remove_noise(make_patterns(scan), obj), tuple(obj.shape))
    assert full_gradient_step(problem, obj).abs().max() < 1e-10
    updated, velocity = minibatch_pass(problem, obj, torch.zeros_like(obj))
    assert (updated - obj).abs().max() < 1e-10
    assert velocity.abs().max() < 1e-10


def test_minibatch_passes_converge(scan: Scan) -> None:
    """From vacuum toward patterns without noise R falls to less than a hundredth."""
    obj = get_truth(scan)
    patterns = remove_noise(make_patterns(scan), obj)
    problem = place(patterns, tuple(obj.shape))

    def r(estimate: Tensor) -> float:
        rates = from_patches(extract_object_patches(problem, estimate), patterns.probes).intensity
        return float((rates.sqrt() - patterns.amplitudes).square().sum() / patterns.amplitudes.square().sum())

    estimate = torch.ones_like(obj)
    velocity, errors = torch.zeros_like(obj), [r(torch.ones_like(obj))]
    for _ in range(12):
        estimate, velocity = minibatch_pass(problem, estimate, velocity)
        errors.append(r(estimate))
    assert errors[1] < errors[0] / 3
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("chunk", [1, 5, 36])
def test_chunk_size_does_not_change_results(chunk: int, scan: Scan) -> None:
    patterns, obj = make_patterns(scan), get_truth(scan)
    reference, other = (place(patterns, tuple(obj.shape), size) for size in (2**62, chunk))
    start = torch.ones_like(obj)
    assert (full_gradient_step(reference, start) - full_gradient_step(other, start)).abs().max() < 1e-10
    for step, chunked in zip(
        *(minibatch_pass(problem, start, start / 9) for problem in (reference, other)), strict=True
    ):
        assert (step - chunked).abs().max() < 1e-10
    assert other.patterns_per_pixel == pytest.approx(reference.patterns_per_pixel)


def test_average_of_patches_is_the_overlap_constraint(scan: Scan) -> None:
    """Consistent patches give the object where it is illuminated; other patches are merged as by merge_patches."""
    patterns, obj = make_patterns(scan), get_truth(scan)
    problem = place(patterns, tuple(obj.shape))
    illuminated = problem.illumination > 0
    assert (average_patches(problem, extract_object_patches(problem, obj)) - obj)[illuminated].abs().max() < 1e-10
    patches = torch.randn(
        patterns.probes[:, 0].shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)
    )
    weights = compute_power(patterns.probes)
    expected = merge_patches(patches[None], weights[None], patterns.corners[None])[0]
    bright = weights > 0.1 * weights.amax()
    assert (extract_object_patches(problem, average_patches(problem, patches)) - expected)[bright].abs().max() < 1e-3


def test_masked_pixels_do_not_change_steps(scan: Scan) -> None:
    mask = torch.ones(1, scan.size, scan.size, dtype=torch.bool)
    mask[:, 2:5, :9] = False
    patterns, obj = make_patterns(scan, mask), get_truth(scan)
    corrupted = patterns._replace(amplitudes=torch.where(mask, patterns.amplitudes, 1e3))
    one, other = (place(subset, tuple(obj.shape)) for subset in (patterns, corrupted))
    assert torch.equal(full_gradient_step(one, obj), full_gradient_step(other, obj))
    assert torch.equal(minibatch_pass(one, obj, 0 * obj)[0], minibatch_pass(other, obj, 0 * obj)[0])


def test_batch_canvas_does_not_depend_on_the_origin(scan: Scan) -> None:
    patterns = make_patterns(scan)
    here, there = (make_batch_patterns(patterns._replace(corners=patterns.corners + shift)) for shift in (0, 10**9))
    assert here.shape == there.shape
    assert here.shape[0] == here.shape[1]
    assert torch.equal(here.illumination, there.illumination)
    alone = make_batch_patterns(pick(patterns, torch.tensor([3])))
    assert np.isclose(alone.patterns_per_pixel, 1)
