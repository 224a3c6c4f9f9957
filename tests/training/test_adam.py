"""Adam: comparison with the optimizer of torch, and its state dictionary."""

import subprocess
import sys

import pytest
import torch

from ptycho_torch.training.adam import Adam, ParameterGroup


def make_weights() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (2, 3, 2, 2), (5,))
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    weights[1] = weights[1].to(memory_format=torch.channels_last)
    return [weight.requires_grad_() for weight in weights]


def compute_loss(weights: list[torch.Tensor], step: int) -> torch.Tensor:
    return sum(((weight - 0.1 * step) ** 4).sum() for weight in weights) + torch.zeros(())


def test_steps_equal_those_of_torch() -> None:
    weights, expected = make_weights(), make_weights()
    adam = Adam([ParameterGroup(weights[:2], 1.0), ParameterGroup(weights[2:], 7.0)])
    reference = torch.optim.Adam([{"params": expected[:2], "lr": 0.01}, {"params": expected[2:], "lr": 0.07}])
    for step in range(20):
        adam.zero_grad()
        compute_loss(weights, step).backward()
        adam.step(0.01)
        reference.zero_grad()
        compute_loss(expected, step).backward()
        reference.step()
    for weight, expected_weight in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, expected_weight)


def test_restored_state_continues_exactly() -> None:
    uninterrupted, resumed = make_weights(), make_weights()
    first, second = Adam([ParameterGroup(uninterrupted, 1.0)]), Adam([ParameterGroup(resumed, 1.0)])
    for step in range(6):
        if step == 3:
            state = {
                name: tensor.clone(memory_format=torch.contiguous_format)
                for name, tensor in second.state_dict().items()
            }
            second = Adam([ParameterGroup(resumed, 1.0)])
            second.load_state_dict(state)
        for adam, weights in ((first, uninterrupted), (second, resumed)):
            adam.zero_grad()
            compute_loss(weights, step).backward()
            adam.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted, resumed, strict=True))
    with pytest.raises(KeyError):
        second.load_state_dict({})


def test_import_does_not_load_the_compiler_of_torch() -> None:
    code = (
        "import sys, torch; from ptycho_torch.training.adam import Adam, ParameterGroup; "
        "w = torch.ones(3, requires_grad=True); "
        "a = Adam([ParameterGroup([w], 1.0)]); w.sum().backward(); a.step(0.1); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
