"""Sums and maxima over the processes that share a batch, passed into the physics as an argument."""

from typing import Protocol

from torch import Tensor


class Reduction(Protocol):
    """Sums and maxima over all processes that share a batch.

    :class:`~ptycho_torch.distributed.process_group.ProcessGroup` is one; :data:`SINGLE_PROCESS` in that module and
    :data:`NO_REDUCTION` return their argument. All processes call each method in the same order.
    """

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, on every process; differentiable."""

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Return the elementwise maximum of the tensors of all processes, on every process."""


class _NoReduction:
    """The reduction of a single process: the identity."""

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return tensor


NO_REDUCTION: Reduction = _NoReduction()
"""The reduction of a single process."""
