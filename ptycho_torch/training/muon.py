"""Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024): Momentum, orthogonalised.

A kernel is a matrix from what it sees to what it says. Its gradient is ruled by a few strong directions, and Adam's
steps, pixel by pixel, follow them. Here a step is the nearest matrix whose singular values are all alike, so that the
weak directions, in which fine detail is learned, move as far as the strong ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOMENTUM = 0.95

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen by its authors to lift small singular values fast: they end at 0.7 to 1.2, not 1."""

ITERATIONS = 5

SMALLEST = 1e-12
"""Norm below which a matrix counts for less than the others: its square would be rounded to zero, and it explode."""


class Kernels(NamedTuple):
    """Weights that share a step: of at least two axes, the first against all others."""

    weights: list[Tensor]
    scale: float
    """Their step as a multiple of the one that is given."""


class Muon:
    """Running means of the gradients of some kernels, and the steps that follow from them."""

    def __init__(self, kernels: Kernels) -> None:
        self.weights, self.scale = kernels
        self._means = [torch.zeros_like(weight) for weight in self.weights]

    def clear_gradients(self) -> None:
        """Forget the gradients of the last batch."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every kernel that has a gradient by a matrix of singular values of about ``rate`` times the scale."""
        moving = [
            (weight, mean) for weight, mean in zip(self.weights, self._means, strict=True) if weight.grad is not None
        ]
        ahead = []
        for weight, mean in moving:
            assert weight.grad is not None
            mean.lerp_(weight.grad, 1 - MOMENTUM)
            ahead.append(weight.grad.lerp(mean, MOMENTUM).flatten(1))  # Nesterov's
        for (weight, _), matrix in zip(moving, orthogonalised(ahead), strict=True):
            size = rate * self.scale * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            weight.sub_(matrix.reshape(weight.shape), alpha=size)

    def state(self) -> dict[str, Tensor]:
        """All running means by index, for a checkpoint."""
        return {str(index): mean for index, mean in enumerate(self._means)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: one is of another shape.
        """
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])  # in place: it keeps the memory layout of its weight


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """About U Vᵀ of each matrix U S Vᵀ (rows, columns), by a Newton–Schulz iteration; zero stays zero.

    Each step of the iteration is a polynomial in X Xᵀ times X, so that it runs on the small squares alone, of all
    matrices at once, and the product with the matrix comes last.
    """
    if not matrices:
        return []
    a, b, c = COEFFICIENTS
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    wide = [matrix / matrix.norm().clamp_min(SMALLEST) for matrix in wide]
    largest = max(len(matrix) for matrix in wide)
    squares = wide[0].new_zeros(len(wide), largest, largest)
    for square, matrix in zip(squares, wide, strict=True):
        square[: len(matrix), : len(matrix)] = matrix @ matrix.T
    factors = identity = torch.eye(largest, dtype=squares.dtype, device=squares.device).expand_as(squares)
    for _ in range(ITERATIONS):
        polynomial = torch.baddbmm(a * identity + b * squares, squares, squares, alpha=c)
        factors = polynomial @ factors
        squares = polynomial @ squares @ polynomial
    found = [factor[: len(matrix), : len(matrix)] @ matrix for factor, matrix in zip(factors, wide, strict=True)]
    return [one if one.shape == matrix.shape else one.T for one, matrix in zip(found, matrices, strict=True)]
