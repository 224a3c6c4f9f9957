"""Adam (Kingma & Ba, ICLR 2015) by torch's fused kernel, with a learning rate per call.

The optimizer classes of ``torch.optim`` import torch's compiler at their first use, which takes longer than a short
training. The function that they call does not. A checkpoint needs one state per parameter.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class ParameterGroup(NamedTuple):
    """Parameters with a common learning rate."""

    weights: list[Tensor]
    scale: float
    """Their learning rate as a multiple of the base rate."""


class Adam:
    """Adam for groups of parameters.

    Args:
        groups: parameters, changed in place, and their relative learning rates.
    """

    def __init__(self, groups: list[ParameterGroup]) -> None:
        self.groups = groups
        self.weights = [weight for group in groups for weight in group.weights]
        self._state = [
            {
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
                "step": torch.zeros((), device=weight.device),
            }
            for weight in self.weights
        ]

    def zero_grad(self) -> None:
        """Delete the gradients of the last batch."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter that has a gradient, by about ``rate`` times the scale of its group."""
        first = 0
        for group in self.groups:
            states = self._state[first : first + len(group.weights)]
            first += len(group.weights)
            pairs = zip(group.weights, states, strict=True)
            updated = [(weight, state) for weight, state in pairs if weight.grad is not None]
            if not updated:
                continue
            adam(
                [weight for weight, _ in updated],
                [weight.grad for weight, _ in updated if weight.grad is not None],
                [state["exp_avg"] for _, state in updated],
                [state["exp_avg_sq"] for _, state in updated],
                [],
                [state["step"] for _, state in updated],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=rate * group.scale,
                weight_decay=0.0,
                eps=EPSILON,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return all moments by ``index.name``, for a checkpoint."""
        return {f"{index}.{name}": tensor for index, state in enumerate(self._state) for name, tensor in state.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore the moments that :meth:`state_dict` returned.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: a tensor has another shape.
        """
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])  # in place, to keep the memory layout of the parameter
