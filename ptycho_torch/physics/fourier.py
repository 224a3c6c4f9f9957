"""Propagation to the far field and sub-pixel shifts, on the last two axes."""

import torch
from torch import Tensor


def far_field(wave: Tensor) -> Tensor:
    """Propagate ``wave`` (*, N, N) to the far field: the orthonormal FFT, zero frequency at [0, 0]."""
    return torch.fft.fft2(wave, norm="ortho") if wave.numel() else wave  # MKL raises for an empty tensor


def inverse_far_field(wave: Tensor) -> Tensor:
    """Propagate back from the far field: the inverse of :func:`far_field` and its adjoint, since it is unitary."""
    return torch.fft.ifft2(wave, norm="ortho")


def compute_shift_factors(shifts: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Compute the two factors of :func:`compute_shift_phase`, (*, rows, 1) and (*, 1, columns) complex."""

    def axis(shift: Tensor, n: int) -> Tensor:
        frequency = torch.fft.fftfreq(n, dtype=shifts.dtype, device=shifts.device)
        angle = -2 * torch.pi * frequency * shift[..., None]
        return torch.polar(torch.ones_like(angle), angle)

    return axis(shifts[..., 0], rows)[..., :, None], axis(shifts[..., 1], columns)[..., None, :]


def compute_shift_phase(shifts: Tensor, rows: int, columns: int) -> Tensor:
    """Compute the factor in Fourier space that shifts an image by ``shifts``.

    Args:
        shifts: (*, 2) real, (y, x) in pixels; a positive y moves content to higher rows.
        rows: image height.
        columns: image width.

    Returns:
        (*, rows, columns) complex of modulus one, so that a shift keeps energy and its adjoint is its inverse.
    """
    down, across = compute_shift_factors(shifts, rows, columns)
    return down * across


def fourier_shift(image: Tensor, shifts: Tensor) -> Tensor:
    """Shift ``image`` by a fraction of a pixel, periodically.

    Args:
        image: (*, rows, columns) complex.
        shifts: (*, 2) real, (y, x) in pixels, broadcast against the leading axes of ``image``.

    Returns:
        The shifted image, (*, rows, columns). The shift by ``-shifts`` is its inverse and its adjoint.
    """
    factors = compute_shift_phase(shifts, *image.shape[-2:])
    shifted = torch.fft.fft2(image) * factors
    return torch.fft.ifft2(shifted) if shifted.numel() else shifted
