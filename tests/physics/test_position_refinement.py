"""Pure functions of the position refinement: the bound, affine maps, and least squares."""

import pytest
import torch

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.physics.position_refinement import (
    check_position_bound,
    fit_affine_displacements,
    limit_displacements,
    solve_displacements,
)


@pytest.mark.parametrize(("model", "clamped"), [("free", True), ("affine", False)])
def test_an_affine_map_is_scaled_and_free_displacements_are_clamped(model: str, clamped: bool) -> None:
    displacements = torch.tensor([[-6.0, 1.0], [6.0, -1.0]], dtype=torch.float64)
    limited = limit_displacements(displacements, 3.0, model)
    assert limited.abs().max() == 3
    assert bool((limited[:, 1].abs() == 1).all()) is clamped


def test_the_bound_is_per_axis_and_follows_the_removal_of_the_mean() -> None:
    displacements = torch.tensor([[3.0, 3.0], [-3.0, -3.0]], dtype=torch.float64)
    torch.testing.assert_close(limit_displacements(displacements, 3.0), displacements)
    torch.testing.assert_close(limit_displacements(displacements + 100, 3.0), displacements)
    assert bool((limit_displacements(displacements, 2.0).abs() == 2).all())


def test_a_bound_beyond_the_side_of_a_pattern_raises() -> None:
    check_position_bound(None, 24)
    check_position_bound(24, 24)
    with pytest.raises(ConfigError, match="`position_bound` is 25; expected at most 24"):
        check_position_bound(25, 24)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_least_squares_recovers_exact_displacements(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    slope_y, slope_x = (torch.randn(3, 2, 5, 5, dtype=dtype, generator=generator) for _ in range(2))
    expected = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    residual = expected[:, 0, None, None, None] * slope_y + expected[:, 1, None, None, None] * slope_x
    solution, curvature = solve_displacements(slope_y, slope_x, residual)
    torch.testing.assert_close(solution, expected, rtol=1e-2, atol=1e-2)  # the constant damping is 1e-3
    assert (torch.linalg.eigvalsh(curvature) > 0).all()
    damped, _ = solve_displacements(slope_y, slope_x, residual, torch.full((3,), 1e9))
    assert damped.abs().max() < 1e-6


def test_an_affine_fit_ignores_displacements_without_curvature() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = 100 * torch.rand(40, 2, dtype=torch.float64, generator=generator)
    linear = torch.tensor([[0.02, -0.017], [0.01, -0.03]], dtype=torch.float64)
    moves = (positions - positions.mean(0)) @ linear.mT + torch.tensor([3.0, -2.0])
    curvature = torch.eye(2, dtype=torch.float64).repeat(40, 1, 1)
    curvature[::3] = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))  # constrains x only
    moves[::3, 0] += 50
    expected = (positions - positions.mean(0)) @ linear.mT
    torch.testing.assert_close(fit_affine_displacements(moves, curvature, positions), expected)
    on_a_line = torch.stack([torch.zeros(40, dtype=torch.float64), positions[:, 1]], 1)
    assert torch.isfinite(fit_affine_displacements(moves, curvature, on_a_line)).all()
