"""Run one command in a process of its own and measure it: exit code, wall and CPU seconds, peak memory, log."""

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
"""Seconds between the request to end and the kill of a command that is stopped."""

POLL_INTERVAL_S = 0.01
"""Seconds between two looks at a command: the resolution of its wall time."""


@dataclass(frozen=True)
class ProcessResult:
    """What a command took. Its children count where it waited for them before it ended."""

    exit_code: int
    """What it returned; minus the signal's number where a signal ended it."""

    timed_out: bool
    """Whether it ran past the limit and was stopped."""

    wall_seconds: float
    """From its start to its end, to 0.01 s."""

    cpu_seconds: float
    """User and system time of all its cores."""

    peak_bytes: int | None
    """Largest resident memory of any one of its processes; None where it stayed below this process's own peak, which
    the system hands on to a new process, so that nothing smaller can be seen."""


def run_measured(
    command: Sequence[str], log: Path, *, limit: float | None = None, environment: Mapping[str, str] | None = None
) -> ProcessResult:
    """Run ``command`` to its end, its output going to the file ``log`` as it comes.

    It has a process group of its own, nothing to read, and is never run twice. Whatever is left of the group when it
    ends, is stopped or this call is interrupted, is killed.

    Args:
        command: program and arguments.
        log: file for standard output and error, replaced if it is there.
        limit: seconds after which the command is stopped: asked to end, and killed :data:`TERMINATION_GRACE_S` seconds later.
        environment: variables to set besides those of this process.

    Raises:
        PtychoError: this system has no ``os.wait4``, which measures.
        DataError: the log cannot be written, or the command cannot be started.
    """
    if not hasattr(os, "wait4"):
        raise PtychoError(
            f"a command cannot be measured on {sys.platform}, which lacks os.wait4; use Linux or macOS (or WSL)"
        )
    started = time.perf_counter()
    process = _start(command, log, dict(os.environ) | dict(environment or {}))
    try:
        found = _wait(process, None if limit is None else started + limit)
        stopped = found is None
        ended, usage = found or _stop(process)
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
    """When the process ended and what it used; None if it still runs at ``until`` (of ``time.perf_counter``)."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.perf_counter()
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)  # or subprocess would wait for it again
            return now, usage
        if until is not None and now >= until:
            return None
        time.sleep(POLL_INTERVAL_S)


def _stop(process: subprocess.Popen[bytes]) -> _ExitUsage:
    """Ask the whole group to end, then kill it."""
    _signal_group(process.pid, signal.SIGTERM)
    found = _wait(process, time.perf_counter() + TERMINATION_GRACE_S)
    while found is None:
        _signal_group(process.pid, signal.SIGKILL)
        found = _wait(process, time.perf_counter() + TERMINATION_GRACE_S)
    return found


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # nobody is left; macOS says the latter of a group of zombies
        return


def _read_own_peak_bytes() -> int:
    """Largest resident memory of this process, in bytes."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():  # on Linux the other figure holds, in turn, the peak of whatever started this process
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return _to_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _to_bytes(resident: int) -> int:
    """Linux counts in KiB, macOS in bytes."""
    return resident if sys.platform == "darwin" else resident * 1024
