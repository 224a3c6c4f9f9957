"""Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024): orthogonalized momentum.

A kernel is a matrix from its inputs to its outputs. A few large singular values dominate its gradient, and the
element-wise steps of Adam follow them. A step of Muon is the nearest matrix with equal singular values. It also changes
the kernel along weak directions, where fine detail is learned.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOMENTUM = 0.95

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration. They raise small singular values fast, to 0.7 to 1.2 instead of 1."""

NEWTON_SCHULZ_ITERATIONS = 5

SIDE_MULTIPLE = 32
"""Square matrices whose sides round up to the same multiple are iterated together: few calls, little padding."""

MIN_NORM = 1e-12
"""Smallest norm that is normalized to one: the square of a smaller one would underflow, and the step diverge."""


class KernelGroup(NamedTuple):
    """Kernels with a common learning rate. Each has at least two axes; the first one counts outputs."""

    weights: list[Tensor]
    scale: float
    """Their learning rate as a multiple of the base rate."""


class Muon:
    """Muon for a group of kernels.

    Args:
        kernels: changed in place.
    """

    def __init__(self, kernels: KernelGroup) -> None:
        self.weights, self.scale = kernels
        self._means = [torch.zeros_like(weight) for weight in self.weights]

    def zero_grad(self) -> None:
        """Delete the gradients of the last batch."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every kernel with a gradient by a matrix with singular values of about ``rate`` times the scale."""
        updated = [
            (weight, mean) for weight, mean in zip(self.weights, self._means, strict=True) if weight.grad is not None
        ]
        lookahead = []
        for weight, mean in updated:
            assert weight.grad is not None
            mean.lerp_(weight.grad, 1 - MOMENTUM)
            lookahead.append(_to_matrix(weight.grad.lerp(mean, MOMENTUM)))  # Nesterov momentum
        for (weight, _), matrix in zip(updated, orthogonalize(lookahead), strict=True):
            size = rate * self.scale * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            weight.sub_(_to_kernel(matrix, weight.shape), alpha=size)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all running means by index, for a checkpoint."""
        return {str(index): mean for index, mean in enumerate(self._means)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore the running means that :meth:`state_dict` returned.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: a tensor has another shape.
        """
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])  # in place, to keep the memory layout of the kernel


def _to_matrix(kernel: Tensor) -> Tensor:
    """Return ``kernel`` as a matrix, its first axis against all others in the memory order of channels-last kernels."""
    return (kernel.permute(0, 2, 3, 1) if kernel.dim() == 4 else kernel).flatten(1)


def _to_kernel(matrix: Tensor, shape: torch.Size) -> Tensor:
    """Return a view of ``matrix`` as a kernel: the inverse of :func:`_to_matrix`."""
    if len(shape) != 4:
        return matrix.view(shape)
    return matrix.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return approximately U Vᵀ of each matrix U S Vᵀ, by a Newton–Schulz iteration; a zero matrix stays zero.

    Each step of the iteration is a polynomial in X Xᵀ times X. Therefore it runs on the small square matrices, for all
    matrices of similar size at once, and the product with X comes last.

    Args:
        matrices: each (rows, columns).
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    wide = [matrix / matrix.norm().clamp_min(MIN_NORM) for matrix in wide]
    results = list(wide)
    sides = [-(-len(matrix) // SIDE_MULTIPLE) * SIDE_MULTIPLE for matrix in wide]
    for side in dict.fromkeys(sides):
        same_side = [index for index, own in enumerate(sides) if own == side]
        squares = wide[0].new_zeros(len(same_side), side, side)
        for square, index in zip(squares, same_side, strict=True):
            short = len(wide[index])
            torch.mm(wide[index], wide[index].T, out=square[:short, :short])
        for index, factor in zip(same_side, _compute_factors(squares), strict=True):
            short = len(wide[index])
            results[index] = factor[:short, :short] @ wide[index]
    return [
        result if result.shape == matrix.shape else result.T for result, matrix in zip(results, matrices, strict=True)
    ]


def _compute_factors(squares: Tensor) -> Tensor:
    """Return the left factors that map each matrix X to about U Vᵀ, from X Xᵀ (n, side, side)."""
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
