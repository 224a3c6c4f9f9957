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

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen by its authors to lift small singular values fast: they end at 0.7 to 1.2, not 1."""

NEWTON_SCHULZ_ITERATIONS = 5

SIDE_MULTIPLE = 32
"""Squares whose sides round up to the same multiple of this are iterated together: few calls, little padding."""

MIN_NORM = 1e-12
"""Norm below which a matrix counts for less than the others: its square would be rounded to zero, and it explode."""


class KernelGroup(NamedTuple):
    """Weights that share a step: of at least two axes, the first against all others."""

    weights: list[Tensor]
    scale: float
    """Their step as a multiple of the one that is given."""


class Muon:
    """Running means of the gradients of some kernels, and the steps that follow from them."""

    def __init__(self, kernels: KernelGroup) -> None:
        self.weights, self.scale = kernels
        self._means = [torch.zeros_like(weight) for weight in self.weights]

    def zero_grad(self) -> None:
        """Forget the gradients of the last batch."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every kernel that has a gradient by a matrix of singular values of about ``rate`` times the scale."""
        moving = [
            (weight, mean) for weight, mean in zip(self.weights, self._means, strict=True) if weight.grad is not None
        ]
        lookahead = []
        for weight, mean in moving:
            assert weight.grad is not None
            mean.lerp_(weight.grad, 1 - MOMENTUM)
            lookahead.append(_to_matrix(weight.grad.lerp(mean, MOMENTUM)))  # Nesterov's
        for (weight, _), matrix in zip(moving, orthogonalize(lookahead), strict=True):
            size = rate * self.scale * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            weight.sub_(_to_kernel(matrix, weight.shape), alpha=size)

    def state_dict(self) -> dict[str, Tensor]:
        """All running means by index, for a checkpoint."""
        return {str(index): mean for index, mean in enumerate(self._means)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: one is of another shape.
        """
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])  # in place: it keeps the memory layout of its weight


def _to_matrix(kernel: Tensor) -> Tensor:
    """``kernel``, its first axis against all others, in the order in which those of images lie in memory."""
    return (kernel.permute(0, 2, 3, 1) if kernel.dim() == 4 else kernel).flatten(1)


def _to_kernel(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_to_matrix`, a view."""
    if len(shape) != 4:
        return matrix.view(shape)
    return matrix.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """About U Vᵀ of each matrix U S Vᵀ (rows, columns), by a Newton–Schulz iteration; zero stays zero.

    Each step of the iteration is a polynomial in X Xᵀ times X, so that it runs on the small squares alone, of all
    matrices of about a size at once, and the product with the matrix comes last.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    wide = [matrix / matrix.norm().clamp_min(MIN_NORM) for matrix in wide]
    found = list(wide)
    sides = [-(-len(matrix) // SIDE_MULTIPLE) * SIDE_MULTIPLE for matrix in wide]
    for side in dict.fromkeys(sides):
        same_side = [index for index, own in enumerate(sides) if own == side]
        squares = wide[0].new_zeros(len(same_side), side, side)
        for square, index in zip(squares, same_side, strict=True):
            short = len(wide[index])
            torch.mm(wide[index], wide[index].T, out=square[:short, :short])
        for index, factor in zip(same_side, _compute_factors(squares), strict=True):
            short = len(wide[index])
            found[index] = factor[:short, :short] @ wide[index]
    return [one if one.shape == matrix.shape else one.T for one, matrix in zip(found, matrices, strict=True)]


def _compute_factors(squares: Tensor) -> Tensor:
    """What brings each matrix X to about U Vᵀ when multiplied from the left, from X Xᵀ (n, side, side)."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    scaled = a * torch.eye(squares.shape[-1], dtype=squares.dtype, device=squares.device)
    factors = None
    for iteration in range(NEWTON_SCHULZ_ITERATIONS):
        polynomial = torch.baddbmm(scaled + b * squares, squares, squares, alpha=c)
        factors = polynomial if factors is None else polynomial @ factors
        if iteration < NEWTON_SCHULZ_ITERATIONS - 1:
            squares = polynomial @ squares @ polynomial
    assert factors is not None
    return factors
