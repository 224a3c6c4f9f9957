"""Names and types that the tests of the files of other programs share."""

from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from write_peer_files import FILES


class WrittenFile(NamedTuple):
    """A file of another program and its truth."""

    path: Path
    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


CASES = [(name, side) for name, peer in FILES.items() for side in peer.sides]
"""Name and side of the patterns of each file."""
