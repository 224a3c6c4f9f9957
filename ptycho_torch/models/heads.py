"""Heads: conversion of two real channels to a complex transmission with unbounded modulus."""

from collections.abc import Callable

import torch
from torch import Tensor

Head = Callable[[Tensor], Tensor]
"""Function from (n, 2, N, N) real to (n, N, N) complex."""


def apply_residual_head(channels: Tensor) -> Tensor:
    """Compute ``O = 1 + a + ib``: (n, 2, N, N) real to (n, N, N) complex; zero channels are vacuum."""
    return torch.complex(1 + channels[:, 0], channels[:, 1])


def apply_polar_head(channels: Tensor) -> Tensor:
    """Compute ``O = eᵃ e^{ib}``: positive amplitude, unwrapped phase; zero channels are vacuum."""
    return torch.polar(torch.exp(channels[:, 0]), channels[:, 1])


HEADS: dict[str, Head] = {"residual": apply_residual_head, "polar": apply_polar_head}
"""Heads by the name of the setting ``head``."""
