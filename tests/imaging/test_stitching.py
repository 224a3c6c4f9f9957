"""Stitching: true patches give the true object, and patches free in phase are brought to one phase."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.imaging.stitching import stitch
from ptycho_torch.physics.patches import Frame, frame_of


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


def truth_on(object_at: Callable[..., Any], frame: Frame) -> Any:
    (top, left), (height, width) = frame
    return object_at(top + np.arange(height), left + np.arange(width))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 1e-5), (torch.complex128, 1e-10)])
@pytest.mark.parametrize("align", [0, 8])
def test_true_patches_give_the_true_object(
    object_at: Callable[..., Any], dtype: torch.dtype, tolerance: float, align: int
) -> None:
    patches, weights, corners = make_patches(object_at, dtype)
    frame = frame_of(corners, patches.shape[-1])
    found = stitch(patches, weights, corners, frame, align)
    assert found.object.dtype == dtype
    lit = found.coverage.numpy() > 0
    assert lit.mean() > 0.7
    np.testing.assert_allclose(found.object.numpy()[lit], truth_on(object_at, frame)[lit], atol=tolerance, rtol=0)
    np.testing.assert_array_equal(found.object.numpy()[~lit], 1)


def test_coverage_is_the_sum_of_the_weights(object_at: Callable[..., Any]) -> None:
    patches, weights, corners = make_patches(object_at, torch.complex128)
    frame = frame_of(corners, patches.shape[-1])
    expected = np.zeros(frame.shape)
    for weight, (y, x) in zip(weights.numpy(), corners.numpy() - np.array(frame.origin), strict=True):
        expected[y : y + len(weight), x : x + len(weight)] += weight
    np.testing.assert_allclose(stitch(patches, weights, corners, frame).coverage, expected, rtol=0, atol=1e-4 * 1e4)


@pytest.mark.parametrize("size", [13, 33, 50])  # compared on every pixel, every second one, every third one
def test_random_phases_are_brought_to_one(object_at: Callable[..., Any], size: int) -> None:
    patches, weights, corners = make_patches(object_at, torch.complex128, size)
    frame = frame_of(corners, patches.shape[-1])
    angles = torch.from_numpy(np.random.default_rng(1).uniform(-0.9, 0.9, (len(patches), 1, 1)))
    turned = patches * torch.polar(torch.ones_like(angles), angles)
    truth = truth_on(object_at, frame)

    def error(align: int) -> float:
        found = stitch(turned, weights, corners, frame, align)
        bright = (found.coverage > 0.1 * found.coverage.max()).numpy()
        rec, true = found.object.numpy()[bright], truth[bright]
        rec = rec * np.exp(-1j * np.angle(np.vdot(true, rec)))
        return float(np.linalg.norm(rec - true) / np.linalg.norm(true))

    rounds = [error(align) for align in (0, 2, 8, 32, 400)]
    assert rounds[0] > 0.15
    assert rounds[0] > rounds[1] > rounds[2]
    assert rounds[2] < 0.4 * rounds[0]
    assert rounds[-1] < 1e-6


def test_the_weights_decide_where_patches_disagree() -> None:
    patches = torch.stack([torch.full((4, 4), 1 + 0j), torch.full((4, 4), 4 + 0j)])
    weights = torch.stack([torch.full((4, 4), 3.0), torch.full((4, 4), 1.0)])
    corners = torch.tensor([[0, 0], [0, 2]])
    found = stitch(patches, weights, corners, Frame((0, 0), (4, 6)))
    row = torch.tensor([1, 1, 1.75, 1.75, 4, 4], dtype=torch.complex64)
    torch.testing.assert_close(found.object, row.expand(4, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["one patch", "all"])
def test_weights_of_zero_divide_nothing(object_at: Callable[..., Any], which: str) -> None:
    patches, weights, corners = make_patches(object_at, torch.complex128)
    frame = frame_of(corners, patches.shape[-1])
    weights[slice(1) if which == "one patch" else slice(None)] = 0
    found = stitch(patches, weights, corners, frame)
    assert bool(torch.isfinite(found.object).all())
    assert bool(torch.isfinite(found.coverage).all())
    lit = found.coverage.numpy() > 0
    np.testing.assert_allclose(found.object.numpy()[lit], truth_on(object_at, frame)[lit], atol=1e-10)


@pytest.mark.parametrize("move", [(-3, 0), (0, -3), (3, 0), (0, 3)])
def test_a_patch_outside_the_frame_is_an_error(object_at: Callable[..., Any], move: tuple[int, int]) -> None:
    patches, weights, corners = make_patches(object_at, torch.complex64)
    frame = frame_of(corners, patches.shape[-1])
    with pytest.raises(IndexError, match="outside"):
        stitch(patches, weights, corners + torch.tensor(move), frame)
