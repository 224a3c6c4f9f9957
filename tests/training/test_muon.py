"""Muon: singular values of its step, and its state dictionary."""

import pytest
import torch

from ptycho_torch.training.muon import KernelGroup, Muon, orthogonalize


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 8)])
def test_step_has_equal_singular_values(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(randn(*shape), full_matrices=False)
    singular_values = torch.logspace(0, -1.5, min(shape))
    _, step = orthogonalize([randn(3, 50), left * singular_values @ right])
    rotated = left.T @ step @ right.T
    assert (rotated.diagonal() > 0.6).all()
    assert (rotated.diagonal() < 1.3).all()
    assert float((rotated - rotated.diagonal().diag()).abs().max()) < 1e-4  # the singular vectors are unchanged


def test_step_does_not_depend_on_the_scale_of_the_gradient() -> None:
    matrix = randn(5, 9)
    large, small, zero = orthogonalize([1e6 * matrix, 1e-6 * matrix, torch.zeros(3, 4)])
    torch.testing.assert_close(large, small)
    assert not zero.any()


def make_weights() -> list[torch.Tensor]:
    kernel = randn(4, 3, 2, 2, seed=1).to(memory_format=torch.channels_last)
    return [weight.requires_grad_() for weight in (randn(6, 5), kernel, randn(2, 2))]


def descend(muon: Muon, steps: int) -> None:
    for _ in range(steps):
        muon.zero_grad()
        sum((weight - 0.1).square().sum() for weight in muon.weights[:2]).backward()  # type: ignore[union-attr]
        muon.step(0.01)


def test_steps_reduce_the_loss_and_skip_weights_without_gradient() -> None:
    weights = make_weights()
    before = [float((weight.detach() - 0.1).square().sum()) for weight in weights]
    descend(Muon(KernelGroup(weights, 2.0)), 100)
    after = [float((weight.detach() - 0.1).square().sum()) for weight in weights]
    assert after[0] < 0.3 * before[0]
    assert after[1] < 0.3 * before[1]
    assert after[2] == before[2]


def test_restored_state_continues_exactly() -> None:
    uninterrupted, resumed = make_weights(), make_weights()
    descend(Muon(KernelGroup(uninterrupted, 1.0)), 6)
    first = Muon(KernelGroup(resumed, 1.0))
    descend(first, 3)
    second = Muon(KernelGroup(resumed, 1.0))
    second.load_state_dict(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in first.state_dict().items()}
    )
    descend(second, 3)
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted, resumed, strict=True))
    with pytest.raises(KeyError):
        second.load_state_dict({})


def test_step_of_a_kernel_does_not_depend_on_other_kernels_or_memory_order() -> None:
    kernel, gradient = randn(7, 5, 3, 3), randn(7, 5, 3, 3, seed=1)
    single = kernel.clone().requires_grad_()
    single.grad = gradient.clone()
    Muon(KernelGroup([single], 1.0)).step(0.1)
    grouped = kernel.clone().to(memory_format=torch.channels_last).requires_grad_()
    grouped.grad = gradient.clone().to(memory_format=torch.channels_last)
    others = [randn(90, 40, seed=2).requires_grad_(), randn(30, 200, seed=3).requires_grad_()]
    for other in others:
        other.grad = randn(*other.shape, seed=4)
    Muon(KernelGroup([others[0], grouped, others[1]], 1.0)).step(0.1)
    torch.testing.assert_close(grouped, single, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1e-10, 1e-19, 1e-25, 1e-38])
def test_step_of_a_tiny_gradient_is_bounded(size: float) -> None:
    """Also if the squares of the gradient underflow."""
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    small, full = orthogonalize([matrix * size, matrix])
    assert small.norm() <= full.norm() * 1.5
