"""Stitching: true patches give the true object, and patches free in phase are brought to one phase."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.physics.patches import Canvas, extract_patches, make_canvas
from ptycho_torch.prediction.stitching import MIN_RELATIVE_WEIGHT, StitchedObject, stitch


def make_patches(object_at: Callable[..., Any], dtype: torch.dtype, size: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (n, N, N) cut by a plain loop, weights and corners; corners start below zero."""
    rng = np.random.default_rng(0)
    corners = np.mgrid[-6:35:8j, 3:40:8j].reshape(2, -1).T + rng.integers(-1, 2, (64, 2))
    corners = corners.astype(np.int64)
    patches = np.stack([object_at(y + np.arange(size), x + np.arange(size)) for y, x in corners])
    axis = np.arange(size) - size // 2
    spot = np.exp(-(axis[:, None] ** 2 + 0.6 * axis**2) / (0.12 * size**2))
    weights = spot * rng.uniform(0.5, 2, (64, 1, 1)) * 1e4
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    return torch.from_numpy(patches).to(dtype), torch.from_numpy(weights).to(real), torch.from_numpy(corners)


def truth_on(object_at: Callable[..., Any], frame: Canvas) -> Any:
    (top, left), (height, width) = frame
    return object_at(top + np.arange(height), left + np.arange(width))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 1e-5), (torch.complex128, 1e-10)])
@pytest.mark.parametrize("align", [False, True])
def test_true_patches_give_the_true_object(
    sample_object: Callable[..., Any], dtype: torch.dtype, tolerance: float, align: bool
) -> None:
    patches, weights, corners = make_patches(sample_object, dtype)
    frame = make_canvas(corners, patches.shape[-1])
    found = stitch(patches, weights, corners, frame, align)
    assert found.object.dtype == dtype
    lit = found.coverage.numpy() > 0
    assert lit.mean() > 0.7
    np.testing.assert_allclose(found.object.numpy()[lit], truth_on(sample_object, frame)[lit], atol=tolerance, rtol=0)
    np.testing.assert_array_equal(found.object.numpy()[~lit], 1)


def test_coverage_is_the_sum_of_the_weights(sample_object: Callable[..., Any]) -> None:
    patches, weights, corners = make_patches(sample_object, torch.complex128)
    frame = make_canvas(corners, patches.shape[-1])
    expected = np.zeros(frame.shape)
    for weight, (y, x) in zip(weights.numpy(), corners.numpy() - np.array(frame.origin), strict=True):
        expected[y : y + len(weight), x : x + len(weight)] += weight
    np.testing.assert_allclose(stitch(patches, weights, corners, frame).coverage, expected, rtol=0, atol=1e-4 * 1e4)


def ring(count: int) -> Any:
    """Positions (count, 2) on a circle, 2π pixels apart: the phase may come back a turn off."""
    turn = np.arange(count) / count * 2 * np.pi
    return count * np.stack([np.cos(turn), np.sin(turn)], 1)


SCANS = {
    "grid": np.mgrid[0:40:6j, 0:50:7j].reshape(2, -1).T,
    "line": np.stack([np.zeros(30), np.arange(30) * 6], 1),
    "ring": ring(60),
    "wide ring": ring(200),
    "comb": np.concatenate([[[0, 6 * k] for k in range(24)], *([[6 * k, 46 * t] for k in range(8)] for t in range(4))]),
    "twice at each position": np.repeat(np.mgrid[0:20:4j, 0:20:4j].reshape(2, -1).T, 2, 0),
    "one": np.zeros((1, 2)),
    "crowd": np.mgrid[0:20:11j, 0:20:11j].reshape(2, -1).T,
}


class Turned(NamedTuple):
    """True patches, each by a phase of its own."""

    patches: Tensor
    weights: Tensor
    corners: Tensor
    canvas: Canvas
    truth: Any

    def error(self, found: StitchedObject, island: slice = slice(None)) -> float:
        """Largest error where it is well lit, after one phase."""
        rows, columns = found.coverage.shape
        (top, left), size = self.canvas.origin, self.patches.shape[-1]
        mine = np.zeros((rows, columns), bool)
        for row, column in (self.corners[island] - torch.tensor([top, left])).tolist():
            mine[row : row + size, column : column + size] = True
        lit = mine & (found.coverage > 0.05 * found.coverage.max()).numpy()
        rec, true = found.object.numpy()[lit], self.truth[lit]
        return float(np.abs(rec * np.exp(-1j * np.angle(np.vdot(true, rec))) - true).max())


def turned(
    object_at: Callable[..., Any], positions: Any, size: int = 13, spread: float = np.pi, dtype: Any = torch.complex128
) -> Turned:
    corners = torch.from_numpy(np.round(positions).astype(np.int64))
    frame = make_canvas(corners, size)
    truth = truth_on(object_at, frame)
    patches = extract_patches(torch.from_numpy(truth), corners - torch.tensor(frame.origin), size)
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(axis[:, None] ** 2 + 0.6 * axis**2) / (0.12 * size**2)).expand(patches.shape).contiguous()
    angles = torch.from_numpy(np.random.default_rng(1).uniform(-spread, spread, (len(corners), 1, 1)))
    patches = (patches * torch.polar(torch.ones_like(angles), angles)).to(dtype)
    return Turned(patches, weights.to(patches.real.dtype), corners, frame, truth)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_any_phases_are_brought_to_one_at_any_shape_of_the_scan(
    sample_object: Callable[..., Any], scan: str, dtype: torch.dtype
) -> None:
    given = turned(sample_object, SCANS[scan], dtype=dtype)
    assert given.error(stitch(*given[:4])) < 1e-5
    if scan != "one":
        assert given.error(stitch(*given[:4], align=False)) > 0.1


@pytest.mark.parametrize("size", [13, 33, 50])  # compared on every pixel, every second one, every third one
@pytest.mark.parametrize("scan", ["grid", "crowd"])  # in a crowd on every one, fourth, sixth
def test_large_patches_are_compared_on_some_of_their_pixels(
    sample_object: Callable[..., Any], size: int, scan: str
) -> None:
    given = turned(sample_object, SCANS[scan], size)
    assert given.error(stitch(*given[:4])) < 1e-5


def test_each_island_is_turned_by_nothing_on_average(sample_object: Callable[..., Any]) -> None:
    """Two fields that share no light: each is right by itself, and its phase is that of its own patches' mean."""
    first, second = SCANS["grid"], SCANS["grid"][:20] + np.array([0, 200])
    given = turned(sample_object, np.concatenate([first, second]), spread=1.0)
    found = stitch(*given[:4])
    for island in (slice(0, len(first)), slice(len(first), None)):
        assert given.error(found, island) < 1e-5
        assert abs(float(found.phase_factors[island].sum().angle())) < 1e-9


def test_some_patches_of_noise_do_not_drag_their_neighbours(sample_object: Callable[..., Any]) -> None:
    """A twentieth of the patches, as bright as the rest or ten times brighter."""
    given = turned(sample_object, np.mgrid[0:60:12j, 0:60:12j].reshape(2, -1).T)
    rng = np.random.default_rng(2)
    bad = rng.permutation(144)[:7]
    for brightness in (0.1, 1.0, 10.0):
        patches = given.patches.clone()
        patches[bad] = torch.from_numpy(brightness * (rng.normal(size=(7, 13, 13)) + 1j * rng.normal(size=(7, 13, 13))))
        found = stitch(patches, *given[1:4])
        assert given._replace(patches=patches).error(found) < 2e-3
        assert float(found.patch_weights[bad].max()) < 1e-3
        good = np.setdiff1d(np.arange(144), bad)
        assert float(found.patch_weights[good].min()) == 1
        plain = stitch(patches, *given[1:4])._replace(object=stitch(patches, *given[1:4], align=False).object)
        assert given.error(plain) > 0.1


def test_the_order_of_the_patches_does_not_matter(sample_object: Callable[..., Any]) -> None:
    given = turned(sample_object, SCANS["comb"])
    noisy = given.patches + 0.1 * torch.randn(given.patches.shape, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(len(noisy), generator=torch.Generator().manual_seed(1))
    one = stitch(noisy, *given[1:4])
    other = stitch(noisy[order], given.weights[order], given.corners[order], given.canvas)
    torch.testing.assert_close(other.object, one.object, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.phase_factors, one.phase_factors[order], atol=1e-6, rtol=0)


def test_no_patch_would_turn_further(sample_object: Callable[..., Any]) -> None:
    """Of noisy patches each has, in the end, the phase that the mean of all asks of it: where rounds would settle."""
    given = turned(sample_object, SCANS["grid"], spread=0.5)
    noisy = given.patches + 0.3 * torch.randn(given.patches.shape, generator=torch.Generator().manual_seed(0))
    weights = torch.where(given.weights > 2 * MIN_RELATIVE_WEIGHT * given.weights.amax(), given.weights, 0)
    found = stitch(noisy, weights, given.corners, given.canvas)
    corners = given.corners - torch.tensor(given.canvas.origin)
    asked = (
        weights * (noisy * found.phase_factors[:, None, None]).conj() * extract_patches(found.object, corners, 13)
    ).sum((1, 2))
    assert float(asked.angle().abs().max()) < 1e-4
    assert float((found.patch_weights - 1).abs().max()) == 0


def test_the_weights_decide_where_patches_disagree() -> None:
    patches = torch.stack([torch.full((4, 4), 1 + 0j), torch.full((4, 4), 4 + 0j)])
    weights = torch.stack([torch.full((4, 4), 3.0), torch.full((4, 4), 1.0)])
    corners = torch.tensor([[0, 0], [0, 2]])
    found = stitch(patches, weights, corners, Canvas((0, 0), (4, 6)))
    row = torch.tensor([1, 1, 1.75, 1.75, 4, 4], dtype=torch.complex64)
    torch.testing.assert_close(found.object, row.expand(4, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["one patch", "all"])
def test_weights_of_zero_divide_nothing(sample_object: Callable[..., Any], which: str) -> None:
    patches, weights, corners = make_patches(sample_object, torch.complex128)
    frame = make_canvas(corners, patches.shape[-1])
    weights[slice(1) if which == "one patch" else slice(None)] = 0
    found = stitch(patches, weights, corners, frame)
    assert bool(torch.isfinite(found.object).all())
    assert bool(torch.isfinite(found.coverage).all())
    lit = found.coverage.numpy() > 0
    np.testing.assert_allclose(found.object.numpy()[lit], truth_on(sample_object, frame)[lit], atol=1e-10)


@pytest.mark.parametrize("move", [(-3, 0), (0, -3), (3, 0), (0, 3)])
def test_a_patch_outside_the_frame_is_an_error(sample_object: Callable[..., Any], move: tuple[int, int]) -> None:
    patches, weights, corners = make_patches(sample_object, torch.complex64)
    frame = make_canvas(corners, patches.shape[-1])
    with pytest.raises(IndexError, match="outside"):
        stitch(patches, weights, corners + torch.tensor(move), frame)
