"""What a probe of incoherent modes amounts to."""

from torch import Tensor


def power_of(modes: Tensor) -> Tensor:
    """Power of a wave summed over its incoherent modes: (*, M, N, N) complex to (*, N, N) real."""
    power = modes.real.square() + modes.imag.square()
    return power.squeeze(-3) if power.shape[-3] == 1 else power.sum(-3)
