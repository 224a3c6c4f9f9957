"""Muon: what its step is, a direction at a time; and a checkpoint of it."""

import pytest
import torch

from ptycho_torch.training.muon import KernelGroup, Muon, orthogonalize


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 8)])
def test_a_step_goes_as_far_in_weak_directions_as_in_strong_ones(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(randn(*shape), full_matrices=False)
    strengths = torch.logspace(0, -1.5, min(shape))
    _, found = orthogonalize([randn(3, 50), left * strengths @ right])
    along = left.T @ found @ right.T
    assert (along.diagonal() > 0.6).all()
    assert (along.diagonal() < 1.3).all()
    assert float((along - along.diagonal().diag()).abs().max()) < 1e-4  # and turns into no other direction


def test_the_unit_of_a_gradient_does_not_matter() -> None:
    matrix = randn(5, 9)
    strong, weak, none = orthogonalize([1e6 * matrix, 1e-6 * matrix, torch.zeros(3, 4)])
    torch.testing.assert_close(strong, weak)
    assert not none.any()


def weights_of() -> list[torch.Tensor]:
    kernel = randn(4, 3, 2, 2, seed=1).to(memory_format=torch.channels_last)
    return [weight.requires_grad_() for weight in (randn(6, 5), kernel, randn(2, 2))]


def descend(muon: Muon, steps: int) -> None:
    for _ in range(steps):
        muon.zero_grad()
        sum((weight - 0.1).square().sum() for weight in muon.weights[:2]).backward()  # type: ignore[union-attr]
        muon.step(0.01)


def test_it_descends_and_leaves_alone_what_has_no_gradient() -> None:
    weights = weights_of()
    before = [float((weight.detach() - 0.1).square().sum()) for weight in weights]
    descend(Muon(KernelGroup(weights, 2.0)), 100)
    after = [float((weight.detach() - 0.1).square().sum()) for weight in weights]
    assert after[0] < 0.3 * before[0]
    assert after[1] < 0.3 * before[1]
    assert after[2] == before[2]


def test_it_goes_on_exactly_from_its_state() -> None:
    whole, parts = weights_of(), weights_of()
    descend(Muon(KernelGroup(whole, 1.0)), 6)
    first = Muon(KernelGroup(parts, 1.0))
    descend(first, 3)
    second = Muon(KernelGroup(parts, 1.0))
    second.load_state_dict(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in first.state_dict().items()}
    )
    descend(second, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    with pytest.raises(KeyError):
        second.load_state_dict({})


def test_a_kernel_moves_alike_in_any_company_and_memory_order() -> None:
    kernel, gradient = randn(7, 5, 3, 3), randn(7, 5, 3, 3, seed=1)
    lonely = kernel.clone().requires_grad_()
    lonely.grad = gradient.clone()
    Muon(KernelGroup([lonely], 1.0)).step(0.1)
    among = kernel.clone().to(memory_format=torch.channels_last).requires_grad_()
    among.grad = gradient.clone().to(memory_format=torch.channels_last)
    others = [randn(90, 40, seed=2).requires_grad_(), randn(30, 200, seed=3).requires_grad_()]
    for other in others:
        other.grad = randn(*other.shape, seed=4)
    Muon(KernelGroup([others[0], among, others[1]], 1.0)).step(0.1)
    torch.testing.assert_close(among, lonely, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1e-10, 1e-19, 1e-25, 1e-38])
def test_next_to_no_gradient_is_no_explosion(size: float) -> None:
    """Where squares are rounded to zero, too: no step is larger than that of a gradient of size one."""
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    small, full = orthogonalize([matrix * size, matrix])
    assert small.norm() <= full.norm() * 1.5
