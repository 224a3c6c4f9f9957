"""Run a command in a separate process and measure its exit code, wall time, CPU time and peak memory."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptycho_torch.core.errors import DataError, PtychoError

_ExitUsage = tuple[float, resource.struct_rusage]


TERMINATION_GRACE_S = 3.0
"""Seconds between SIGTERM and SIGKILL for a command that exceeds its time limit."""

POLL_INTERVAL_S = 0.01
"""Polling interval in seconds: the resolution of the wall time."""


@dataclass(frozen=True)
class ProcessResult:
    """Measurements of a command, including the child processes that it waited for."""

    exit_code: int
    """Exit code; the negative signal number if a signal ended the process."""

    timed_out: bool
    """Whether the command exceeded the time limit and was stopped."""

    wall_seconds: float
    """Wall time in seconds, with a resolution of 0.01 s."""

    cpu_seconds: float
    """User and system time in seconds, over all cores."""

    peak_bytes: int | None
    """Largest resident memory of a single process of the command, in bytes; None if it is below the peak of the
    measuring process, which a new process inherits."""


def run_measured(
    command: Sequence[str], log: Path, *, limit: float | None = None, environment: Mapping[str, str] | None = None
) -> ProcessResult:
    """Run ``command`` once and measure it.

    The command has its own process group and an empty standard input. When it ends, exceeds the limit, or this call is
    interrupted, all remaining processes of the group are killed.

    Args:
        command: program and arguments.
        log: file for standard output and standard error; an existing file is replaced.
        limit: seconds after which the command receives SIGTERM, and :data:`TERMINATION_GRACE_S` seconds later SIGKILL.
        environment: variables to set in addition to the environment of this process.

    Raises:
        PtychoError: this system has no ``os.wait4``, which the measurement needs.
        DataError: the log cannot be written, or the command cannot be started.
    """
    if not hasattr(os, "wait4"):
        raise PtychoError(
            f"a command cannot be measured on {sys.platform}; expected a system with os.wait4; use Linux, macOS or WSL"
        )
    started = time.perf_counter()
    process = _start(command, log, dict(os.environ) | dict(environment or {}))
    try:
        exit_usage = _wait(process, None if limit is None else started + limit)
        stopped = exit_usage is None
        ended, usage = exit_usage or _stop(process)
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        if process.returncode is None:
            _wait(process, None)
    peak = _to_bytes(usage.ru_maxrss)
    return ProcessResult(
        exit_code=process.returncode,
        timed_out=stopped,
        wall_seconds=ended - started,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=peak if peak > _read_own_peak_bytes() else None,
    )


def _start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        with open(log, "wb") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )
    except OSError as error:
        raise DataError(f"{error.filename or log}: cannot be started or written ({error.strerror})") from error


def _wait(process: subprocess.Popen[bytes], until: float | None) -> _ExitUsage | None:
    """Return the end time and the resource usage of the process, or None if it still runs at ``until``.

    Times are those of ``time.perf_counter``.
    """
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.perf_counter()
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)  # prevents subprocess from waiting again
            return now, usage
        if until is not None and now >= until:
            return None
        time.sleep(POLL_INTERVAL_S)


def _stop(process: subprocess.Popen[bytes]) -> _ExitUsage:
    """Send SIGTERM to the whole group, then SIGKILL."""
    _signal_group(process.pid, signal.SIGTERM)
    exit_usage = _wait(process, time.perf_counter() + TERMINATION_GRACE_S)
    while exit_usage is None:
        _signal_group(process.pid, signal.SIGKILL)
        exit_usage = _wait(process, time.perf_counter() + TERMINATION_GRACE_S)
    return exit_usage


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the group has ended; macOS raises PermissionError for zombies
        return


def _read_own_peak_bytes() -> int:
    """Return the largest resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage includes the peak of the parent process
        match = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    return _to_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _to_bytes(resident: int) -> int:
    """Convert ``ru_maxrss`` to bytes: Linux reports KiB, macOS bytes."""
    return resident if sys.platform == "darwin" else resident * 1024
