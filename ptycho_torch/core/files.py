"""Write files atomically: to a temporary file in the same folder, which is then renamed."""

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
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` on success, delete it on failure.

    The temporary name keeps the suffix of ``path``, because writers select the format by the suffix.

    Raises:
        DataError: the folder does not exist or cannot be written to, or ``path`` is a folder.
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
        os.chmod(temp_path, 0o666 & ~umask)  # mkstemp creates private files; results get the usual permissions
        try:
            os.replace(temp_path, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); choose another output path") from error
    finally:
        temp_path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically."""
    with atomic_write(path) as temp_path:
        temp_path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON with sorted keys, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def make_output_dir(path: Path) -> Path:
    """Create the folder ``path`` and its parents if they do not exist, and return it.

    Raises:
        DataError: a file has this path, or the folder cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path}: the output folder cannot be created ({error.strerror}); change `output_dir`"
        ) from error
    if not os.access(path, os.W_OK):
        raise DataError(f"{path}: the output folder cannot be written to; change `output_dir`")
    return path
