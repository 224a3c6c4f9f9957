"""Stitching: true patches give the true object, and patches of arbitrary phases are synchronized."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.physics.patches import Canvas, extract_patches, make_canvas
from ptycho_torch.prediction.stitching import MIN_RELATIVE_WEIGHT, StitchedObject, stitch


def make_patches(object_at: Callable[..., Any], dtype: torch.dtype, size: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches (n, N, N) of the object, their weights and their corners, some of which are negative."""
    rng = np.random.default_rng(0)
    corners = np.mgrid[-6:35:8j, 3:40:8j].reshape(2, -1).T + rng.integers(-1, 2, (64, 2))
    corners = corners.astype(np.int64)
    patches = np.stack([object_at(y + np.arange(size), x + np.arange(size)) for y, x in corners])
    axis = np.arange(size) - size // 2
    spot = np.exp(-(axis[:, None] ** 2 + 0.6 * axis**2) / (0.12 * size**2))
    weights = spot * rng.uniform(0.5, 2, (64, 1, 1)) * 1e4
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    return torch.from_numpy(patches).to(dtype), torch.from_numpy(weights).to(real), torch.from_numpy(corners)


def evaluate_on_canvas(object_at: Callable[..., Any], canvas: Canvas) -> Any:
    (top, left), (height, width) = canvas
    return object_at(top + np.arange(height), left + np.arange(width))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 1e-5), (torch.complex128, 1e-10)])
@pytest.mark.parametrize("align", [False, True])
def test_true_patches_give_the_true_object(
    sample_object: Callable[..., Any], dtype: torch.dtype, tolerance: float, align: bool
) -> None:
    patches, weights, corners = make_patches(sample_object, dtype)
    canvas = make_canvas(corners, patches.shape[-1])
    result = stitch(patches, weights, corners, canvas, align)
    assert result.object.dtype == dtype
    covered = result.coverage.numpy() > 0
    assert covered.mean() > 0.7
    np.testing.assert_allclose(
        result.object.numpy()[covered], evaluate_on_canvas(sample_object, canvas)[covered], atol=tolerance, rtol=0
    )
    np.testing.assert_array_equal(result.object.numpy()[~covered], 1)


def test_coverage_is_the_sum_of_the_weights(sample_object: Callable[..., Any]) -> None:
    patches, weights, corners = make_patches(sample_object, torch.complex128)
    canvas = make_canvas(corners, patches.shape[-1])
    expected = np.zeros(canvas.shape)
    for weight, (y, x) in zip(weights.numpy(), corners.numpy() - np.array(canvas.origin), strict=True):
        expected[y : y + len(weight), x : x + len(weight)] += weight
    np.testing.assert_allclose(stitch(patches, weights, corners, canvas).coverage, expected, rtol=0, atol=1e-4 * 1e4)


def ring(count: int) -> Any:
    """Return positions (count, 2) on a circle, 2π pixels apart, around which the phase may wrap."""
    angle = np.arange(count) / count * 2 * np.pi
    return count * np.stack([np.cos(angle), np.sin(angle)], 1)


SCANS = {
    "grid": np.mgrid[0:40:6j, 0:50:7j].reshape(2, -1).T,
    "line": np.stack([np.zeros(30), np.arange(30) * 6], 1),
    "ring": ring(60),
    "wide ring": ring(200),
    "comb": np.concatenate([[[0, 6 * k] for k in range(24)], *([[6 * k, 46 * t] for k in range(8)] for t in range(4))]),
    "two per position": np.repeat(np.mgrid[0:20:4j, 0:20:4j].reshape(2, -1).T, 2, 0),
    "single": np.zeros((1, 2)),
    "dense": np.mgrid[0:20:11j, 0:20:11j].reshape(2, -1).T,
}


class RotatedPatches(NamedTuple):
    """True patches, each multiplied by a random phase factor."""

    patches: Tensor
    weights: Tensor
    corners: Tensor
    canvas: Canvas
    truth: Any

    def error(self, result: StitchedObject, island: slice = slice(None)) -> float:
        """Return the largest error where the coverage is high, after one common phase."""
        rows, columns = result.coverage.shape
        (top, left), size = self.canvas.origin, self.patches.shape[-1]
        inside = np.zeros((rows, columns), bool)
        for row, column in (self.corners[island] - torch.tensor([top, left])).tolist():
            inside[row : row + size, column : column + size] = True
        compared = inside & (result.coverage > 0.05 * result.coverage.max()).numpy()
        values, truth = result.object.numpy()[compared], self.truth[compared]
        return float(np.abs(values * np.exp(-1j * np.angle(np.vdot(truth, values))) - truth).max())


def rotate_patches(
    object_at: Callable[..., Any], positions: Any, size: int = 13, spread: float = np.pi, dtype: Any = torch.complex128
) -> RotatedPatches:
    """Return the true patches at ``positions``, multiplied by phases of up to ``spread``."""
    corners = torch.from_numpy(np.round(positions).astype(np.int64))
    canvas = make_canvas(corners, size)
    truth = evaluate_on_canvas(object_at, canvas)
    patches = extract_patches(torch.from_numpy(truth), corners - torch.tensor(canvas.origin), size)
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(axis[:, None] ** 2 + 0.6 * axis**2) / (0.12 * size**2)).expand(patches.shape).contiguous()
    angles = torch.from_numpy(np.random.default_rng(1).uniform(-spread, spread, (len(corners), 1, 1)))
    patches = (patches * torch.polar(torch.ones_like(angles), angles)).to(dtype)
    return RotatedPatches(patches, weights.to(patches.real.dtype), corners, canvas, truth)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_phases_are_synchronized_for_every_scan_geometry(
    sample_object: Callable[..., Any], scan: str, dtype: torch.dtype
) -> None:
    given = rotate_patches(sample_object, SCANS[scan], dtype=dtype)
    assert given.error(stitch(*given[:4])) < 1e-5
    if scan != "single":
        assert given.error(stitch(*given[:4], align=False)) > 0.1


@pytest.mark.parametrize("size", [13, 33, 50])  # strides of 1, 2 and 3 pixels
@pytest.mark.parametrize("scan", ["grid", "dense"])  # strides of 1, 4 and 6 pixels in the dense scan
def test_phases_of_large_patches_are_compared_on_a_coarse_grid(
    sample_object: Callable[..., Any], size: int, scan: str
) -> None:
    given = rotate_patches(sample_object, SCANS[scan], size)
    assert given.error(stitch(*given[:4])) < 1e-5


def test_the_mean_phase_factor_of_each_component_is_positive(sample_object: Callable[..., Any]) -> None:
    """Two fields without overlap are each synchronized."""
    first, second = SCANS["grid"], SCANS["grid"][:20] + np.array([0, 200])
    given = rotate_patches(sample_object, np.concatenate([first, second]), spread=1.0)
    result = stitch(*given[:4])
    for island in (slice(0, len(first)), slice(len(first), None)):
        assert given.error(result, island) < 1e-5
        assert abs(float(result.phase_factors[island].sum().angle())) < 1e-9


def test_patches_of_noise_do_not_affect_their_neighbors(sample_object: Callable[..., Any]) -> None:
    """A twentieth of the patches is noise, from a tenth of the brightness of the others to ten times as bright."""
    given = rotate_patches(sample_object, np.mgrid[0:60:12j, 0:60:12j].reshape(2, -1).T)
    rng = np.random.default_rng(2)
    bad = rng.permutation(144)[:7]
    for brightness in (0.1, 1.0, 10.0):
        patches = given.patches.clone()
        patches[bad] = torch.from_numpy(brightness * (rng.normal(size=(7, 13, 13)) + 1j * rng.normal(size=(7, 13, 13))))
        result = stitch(patches, *given[1:4])
        assert given._replace(patches=patches).error(result) < 2e-3
        assert float(result.patch_weights[bad].max()) < 1e-3
        good = np.setdiff1d(np.arange(144), bad)
        assert float(result.patch_weights[good].min()) == 1
        unaligned = result._replace(object=stitch(patches, *given[1:4], align=False).object)
        assert given.error(unaligned) > 0.1


def test_the_order_of_the_patches_has_no_effect(sample_object: Callable[..., Any]) -> None:
    given = rotate_patches(sample_object, SCANS["comb"])
    noisy = given.patches + 0.1 * torch.randn(given.patches.shape, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(len(noisy), generator=torch.Generator().manual_seed(1))
    reference = stitch(noisy, *given[1:4])
    other = stitch(noisy[order], given.weights[order], given.corners[order], given.canvas)
    torch.testing.assert_close(other.object, reference.object, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.phase_factors, reference.phase_factors[order], atol=1e-6, rtol=0)


def test_every_phase_is_optimal_for_the_mean_of_noisy_patches(sample_object: Callable[..., Any]) -> None:
    """The result is a fixed point: the weighted product of each patch with the mean of all patches is positive."""
    given = rotate_patches(sample_object, SCANS["grid"], spread=0.5)
    noisy = given.patches + 0.3 * torch.randn(given.patches.shape, generator=torch.Generator().manual_seed(0))
    weights = torch.where(given.weights > 2 * MIN_RELATIVE_WEIGHT * given.weights.amax(), given.weights, 0)
    result = stitch(noisy, weights, given.corners, given.canvas)
    corners = given.corners - torch.tensor(given.canvas.origin)
    correlation = (
        weights * (noisy * result.phase_factors[:, None, None]).conj() * extract_patches(result.object, corners, 13)
    ).sum((1, 2))
    assert float(correlation.angle().abs().max()) < 1e-4
    assert float((result.patch_weights - 1).abs().max()) == 0


def test_the_weights_decide_where_patches_disagree() -> None:
    patches = torch.stack([torch.full((4, 4), 1 + 0j), torch.full((4, 4), 4 + 0j)])
    weights = torch.stack([torch.full((4, 4), 3.0), torch.full((4, 4), 1.0)])
    corners = torch.tensor([[0, 0], [0, 2]])
    result = stitch(patches, weights, corners, Canvas((0, 0), (4, 6)))
    row = torch.tensor([1, 1, 1.75, 1.75, 4, 4], dtype=torch.complex64)
    torch.testing.assert_close(result.object, row.expand(4, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("zero_weights", ["one patch", "all"])
def test_weights_of_zero_give_finite_results(sample_object: Callable[..., Any], zero_weights: str) -> None:
    patches, weights, corners = make_patches(sample_object, torch.complex128)
    canvas = make_canvas(corners, patches.shape[-1])
    weights[slice(1) if zero_weights == "one patch" else slice(None)] = 0
    result = stitch(patches, weights, corners, canvas)
    assert bool(torch.isfinite(result.object).all())
    assert bool(torch.isfinite(result.coverage).all())
    covered = result.coverage.numpy() > 0
    np.testing.assert_allclose(
        result.object.numpy()[covered], evaluate_on_canvas(sample_object, canvas)[covered], atol=1e-10
    )


@pytest.mark.parametrize("move", [(-3, 0), (0, -3), (3, 0), (0, 3)])
def test_a_patch_outside_the_canvas_raises(sample_object: Callable[..., Any], move: tuple[int, int]) -> None:
    patches, weights, corners = make_patches(sample_object, torch.complex64)
    canvas = make_canvas(corners, patches.shape[-1])
    with pytest.raises(IndexError, match="outside"):
        stitch(patches, weights, corners + torch.tensor(move), canvas)
