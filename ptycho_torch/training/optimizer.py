"""How weights move: Muon for kernels, Adam for the rest, a rate that falls for ever, and a running mean of it all.

The learning rate falls with the square root of the steps, and what counts is a running mean of the weights whose
memory is a fixed share of the steps so far. Nothing depends on how many steps are still to come, so that a training may
be continued to any length with the same bytes as one that was never interrupted.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import ALONE, Ranks
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.training.adam import Adam, Group
from ptycho_torch.training.muon import Kernels, Muon

KERNEL_STEP = 20 / 3
"""Muon's step for the kernels as a multiple of Adam's for the biases."""

PROBE_STEP = 100.0
"""Adam's step for the probe (√photons) as a multiple of that for the biases."""

POSITION_STEP = 60.0
"""Adam's step for the positions (pixels) as a multiple of that for the biases."""

BACKGROUND_STEP = 30.0
"""Adam's step for a background (photons) as a multiple of that for the biases."""

POSITION_START = 100
"""Steps after which positions and backgrounds move: before, the object is too rough to tell."""

DECAY_STEPS = 100
"""Steps t after which the learning rate falls as 1/√(1 + t / DECAY_STEPS)."""


class Pace(NamedTuple):
    """How large the steps are."""

    learning_rate: float
    """Largest step of Adam for the network's biases; :data:`KERNEL_STEP` times that is Muon's for its kernels."""

    warm_up: int
    """Steps over which the learning rate rises."""


class Optimiser:
    """Moves the weights of ``model`` in place, and keeps their running mean.

    Args:
        model: its network learns, and of what belongs to its scans whatever asks for gradients.
        pace: how large the steps are.
        ranks: the processes that each have a part of the loss, and all make the same steps.
    """

    def __init__(self, model: PtychoModel, pace: Pace, ranks: Ranks = ALONE) -> None:
        self.model, self.pace, self.ranks, self.steps = model, pace, ranks, 0
        parameters = list(model.network.parameters())
        self.muon = Muon(Kernels([weight for weight in parameters if weight.dim() > 1], KERNEL_STEP))
        groups = [Group([weight for weight in parameters if weight.dim() <= 1], 1.0)]
        learned = [parts for parts in model.all_probe_parts if parts.requires_grad]
        if learned:
            groups.append(Group(learned, PROBE_STEP))
        sources = range(len(model.all_probe_parts))
        shifts = [parts for source in sources if (parts := model.shifts_of(source)) is not None]
        backgrounds = [parts for source in sources if (parts := model.background_of(source)) is not None]
        groups += [Group(shifts, POSITION_STEP), Group(backgrounds, BACKGROUND_STEP)]
        self._late = [*shifts, *backgrounds]
        self.adam = Adam(groups)
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]

    @property
    def rate(self) -> float:
        """The learning rate at the current step."""
        warm = min(1.0, self.steps / max(self.pace.warm_up, 1))
        return self.pace.learning_rate * warm / math.sqrt(1 + self.steps / DECAY_STEPS)

    def clear_gradients(self) -> None:
        """Forget the gradients of the last batch."""
        self.muon.clear_gradients()
        self.adam.clear_gradients()

    def descend(self, loss: Tensor, constrain: Callable[[], None] = lambda: None) -> None:
        """One step down the gradient of ``loss``, this rank's part; ``constrain`` then brings back what strayed."""
        self.clear_gradients()
        loss.backward()
        self.steps += 1
        if self.steps <= POSITION_START:
            for late in self._late:
                late.grad = None
        self.ranks.add_up([weight.grad for _, weight in self._weights if weight.grad is not None])
        self.muon.step(self.rate)
        self.adam.step(self.rate)
        constrain()
        # Polynomial-decay averaging (Shamir & Zhang, ICML 2013, with η = 8): the mean of about the last ninth.
        share = 9 / (self.steps + 8)
        with torch.no_grad():
            for name, weight in self._weights:
                self.average[name].lerp_(weight, share)

    @contextmanager
    def averaged(self) -> Iterator[PtychoModel]:
        """The model with the averaged weights, for as long as the context lasts."""
        training = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.load_state_dict(training)

    def state(self) -> dict[str, Tensor]:
        """All that :meth:`load` needs besides the number of steps, by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        tensors |= {f"muon.{name}": tensor for name, tensor in self.muon.state().items()}
        return tensors | {f"adam.{name}": tensor for name, tensor in self.adam.state().items()}

    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Take back what :meth:`state` gave after ``steps`` steps.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: one is of another shape.
        """
        self.model.load_state_dict(_part(tensors, "model."), strict=True)
        self.average = {name: tensor.to(self.model.device) for name, tensor in _part(tensors, "average.").items()}
        self.muon.load(_part(tensors, "muon."))
        self.adam.load(_part(tensors, "adam."))
        self.steps = steps


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
