"""Roughness penalties: equal to sums written out, and the effect of minimizing them."""

import numpy as np
import pytest
import torch

from ptycho_torch.physics.regularizers import squared_gradient_norm, total_variation


@pytest.fixture
def image() -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.standard_normal((5, 7)) + 1j * rng.standard_normal((5, 7)))


def written_out(image: torch.Tensor) -> list[float]:
    """|∂y|² + |∂x|² of each pixel, by a loop."""
    rows, columns = image.shape
    found = []
    for r in range(rows):
        for c in range(columns):
            down = abs(image[r + 1, c] - image[r, c]) ** 2 if r + 1 < rows else 0.0
            across = abs(image[r, c + 1] - image[r, c]) ** 2 if c + 1 < columns else 0.0
            found.append(float(down + across))
    return found


def test_both_are_the_sums_written_out(image: torch.Tensor) -> None:
    squares = np.array(written_out(image))
    assert float(squared_gradient_norm(image)) == pytest.approx(squares.sum(), rel=1e-12)
    expected = (np.sqrt(squares + 0.2**2) - 0.2).sum()
    assert float(total_variation(image, smoothing=0.2)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("roughness", [squared_gradient_norm, total_variation])
def test_what_is_flat_costs_nothing_and_pulls_nowhere(roughness: object) -> None:
    flat = torch.full((4, 6), 0.7 - 0.2j, dtype=torch.complex128, requires_grad=True)
    cost = roughness(flat)  # type: ignore[operator]
    cost.backward()
    assert float(cost.detach()) == 0
    assert flat.grad is not None
    assert flat.grad.abs().max() == 0


@pytest.mark.parametrize("roughness", [squared_gradient_norm, total_variation])
def test_a_global_phase_changes_nothing(roughness: object, image: torch.Tensor) -> None:
    turned = image * complex(np.exp(0.8j))
    assert float(roughness(turned)) == pytest.approx(float(roughness(image)), rel=1e-12)  # type: ignore[operator]


def test_an_edge_costs_its_height_and_a_ramp_of_that_height_the_same_or_less_when_squared() -> None:
    edge, ramp = torch.zeros(1, 11, dtype=torch.float64), torch.linspace(0, 1, 11, dtype=torch.float64)[None]
    edge[0, 5:] = 1
    assert float(total_variation(edge, 1e-6)) == pytest.approx(1, abs=1e-4)
    assert float(total_variation(ramp, 1e-6)) == pytest.approx(1, abs=1e-4)
    assert float(squared_gradient_norm(edge)) == pytest.approx(1)
    assert float(squared_gradient_norm(ramp)) == pytest.approx(0.1)


def test_gradients_agree_with_finite_differences(image: torch.Tensor) -> None:
    parts = torch.view_as_real(image).clone().requires_grad_()
    for roughness in (squared_gradient_norm, total_variation):
        torch.autograd.gradcheck(lambda x, f=roughness: f(torch.view_as_complex(x)), (parts,))


def test_total_variation_flattens_noise_and_keeps_an_edge_which_squares_blur() -> None:
    rng = np.random.default_rng(2)
    clean = np.zeros((20, 24))
    clean[:, 12:] = 1
    noisy = torch.from_numpy(clean + 0.1 * rng.standard_normal(clean.shape))

    def denoised(roughness: object, weight: float) -> torch.Tensor:
        found = noisy.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([found], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            cost = (found - noisy).square().sum() / 2 + weight * roughness(found)  # type: ignore[operator]
            cost.backward()
            return cost

        optimizer.step(closure)
        return found.detach()

    def ground_and_edge(picture: torch.Tensor) -> tuple[float, float]:
        return float(picture[:, :10].std()), float((picture[:, 12] - picture[:, 11]).mean())

    (noise, _), (flat, kept), (smooth, blurred) = (
        ground_and_edge(picture)
        for picture in (noisy, denoised(total_variation, 0.2), denoised(squared_gradient_norm, 2.0))
    )
    assert flat < noise / 4
    assert smooth < noise / 2
    assert kept > 0.8 > 0.5 > blurred
