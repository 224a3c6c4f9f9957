"""How rough an image is: what is known of the object besides its patterns."""

import torch
from torch import Tensor


def total_variation(image: Tensor, smoothing: float = 1e-3) -> Tensor:
    """Isotropic total variation: ``Σ √(|∂y|² + |∂x|² + s²) − s``, which flattens noise and keeps edges.

    Args:
        image: (rows, columns), real or complex.
        softness: s, the difference of neighbours below which the penalty is quadratic, in the unit of ``image``.

    Returns:
        A real scalar, 0 where all is flat.
    """
    squares = _squared_gradient(image)
    return (torch.sqrt(squares + smoothing**2) - smoothing).sum()


def squared_gradient_norm(image: Tensor) -> Tensor:
    """``Σ |∂y|² + |∂x|²``, which keeps what is smooth and blurs edges.

    Args:
        image: (rows, columns), real or complex.

    Returns:
        A real scalar, 0 where all is flat.
    """
    return _squared_gradient(image).sum()


def _squared_gradient(image: Tensor) -> Tensor:
    """``|∂y|² + |∂x|²`` of each pixel (rows, columns), from differences to the next one; none across the last."""
    parts = torch.view_as_real(image) if image.is_complex() else image[..., None]
    down = torch.diff(parts, dim=0, append=parts[-1:])
    across = torch.diff(parts, dim=1, append=parts[:, -1:])
    return (down.square() + across.square()).sum(-1)
