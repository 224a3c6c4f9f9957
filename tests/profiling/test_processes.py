"""Measurement of a command in a separate process."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.profiling.processes import ProcessResult, run_measured


def python(text: str, log: Path, *, limit: float | None = None, **environment: str) -> ProcessResult:
    return run_measured([sys.executable, "-S", "-c", text], log, limit=limit, environment=environment)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_exit_code_of_the_command_is_reported(text: str, code: int, log: Path) -> None:
    result = python(text, log)
    assert (result.exit_code, result.timed_out) == (code, False)


def test_wall_time_includes_waiting_and_cpu_time_does_not(log: Path) -> None:
    idle = python("import time; time.sleep(1.5)", log)
    busy = python("import time\nwhile time.process_time() < 0.5: pass", log)
    assert idle.cpu_seconds + 1.0 < idle.wall_seconds >= 1.5
    assert 0.5 <= busy.cpu_seconds <= busy.wall_seconds + 0.1


def test_cpu_time_of_child_processes_is_included(log: Path) -> None:
    spin = "import time\\nwhile time.process_time() < 0.4: pass"
    result = python(f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', '{spin}'])", log)
    assert result.cpu_seconds > 0.4


MEASURE_IN_A_SMALL_PROCESS = """
import json, sys
from pathlib import Path
from ptycho_torch.profiling.processes import run_measured
ballast = bytearray(int(sys.argv[2]) << 20)
del ballast
commands = [[sys.executable, "-c", f"bytearray({size} << 20)"] for size in (80, 240)]
print(json.dumps([run_measured(command, Path(sys.argv[1])).peak_bytes for command in commands]))
"""


@pytest.mark.parametrize(("ballast", "measurable"), [(0, (True, True)), (160, (False, True)), (400, (False, False))])
def test_peak_memory_is_reported_only_above_the_peak_of_the_measuring_process(
    ballast: int, measurable: tuple[bool, bool], log: Path, run_process: Callable[..., Any]
) -> None:
    """A new process inherits the peak of its parent process, and a smaller peak cannot be measured."""
    result = run_process("-c", MEASURE_IN_A_SMALL_PROCESS, log, str(ballast))
    for peak, size, expected in zip(json.loads(result.out), (80, 240), measurable, strict=True):
        assert (peak is not None) is expected
        assert peak is None or size < peak / 2**20 < size + 30


def test_log_contains_all_output_and_environment_is_extended(log: Path) -> None:
    log.write_text("earlier content")
    python("import os, sys; print(os.environ['A'], os.environ['PATH']); print('error', file=sys.stderr)", log, A="b")
    assert sorted(log.read_text().splitlines()) == sorted([f"b {os.environ['PATH']}", "error"])


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("parent_waits", [True, False])
def test_no_process_survives_the_command(parent_waits: bool, log: Path) -> None:
    """Child processes end with the command, at the limit or by itself, even if they ignore SIGTERM."""
    start = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
{"child.wait()" if parent_waits else "import os; os._exit(0)"}
"""
    result = python(start, log, limit=4.0)  # long enough for two Pythons to start on a busy machine
    assert result.timed_out is parent_waits
    assert result.exit_code == (-signal.SIGTERM if parent_waits else 0)
    child = int(log.read_text())
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def test_command_that_ignores_sigterm_is_killed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptycho_torch.profiling.processes.TERMINATION_GRACE_S", 0.2)
    result = python(STUBBORN, log, limit=3.0)  # long enough for Python to start on a busy machine
    assert (result.exit_code, result.timed_out) == (-signal.SIGKILL, True)
    assert result.wall_seconds >= 3.2


def test_interrupt_ends_the_command(log: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            python("import os, time; print(os.getpid(), flush=True); time.sleep(60)", log)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_error_names_a_missing_program_or_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no-such-program"):
        run_measured(["no-such-program"], tmp_path / "log.txt")
    with pytest.raises(DataError, match=r"none/log\.txt"):
        run_measured([sys.executable], tmp_path / "none" / "log.txt")
