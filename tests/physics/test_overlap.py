"""The weighted canvas average and the overlap constraint, against slow sums, on odd and non-square canvases."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.physics.overlap import (
    PATCHES_PER_CHUNK,
    WEIGHT_FLOOR_FRACTION,
    apply_overlap_constraint,
    average_on_canvas,
    merge_patches,
)
from ptycho_torch.physics.patches import extract_patches

EXACT = 1e-10


def waves(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("shape", "size"), [((19, 26), 7), ((31, 17), 8)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_average_is_the_explicit_sum(
    rng: np.random.Generator, shape: tuple[int, int], size: int, requires_grad: bool
) -> None:
    """More patches than a chunk, with weights and phase factors of whole patches."""
    n = PATCHES_PER_CHUNK + 5
    patches, weights = waves(rng, n, size, size), rng.uniform(0, 1, (n, size, size))
    corners = np.stack([rng.integers(0, length - size - 2, n) for length in shape], -1)
    trust, turn = rng.uniform(0.1, 1, n), np.exp(1j * rng.uniform(-3, 3, n))
    total, weight_sum, coverage = np.zeros(shape, complex), np.zeros(shape), np.zeros(shape)
    floor = WEIGHT_FLOOR_FRACTION * weights.max()
    for patch, weight, (row, column), t, c in zip(patches.numpy(), weights, corners, trust, turn, strict=True):
        window = np.s_[row : row + size, column : column + size]
        total[window] += c * t * (weight + floor) * patch
        weight_sum[window] += t * (weight + floor)
        coverage[window] += weight + floor
    expected = np.where(weight_sum > 0, total / np.where(weight_sum > 0, weight_sum, 1), 1)
    average = average_on_canvas(
        patches.requires_grad_(requires_grad),
        torch.from_numpy(weights),
        torch.from_numpy(corners),
        shape,
        patch_weights=torch.from_numpy(trust),
        phase_factors=torch.from_numpy(turn),
    )
    assert np.abs(average.mean.detach().numpy() - expected).max() < EXACT
    assert np.abs(average.coverage.numpy() - coverage).max() < EXACT
    assert (expected == 1).any()


def test_average_is_differentiable(rng: np.random.Generator) -> None:
    corners, weights = torch.tensor([[0, 0], [2, 1]]), torch.from_numpy(rng.uniform(0, 1, (2, 4, 4)))
    patches = waves(rng, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: average_on_canvas(p, weights, corners, (7, 9)).mean, patches)


def test_average_without_illumination_is_the_plain_mean(rng: np.random.Generator) -> None:
    patches = waves(rng, 2, 4, 4)
    average = average_on_canvas(patches, torch.zeros(2, 4, 4), torch.tensor([[0, 0], [0, 0]]), (6, 6))
    assert torch.isfinite(torch.view_as_real(average.mean)).all()
    assert (average.mean[:4, :4] - patches.mean(0)).abs().max() < EXACT
    assert average.mean[5, 5] == 1
    assert average.coverage[5, 5] == 0


def test_overlap_constraint_keeps_consistent_patches(rng: np.random.Generator) -> None:
    obj = waves(rng, 25, 27)
    corners = torch.tensor([[[0, 0], [2, 3], [5, 1]], [[9, 8], [10, 12], [8, 8]]])
    patches = torch.stack([extract_patches(obj, group, 8) for group in corners])
    weights = torch.from_numpy(rng.uniform(0, 1, (2, 3, 8, 8)))
    assert (merge_patches(patches, weights, corners) - patches).abs().max() < EXACT


def test_merged_patches_agree_and_are_the_weighted_mean(rng: np.random.Generator) -> None:
    corners = torch.tensor([[[4, 4], [6, 5]]])
    patches, weights = waves(rng, 1, 2, 6, 6), torch.from_numpy(rng.uniform(0.5, 1, (1, 2, 6, 6)))
    merged = merge_patches(patches, weights, corners)
    assert (merged[0, 0, 2:, 1:] - merged[0, 1, :4, :5]).abs().max() < EXACT
    a, b = (weights[0, 0, 3, 3], patches[0, 0, 3, 3]), (weights[0, 1, 1, 2], patches[0, 1, 1, 2])
    mean = (a[0] * a[1] + b[0] * b[1]) / (a[0] + b[0])
    assert abs(complex(merged[0, 0, 3, 3] - mean)) < 1e-5  # the floor of the weights is 1e-6 of the largest


def test_groups_are_merged_independently(rng: np.random.Generator) -> None:
    corners = torch.tensor([[[0, 0], [2, 1]], [[0, 0], [1, 3]]])
    patches, weights = waves(rng, 2, 2, 5, 5), torch.from_numpy(rng.uniform(0.5, 1, (2, 2, 5, 5)))
    merged = merge_patches(patches, weights, corners)
    for group in range(2):
        alone = merge_patches(*(tensor[group : group + 1] for tensor in (patches, weights, corners)))
        assert (merged[group] - alone[0]).abs().max() < 1e-6


def test_overlap_constraint_of_a_batch_is_that_of_one_group(rng: np.random.Generator) -> None:
    corners = torch.tensor([[10, -4], [12, 1], [7, 0]])
    patches, weights = waves(rng, 3, 7, 7), torch.from_numpy(rng.uniform(0, 1, (3, 7, 7)))
    expected = merge_patches(patches[None], weights[None], corners[None])[0]
    assert (apply_overlap_constraint(patches, weights, corners) - expected).abs().max() < EXACT
