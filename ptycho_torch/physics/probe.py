"""What a probe of incoherent modes amounts to."""

from torch import Tensor


def power_of(modes: Tensor) -> Tensor:
    """Power of a wave summed over its incoherent modes: (*, M, N, N) complex to (*, N, N) real."""
    return (modes.real.square() + modes.imag.square()).sum(-3)
