"""The memory that a computation may allocate on this machine."""

from pathlib import Path

# Interfaces of the Linux kernel, at these fixed paths; on other systems the files do not exist and no limit is stated.
MEMORY_FILE = Path("/proc/meminfo")
CGROUP_FOLDER = Path("/sys/fs/cgroup")

CGROUP_FILES = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
"""Files in :data:`CGROUP_FOLDER` with the limit and the use of a control group in bytes, of versions 2 and 1."""


def read_available_memory() -> int | None:
    """Return the number of bytes that this process can allocate; None: the system does not state it.

    The number is the smaller of the available memory of the machine and the rest of the control group's limit.
    """
    limits = [_read_available_of_machine(), _read_rest_of_control_group()]
    return min((limit for limit in limits if limit is not None), default=None)


def _read_available_of_machine() -> int | None:
    text = _read_text(MEMORY_FILE)
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _read_rest_of_control_group() -> int | None:
    for limit, use in CGROUP_FILES:
        texts = [_read_text(CGROUP_FOLDER / name).strip() for name in (limit, use)]
        if all(text.isdecimal() for text in texts):
            return max(0, int(texts[0]) - int(texts[1]))
    return None


def _read_text(path: Path) -> str:
    """Return the text of a file of the system; empty: there is no such file on this system."""
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
