"""Regularizers: measures of the roughness of an image."""

import torch
from torch import Tensor


def total_variation(image: Tensor, smoothing: float = 1e-3) -> Tensor:
    """Compute the isotropic total variation ``Σ √(|∂y|² + |∂x|² + s²) − s``; it removes noise and preserves edges.

    Args:
        image: (rows, columns), real or complex.
        smoothing: s, the difference of neighbors below which the penalty is quadratic, in the unit of ``image``.

    Returns:
        A real scalar, 0 for a constant image.
    """
    squares = _squared_gradient(image)
    return (torch.sqrt(squares + smoothing**2) - smoothing).sum()


def squared_gradient_norm(image: Tensor) -> Tensor:
    """Compute ``Σ |∂y|² + |∂x|²``; it preserves smooth regions and blurs edges.

    Args:
        image: (rows, columns), real or complex.

    Returns:
        A real scalar, 0 for a constant image.
    """
    return _squared_gradient(image).sum()


def _squared_gradient(image: Tensor) -> Tensor:
    """Compute ``|∂y|² + |∂x|²`` of each pixel from the differences to the next pixel, 0 at the last."""
    parts = torch.view_as_real(image) if image.is_complex() else image[..., None]
    down = torch.diff(parts, dim=0, append=parts[-1:])
    across = torch.diff(parts, dim=1, append=parts[:, -1:])
    return (down.square() + across.square()).sum(-1)
