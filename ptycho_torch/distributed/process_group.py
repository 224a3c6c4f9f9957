"""Process groups: several processes, started by ``torchrun``, that share every batch of one run.

Results do not depend on the number of processes, except for rounding. Sums over a batch are summed over the processes,
forward and backward, and then every process makes the same step; only rank 0 prints and writes files. ``accelerate``
opens the group, assigns a device to each process, and carries out sums and broadcasts; a single process does not
import it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from ptycho_torch.core.errors import DeviceError, ProcessGroupError
from ptycho_torch.distributed.devices import select_device

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""Time that a rank waits for a message. A connection that a process closed by its death fails at once."""

STORE_TIMEOUT_SECONDS = 3.0
"""Seconds that a rank waits for the store before it reports an error itself."""

SHUTDOWN_GRACE_SECONDS = 10.0
"""Seconds after SIGTERM in which a rank can end by itself. ``torchrun`` kills processes after 30 seconds."""


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """This process among the processes of a run. The default is a single process.

    Every process must call the collective methods (``all_reduce_*``, ``count_before``, ``broadcast_``, ``gather_rows``)
    in the same order. They raise :class:`ProcessGroupError` if another process is lost.
    """

    rank: int = 0
    """Index of this process."""

    size: int = 1
    """Number of processes."""

    store: Store | None = None
    """Key-value store of the group, which remains readable after the loss of a process; None for a single process."""

    @property
    def is_main(self) -> bool:
        """True if this process writes files and shows progress."""
        return self.rank == 0

    def shard(self, count: int, rank: int | None = None) -> slice:
        """Return the part of ``count`` items for ``rank`` (default: this rank); parts differ by at most 1."""
        rank = self.rank if rank is None else rank
        return slice(rank * count // self.size, (rank + 1) * count // self.size)

    def select_device(self, name: str) -> torch.device:
        """Return the device ``name`` as :func:`select_device` does; with several GPUs, each rank has its own.

        Raises:
            DeviceError: the device is not available, or there are fewer GPUs than ranks on this machine.
        """
        device = select_device("cpu" if name == "auto" and self.size > 1 and not torch.cuda.is_available() else name)
        if self.size == 1 or device.type == "cpu":
            return device
        from accelerate import PartialState

        state, gpu_count = PartialState(), torch.cuda.device_count()
        # With too few GPUs, accelerate assigns one GPU to several ranks, which NCCL refuses.
        if state.device.type != device.type or state.local_process_index >= gpu_count:
            raise DeviceError(
                f"`device` is {name}, and this machine has {gpu_count} GPUs with CUDA; expected one GPU per rank; "
                "start fewer ranks or choose `device` cpu"
            )
        return state.device

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all ranks, which have one shape; gradients are summed in the same way."""
        return tensor if self.size == 1 else _AllReduceSum.apply(tensor)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Return the elementwise maximum of the tensors of all ranks, without gradient."""
        return tensor if self.size == 1 else _all_reduce(tensor.detach(), "max")

    def count_before(self, count: int) -> int:
        """Return the sum of ``count`` over all ranks below this one."""
        if self.size == 1:
            return 0
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = count
        return int(self.all_reduce_sum(counts)[: self.rank].sum())

    @torch.no_grad()
    def all_reduce_sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in one message; used for gradients."""
        if self.size == 1 or not tensors:
            return
        total = self.all_reduce_sum(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the tensor of rank 0."""
        if self.size == 1:
            return
        from accelerate.utils import broadcast

        with _convert_communication_errors():
            received = broadcast([tensor.contiguous() for tensor in tensors])
        for tensor, source in zip(tensors, received, strict=True):
            tensor.copy_(source)

    def gather_rows(self, tensor: Tensor, rows: Sequence[slice]) -> None:
        """Copy ``rows[r]`` of ``tensor`` on rank r to rank 0, for each rank r; the tensors are on the CPU."""
        if self.size == 1:
            return
        with _convert_communication_errors():
            if not self.is_main:
                dist.send(tensor[rows[self.rank]], dst=0)
                return
            for rank in range(1, self.size):
                dist.recv(tensor[rows[rank]], src=rank)

    def claim_error_report(self) -> bool:
        """Return True on the first rank that calls this; only that rank prints why the run ends."""
        if self.store is None:
            return True
        claims: list[bool] = []

        def claim(store: Store) -> None:
            # If the store is lost with its process, the claims of other ranks are unknown, and this rank reports.
            with suppress(RuntimeError):
                claims.append(store.add("error_reports", 1) == 1)

        thread = threading.Thread(target=claim, args=(self.store,), daemon=True)
        thread.start()
        thread.join(STORE_TIMEOUT_SECONDS)  # the process that holds the store may itself hang
        return claims[0] if claims else True

    def close(self) -> None:
        """Leave the group after the work of this rank is complete."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


SINGLE_PROCESS = ProcessGroup()
"""The group of a run in one process."""


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks whose result is on every rank; its adjoint is the same sum over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        del ctx
        return _all_reduce(tensor, "sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return _all_reduce(gradients[0], "sum")


def _all_reduce(tensor: Tensor, operation: str) -> Tensor:
    """Return the ``sum`` or ``max`` over ranks, without gradient: ``accelerate`` has no gradient to other ranks."""
    from accelerate.utils import reduce

    with _convert_communication_errors():
        return reduce(tensor.resolve_conj().contiguous(), operation)


@contextmanager
def _convert_communication_errors() -> Iterator[None]:
    """Convert the failure of a message between ranks to :class:`ProcessGroupError`."""
    try:
        yield
    except RuntimeError as error:
        # Ctrl-C also ends the other ranks, and is then the true reason. This call runs the pending signal handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        rank, size = dist.get_rank(), dist.get_world_size()
        other = f"rank {1 - rank}" if size == 2 else "another rank"
        timed_out = "timed out" in str(error).lower()
        failure = f"sent no message for {COLLECTIVE_TIMEOUT}" if timed_out else "was lost"
        raise ProcessGroupError(f"{other} of {size} {failure}, and the run ends; {_RESUME_HINT}") from error


def init_process_group() -> ProcessGroup:
    """Join the other processes of this run, which the environment variables of ``torchrun`` describe.

    Afterwards ctrl-C interrupts once, however often it is sent, and SIGTERM, which ``torchrun`` sends to the remaining
    processes of a failed run, raises :class:`ProcessGroupError`.

    Returns:
        The group of this process.

    Raises:
        ProcessGroupError: the environment is incomplete, or the other processes cannot be reached.
    """
    from accelerate import PartialState
    from torch.distributed.rendezvous import rendezvous

    signal.signal(signal.SIGINT, _handle_interrupt)
    signal.signal(signal.SIGTERM, _handle_termination)
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT)))
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"  # both devices: the settings are not parsed yet
        PartialState(not gpus, backend=backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise ProcessGroupError(
            f"the processes of this run cannot reach each other ({error}); start all of them by one torchrun"
        ) from error
    return ProcessGroup(rank, size, store)


def ignore_stop_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on: this process ends anyway."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _ignore_signal)  # or the loader raises when its workers end


def start_termination_watchdog(report_error: Callable[[str], int]) -> None:
    """Start a thread that ends this process after SIGTERM, even while it waits for a message that never arrives.

    Python calls signal handlers between two of its own instructions, and executes none while a rank waits for another
    rank; gloo sometimes waits for a rank that has died. Therefore a thread receives the signal too, calls
    ``report_error`` after ``SHUTDOWN_GRACE_SECONDS``, and exits.

    Args:
        report_error: is called with the reason; returns the exit code.
    """
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    os.register_at_fork(
        after_in_child=lambda: signal.set_wakeup_fd(-1)
    )  # the workers of a data loader inherit the pipe

    def wait() -> None:
        while signal.SIGTERM not in os.read(read_fd, 64):
            pass
        time.sleep(SHUTDOWN_GRACE_SECONDS)
        os._exit(report_error(_TERMINATED_MESSAGE))

    threading.Thread(target=wait, daemon=True).start()


def _ignore_signal(number: int, frame: Any) -> None:
    """Ignore a signal; unlike SIG_IGN, also one that is already pending."""
    del number, frame


def _handle_interrupt(number: int, frame: Any) -> None:
    del number, frame
    ignore_stop_signals()  # the completed epochs are being saved
    raise KeyboardInterrupt


def _handle_termination(number: int, frame: Any) -> None:
    del number, frame
    ignore_stop_signals()
    raise ProcessGroupError(_TERMINATED_MESSAGE)


_RESUME_HINT = (
    "start the run again; `resume` continues a training after its last complete epoch, on any number of ranks"
)

_TERMINATED_MESSAGE = (
    f"the launcher ended this process, because a rank was lost or the launcher was itself stopped; {_RESUME_HINT}"
)
