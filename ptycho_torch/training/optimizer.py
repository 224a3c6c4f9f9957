"""Optimizer of the trainings: Muon for kernels, Adam for other parameters, a decaying learning rate, averaged weights.

The learning rate falls with the square root of the steps. The result is a running mean of the weights over a fixed
fraction of the steps so far. Neither depends on the number of steps to come. A training that is continued to any length
has the bytes of one that was never interrupted.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.saved_model import upgrade_tensor_names
from ptycho_torch.training.adam import Adam, ParameterGroup
from ptycho_torch.training.muon import KernelGroup, Muon

KERNEL_RATE_FACTOR = 20 / 3
"""Learning rate of Muon for the kernels as a multiple of the rate of Adam for the biases."""

PROBE_RATE_FACTOR = 100.0
"""Learning rate of the probe (√photons) as a multiple of the rate of the biases."""

POSITION_RATE_FACTOR = 60.0
"""Learning rate of the positions (pixels) as a multiple of the rate of the biases."""

BACKGROUND_RATE_FACTOR = 30.0
"""Learning rate of the background (photons) as a multiple of the rate of the biases."""

POSITION_DELAY_STEPS = 100
"""Steps during which positions and backgrounds stay fixed, because the object is still too inaccurate."""

DECAY_STEPS = 100
"""Steps t after which the learning rate falls as 1/√(1 + t / DECAY_STEPS)."""


class LearningRateSchedule(NamedTuple):
    """Learning rate by step: a linear warm-up, then a decay with the square root of the steps."""

    learning_rate: float
    """Largest step of Adam for the network's biases; Muon's for its kernels is :data:`KERNEL_RATE_FACTOR` times it."""

    warm_up: int
    """Steps over which the learning rate rises."""


class Optimizer:
    """Optimizer of the parameters of a model, with the running mean of its weights.

    Args:
        model: changed in place: its network, and the parameters of its scans that require gradients.
        schedule: learning rate by step.
        process_group: the processes that each compute a part of the loss; all make the same steps.
    """

    def __init__(
        self, model: PtychoModel, schedule: LearningRateSchedule, process_group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.model, self.schedule, self.process_group, self.steps = model, schedule, process_group, 0
        parameters = list(model.network.parameters())
        self.muon = Muon(KernelGroup([weight for weight in parameters if weight.dim() > 1], KERNEL_RATE_FACTOR))
        groups = [ParameterGroup([weight for weight in parameters if weight.dim() <= 1], 1.0)]
        probe_parameters = [parts for parts in model.probe_parameters if parts.requires_grad]
        if probe_parameters:
            groups.append(ParameterGroup(probe_parameters, PROBE_RATE_FACTOR))
        scans = range(len(model.probe_parameters))
        offsets = [parts for scan in scans if (parts := model.get_position_offsets(scan)) is not None]
        backgrounds = [parts for scan in scans if (parts := model.get_background(scan)) is not None]
        groups += [ParameterGroup(offsets, POSITION_RATE_FACTOR), ParameterGroup(backgrounds, BACKGROUND_RATE_FACTOR)]
        self._delayed = [*offsets, *backgrounds]
        self.adam = Adam(groups)
        self.averaged_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self._weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]

    @property
    def learning_rate(self) -> float:
        """The learning rate at the current step."""
        warm = min(1.0, self.steps / max(self.schedule.warm_up, 1))
        return self.schedule.learning_rate * warm / math.sqrt(1 + self.steps / DECAY_STEPS)

    def zero_grad(self) -> None:
        """Delete the gradients of the last batch."""
        self.muon.zero_grad()
        self.adam.zero_grad()

    def backward_and_step(self, loss: Tensor, constrain: Callable[[], None] = lambda: None) -> None:
        """Make one step.

        Args:
            loss: this process's part of the loss.
            constrain: projects the parameters into their bounds after the step.
        """
        self.zero_grad()
        loss.backward()
        self.steps += 1
        if self.steps <= POSITION_DELAY_STEPS:
            for delayed in self._delayed:
                delayed.grad = None
        self.process_group.all_reduce_sum_([weight.grad for _, weight in self._weights if weight.grad is not None])
        self.muon.step(self.learning_rate)
        self.adam.step(self.learning_rate)
        constrain()
        # Polynomial-decay averaging (Shamir & Zhang, ICML 2013, with η = 8): the mean of about the last ninth.
        averaging_share = 9 / (self.steps + 8)
        with torch.no_grad():
            for name, weight in self._weights:
                self.averaged_weights[name].lerp_(weight, averaging_share)

    @contextmanager
    def use_averaged_weights(self) -> Iterator[PtychoModel]:
        """Return a context in which the model has the averaged weights."""
        training = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged_weights)
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.load_state_dict(training)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors of the state by name; :meth:`load_state_dict` also needs the number of steps."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.averaged_weights.items()}
        tensors |= {f"muon.{name}": tensor for name, tensor in self.muon.state_dict().items()}
        return tensors | {f"adam.{name}": tensor for name, tensor in self.adam.state_dict().items()}

    def load_state_dict(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore the state that :meth:`state_dict` returned after ``steps`` steps.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: a tensor has another shape.
        """
        self.model.load_state_dict(upgrade_tensor_names(_select_prefix(tensors, "model.")), strict=True)
        averaged_weights = upgrade_tensor_names(_select_prefix(tensors, "average."))
        self.averaged_weights = {name: tensor.to(self.model.device) for name, tensor in averaged_weights.items()}
        self.muon.load_state_dict(_select_prefix(tensors, "muon."))
        self.adam.load_state_dict(_select_prefix(tensors, "adam."))
        self.steps = steps


def _select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
