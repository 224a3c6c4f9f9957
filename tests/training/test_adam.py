"""Adam as it is published: against torch's own optimiser, and a checkpoint of it."""

import subprocess
import sys

import pytest
import torch

from ptycho_torch.training.adam import Adam, ParameterGroup


def weights_of() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (2, 3, 2, 2), (5,))
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[1] = made[1].to(memory_format=torch.channels_last)
    return [weight.requires_grad_() for weight in made]


def loss(weights: list[torch.Tensor], step: int) -> torch.Tensor:
    return sum(((weight - 0.1 * step) ** 4).sum() for weight in weights) + torch.zeros(())


def test_it_takes_the_steps_of_torchs_own() -> None:
    ours, theirs = weights_of(), weights_of()
    adam = Adam([ParameterGroup(ours[:2], 1.0), ParameterGroup(ours[2:], 7.0)])
    reference = torch.optim.Adam([{"params": theirs[:2], "lr": 0.01}, {"params": theirs[2:], "lr": 0.07}])
    for step in range(20):
        adam.zero_grad()
        loss(ours, step).backward()
        adam.step(0.01)
        reference.zero_grad()
        loss(theirs, step).backward()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_it_goes_on_exactly_from_its_state() -> None:
    whole, parts = weights_of(), weights_of()
    first, second = Adam([ParameterGroup(whole, 1.0)]), Adam([ParameterGroup(parts, 1.0)])
    for step in range(6):
        if step == 3:
            kept = {
                name: tensor.clone(memory_format=torch.contiguous_format)
                for name, tensor in second.state_dict().items()
            }
            second = Adam([ParameterGroup(parts, 1.0)])
            second.load_state_dict(kept)
        for adam, weights in ((first, whole), (second, parts)):
            adam.zero_grad()
            loss(weights, step).backward()
            adam.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    with pytest.raises(KeyError):
        second.load_state_dict({})


def test_it_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from ptycho_torch.training.adam import Adam, ParameterGroup; "
        "w = torch.ones(3, requires_grad=True); "
        "a = Adam([ParameterGroup([w], 1.0)]); w.sum().backward(); a.step(0.1); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
