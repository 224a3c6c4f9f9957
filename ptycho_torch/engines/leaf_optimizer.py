"""Optimizers of torch with checkpoints made of named tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

LBFGS_SCRATCH_NAME = "al"
"""Entry of the state of L-BFGS that is recomputed in each step."""


class LeafOptimizer:
    """Named leaf tensors that are stepped together, and their optimizer.

    Args:
        leaves: Tensors that require a gradient, by name.
        optimizer: An optimizer of these tensors.
    """

    def __init__(self, leaves: dict[str, Tensor], optimizer: Optimizer) -> None:
        self.leaves, self.optimizer = leaves, optimizer

    def rescale_first_lbfgs_step(self) -> None:
        """Undo the scaling by 1 / |gradient|₁ of the first step of L-BFGS, which assumes unknown units."""
        if not self.optimizer.state:
            gradients = [leaf.grad for leaf in self.leaves.values() if leaf.grad is not None]
            parts = [torch.view_as_real(gradient) if gradient.is_complex() else gradient for gradient in gradients]
            self.optimizer.param_groups[0]["lr"] *= max(1.0, sum(float(part.abs().sum()) for part in parts))

    def change_momentum(self, name: str, change: Callable[[Tensor], Tensor], unit: float | Tensor) -> None:
        """Apply ``change`` to the momentum of a leaf in units of ``unit``.

        L-BFGS restarts, since its previous steps do not agree with the change.
        """
        state = self.optimizer.state.get(self.leaves[name], {})
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.state.clear()
        for key in {"exp_avg", "momentum_buffer"} & state.keys():
            if state[key] is not None:
                state[key] = change(state[key] * unit) / unit

    def reset(self) -> None:
        """Discard the state of the optimizer."""
        self.optimizer.state.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the state of the optimizer as tensors; the names of lists end in ``[]``."""
        packed = {}
        for name, leaf in self.leaves.items():
            for key, value in self.optimizer.state.get(leaf, {}).items():
                if isinstance(value, list):
                    if key != LBFGS_SCRATCH_NAME:
                        packed[f"{name}.{key}[]"] = torch.stack(value) if value else torch.empty(0)
                elif value is not None:
                    packed[f"{name}.{key}"] = _to_tensor(value)
        return packed

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore copies of the tensors that :meth:`state_dict` returned; other entries are ignored."""
        self.optimizer.state.clear()
        for name, leaf in self.leaves.items():
            for key, value in tensors.items():
                if key.startswith(f"{name}."):
                    self.optimizer.state[leaf][key.removeprefix(f"{name}.").removesuffix("[]")] = (
                        [row.clone() for row in value] if key.endswith("[]") else _to_optimizer_value(value)
                    )


def _to_tensor(value: float | Tensor) -> Tensor:
    """Return a copy of a tensor, or a number as a tensor."""
    if isinstance(value, Tensor):
        return value.clone()
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _to_optimizer_value(value: Tensor) -> Any:
    """Return the number that :func:`_to_tensor` converted, or a copy of a tensor."""
    return value.item() if value.ndim == 0 and value.dtype in (torch.int64, torch.float64) else value.clone()
