"""Adam (Kingma & Ba, ICLR 2015) by torch's own fused kernel, with a step that each call gives.

The objects of ``torch.optim`` import torch's compiler at their first use, which takes longer than a short training. The
function behind them does not, and one state a weight is all that a checkpoint needs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class ParameterGroup(NamedTuple):
    """Weights that share a step."""

    weights: list[Tensor]
    scale: float
    """Their step as a multiple of the one that is given."""


class Adam:
    """Moments of the gradients of some weights, and the steps that follow from them."""

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
        """Forget the gradients of the last batch."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every weight that has a gradient by about ``rate`` times the scale of its group."""
        first = 0
        for group in self.groups:
            states = self._state[first : first + len(group.weights)]
            first += len(group.weights)
            pairs = zip(group.weights, states, strict=True)
            moving = [(weight, state) for weight, state in pairs if weight.grad is not None]
            if not moving:
                continue
            adam(
                [weight for weight, _ in moving],
                [weight.grad for weight, _ in moving if weight.grad is not None],
                [state["exp_avg"] for _, state in moving],
                [state["exp_avg_sq"] for _, state in moving],
                [],
                [state["step"] for _, state in moving],
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
        """All moments by ``index.name``, for a checkpoint."""
        return {f"{index}.{name}": tensor for index, one in enumerate(self._state) for name, tensor in one.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: one is of another shape.
        """
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])  # in place: it keeps the memory layout of its weight
