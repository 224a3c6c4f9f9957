"""ProcessGroup: processes that share the work of one run, each with its part of every batch, as ``torchrun`` starts them.

Nothing that is computed depends on how many there are, but for rounding. What spans a batch is summed over its parts,
forward and backward, and every rank then makes the same step; the first alone talks to people and writes.
``accelerate`` opens the group of processes, gives each a device, and carries sums and broadcasts; a process by itself
does not import it.
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
"""How long a rank waits for one that is silent; one that died is noticed at once."""

STORE_TIMEOUT_SECONDS = 3.0
"""Seconds that a rank waits to be told whether another has spoken."""

SHUTDOWN_GRACE_SECONDS = 10.0
"""Seconds that a rank asked to end has to do so by itself. ``torchrun`` kills what is left after 30."""


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """One of the processes of a run, and how it reaches the others. As it stands: a process by itself.

    What needs the others is called by all of them, in the same order. It raises :class:`ProcessGroupError` where one of them is
    gone.
    """

    rank: int = 0
    """Which of them this is."""

    size: int = 1
    """How many there are."""

    store: Store | None = None
    """What they leave notes for each other in, dead or alive."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def shard(self, count: int, rank: int | None = None) -> slice:
        """The part of ``count`` things that falls to this rank, or to ``rank``: all parts are about alike."""
        rank = self.rank if rank is None else rank
        return slice(rank * count // self.size, (rank + 1) * count // self.size)

    def select_device(self, name: str) -> torch.device:
        """The device called ``name``, as :func:`select_device` finds it; of several GPUs each rank has its own.

        Raises:
            DeviceError: that device is not there, or there are too few of it.
        """
        device = select_device("cpu" if name == "auto" and self.size > 1 and not torch.cuda.is_available() else name)
        if self.size == 1 or device.type == "cpu":
            return device
        from accelerate import PartialState

        state, there = PartialState(), torch.cuda.device_count()
        # Where GPUs are too few, accelerate gives one to several ranks, which NCCL refuses.
        if state.device.type != device.type or state.local_process_index >= there:
            raise DeviceError(
                f"--device {name}: each rank of a machine needs a GPU of its own, and there are {there} of CUDA: "
                "start no more ranks than that, or choose --device cpu"
            )
        return state.device

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, which are of one shape, on every rank. Its gradient is summed as well."""
        return tensor if self.size == 1 else _AllReduceSum.apply(tensor)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The largest of the ranks' tensors, element by element."""
        return tensor if self.size == 1 else _all_reduce(tensor.detach(), "max")

    def count_before(self, count: int) -> int:
        """Return the sum of the ``count`` of all processes of lower rank."""
        if self.size == 1:
            return 0
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = count
        return int(self.all_reduce_sum(counts)[: self.rank].sum())

    @torch.no_grad()
    def all_reduce_sum_(self, tensors: Sequence[Tensor]) -> None:
        """Put in the place of each tensor the sum of the ranks' ones: gradients, in one message."""
        if self.size == 1 or not tensors:
            return
        total = self.all_reduce_sum(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Put the first rank's tensors in the place of those here."""
        if self.size == 1:
            return
        from accelerate.utils import broadcast

        with _convert_communication_errors():
            sent = broadcast([tensor.contiguous() for tensor in tensors])
        for tensor, first in zip(tensors, sent, strict=True):
            tensor.copy_(first)

    def gather_rows(self, tensor: Tensor, rows: Sequence[slice]) -> None:
        """Fill ``tensor`` on the first rank, on the CPU: ``rows[r]`` of it come from rank r. No other gets them."""
        if self.size == 1:
            return
        with _convert_communication_errors():
            if not self.is_main:
                dist.send(tensor[rows[self.rank]], dst=0)
                return
            for rank in range(1, self.size):
                dist.recv(tensor[rows[rank]], src=rank)

    def claim_error_report(self) -> bool:
        """Whether this rank is the first to ask: that one tells people why the run ends, and all others keep silent."""
        if self.store is None:
            return True
        claims: list[bool] = []

        def claim(store: Store) -> None:
            # Where the store is gone, with the machine that held it, nobody has spoken that one could know of.
            with suppress(RuntimeError):
                claims.append(store.add("spoken", 1) == 1)

        thread = threading.Thread(target=claim, args=(self.store,), daemon=True)
        thread.start()
        thread.join(STORE_TIMEOUT_SECONDS)  # whoever holds the store may itself be stuck
        return claims[0] if claims else True

    def close(self) -> None:
        """The work is done, here at least."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


SINGLE_PROCESS = ProcessGroup()
"""A process by itself."""


class _AllReduceSum(torch.autograd.Function):
    """A sum over ranks that all of them get: each part acts on every rank, so that the adjoint is the same sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        del ctx
        return _all_reduce(tensor, "sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return _all_reduce(gradients[0], "sum")


def _all_reduce(tensor: Tensor, how: str) -> Tensor:
    """The ``sum`` or the ``max`` of the ranks' tensors, without a gradient: ``accelerate`` has none to other ranks."""
    from accelerate.utils import reduce

    with _convert_communication_errors():
        return reduce(tensor.resolve_conj().contiguous(), how)


@contextmanager
def _convert_communication_errors() -> Iterator[None]:
    """Turn the failure of a message into a sentence."""
    try:
        yield
    except RuntimeError as error:
        # Whoever pressed ctrl-C ended the others too: its handler comes first (this call runs those that wait).
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        rank, size = dist.get_rank(), dist.get_world_size()
        other = f"rank {1 - rank}" if size == 2 else "another rank"
        silent = "timed out" in str(error).lower()
        raise ProcessGroupError(
            f"{other} of {size} {f'has been silent for {COLLECTIVE_TIMEOUT}' if silent else 'was lost'}, so this run ends; "
            "start it again: a training goes on from its last whole epoch with --resume, on any number of ranks"
        ) from error


def init_process_group() -> ProcessGroup:
    """Join the other processes of this run, which the environment describes as ``torchrun`` sets it.

    From then on ctrl-C interrupts once, however often it is sent, and SIGTERM, by which ``torchrun`` ends what is left
    of a run, is a :class:`ProcessGroupError`.

    Raises:
        RankError: the environment is incomplete, or the others cannot be reached.
    """
    from accelerate import PartialState
    from torch.distributed.rendezvous import rendezvous

    signal.signal(signal.SIGINT, _handle_interrupt)
    signal.signal(signal.SIGTERM, _handle_termination)
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT)))
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"  # either device, whatever --device will say
        PartialState(not gpus, backend=backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise ProcessGroupError(
            f"the processes of this run cannot reach each other ({error}); start them all at once by torchrun"
        ) from error
    return ProcessGroup(rank, size, store)


def ignore_stop_signals() -> None:
    """Signals that ask this process to end come too late from now on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _ignore_signal)  # a loader's workers are ended too, of which it would complain


def start_termination_watchdog(report_error: Callable[[str], int]) -> None:
    """Have SIGTERM end this process even while it waits for a message that never comes.

    Python calls its handlers between two steps of its own, and there are none while a rank waits for another; gloo has
    been seen to wait on for one that had died. So a thread hears the signal too, and ``GRACE`` seconds later calls
    ``end`` with the reason and leaves with the exit code that this gives.
    """
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a loader's workers have the pipe too

    def wait() -> None:
        while signal.SIGTERM not in os.read(read_fd, 64):
            pass
        time.sleep(SHUTDOWN_GRACE_SECONDS)
        os._exit(report_error(_TERMINATED_MESSAGE))

    threading.Thread(target=wait, daemon=True).start()


def _ignore_signal(number: int, frame: Any) -> None:
    """Unlike SIG_IGN also for a signal that came before and still waits."""
    del number, frame


def _handle_interrupt(number: int, frame: Any) -> None:
    del number, frame
    ignore_stop_signals()  # what is done gets saved
    raise KeyboardInterrupt


def _handle_termination(number: int, frame: Any) -> None:
    del number, frame
    ignore_stop_signals()
    raise ProcessGroupError(_TERMINATED_MESSAGE)


_TERMINATED_MESSAGE = (
    "the launcher ended this process, as it does when a rank was lost or when it is itself asked to end; start the "
    "run again: a training goes on from its last whole epoch with --resume, on any number of ranks"
)
