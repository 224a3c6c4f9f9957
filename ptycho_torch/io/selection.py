"""Selection of the patterns of a scan by range, list or file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError

MAX_INDEX_FILE_BYTES = 1 << 24
"""Largest file of indices."""


def read_frame_indices(text: str, count: int) -> NDArray[np.intp]:
    """Return the indices of patterns that ``text`` selects.

    Args:
        text: a range ``START:STOP`` or ``START:STOP:STEP`` as a slice of Python, a list ``1,5,9``, or the path of a
            text file with indices separated by commas, spaces or lines.
        count: number of patterns.

    Returns:
        (m,) indices, in the order of ``text``.

    Raises:
        ConfigError: the text is malformed, selects no pattern, selects one twice, or an index is out of range.
    """
    path = _find_index_file(text)
    if path is not None:
        if path.stat().st_size > MAX_INDEX_FILE_BYTES:
            raise ConfigError(
                f"{path}: the file of `frames` has {path.stat().st_size} bytes; expected a list of indices"
            )
        try:
            content = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"{path}: the file of `frames` cannot be read ({error.strerror or error})") from error
        text = ",".join(content.replace(",", " ").split())
    try:
        if ":" in text:
            parts = [int(part) if part.strip() else None for part in text.split(":")]
            if len(parts) > 3:
                raise ValueError("more than two colons")
            indices = np.arange(count)[slice(*parts)]
        else:
            indices = np.array([int(part) for part in text.split(",")], np.intp)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"`frames` is {text[:80]!r}; expected a range such as 0:500:2, indices such as 1,5,9, or a file of indices"
        ) from error
    if not len(indices) or (indices < 0).any() or (indices >= count).any():
        raise ConfigError(f"`frames` is {text[:80]!r}; expected at least one index, from 0 to {count - 1}")
    if len(np.unique(indices)) != len(indices):
        raise ConfigError(f"`frames` is {text[:80]!r}, which selects a pattern twice; expected each index once")
    return indices.astype(np.intp)


def _find_index_file(text: str) -> Path | None:
    """Return the path of the file of indices; None if ``text`` is a range or a list."""
    try:
        path = Path(text)
        return path if path.is_file() else None
    except (OSError, ValueError):  # a list that is longer than a file name may be, or a null byte
        return None
