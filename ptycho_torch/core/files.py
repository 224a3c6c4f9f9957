"""Files appear whole or not at all: written aside, then renamed."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptycho_torch.core.errors import DataError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; rename it to ``path`` on success, delete it on failure.

    The temporary name keeps the suffix of ``path``, because writers choose the format by it.

    Raises:
        DataError: the folder does not exist or cannot be written to, or ``path`` is itself a folder.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another output path") from error
    os.close(handle)
    temp_path = Path(name)
    try:
        yield temp_path
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temp_path, 0o666 & ~umask)  # mkstemp makes private files; results are for the group, as usual
        try:
            os.replace(temp_path, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); choose another output path") from error
    finally:
        temp_path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    with atomic_write(path) as temp_path:
        temp_path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON with sorted keys (the same value gives the same bytes)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def make_output_dir(path: Path) -> Path:
    """Create the folder ``path`` with its parents, or accept it if it is there.

    Raises:
        DataError: a file stands in its place, or the folder cannot be made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: the output folder cannot be made ({error.strerror}); change `output_dir`") from error
    if not os.access(path, os.W_OK):
        raise DataError(f"{path}: the output folder cannot be written to; change `output_dir`")
    return path
