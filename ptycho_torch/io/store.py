"""The interface of the arrays of a file by key."""

from abc import ABC, abstractmethod
from typing import Any

from numpy.typing import NDArray

from ptycho_torch.data.layout import ArrayHeader


class ArrayStore(ABC):
    """The arrays of a file by key."""

    @abstractmethod
    def list_headers(self) -> dict[str, ArrayHeader]:
        """Return shape and dtype of every array by key."""

    @abstractmethod
    def read(self, key: str) -> NDArray[Any]:
        """Read the array ``key``.

        Raises:
            DataError: the array cannot be read.
        """
