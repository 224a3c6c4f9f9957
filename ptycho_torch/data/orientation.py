"""The eight orientations of a detector: flips and transpose of patterns about zero frequency."""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError


class Orientation(NamedTuple):
    """Flips of rows and columns, followed by a transpose: one of the eight symmetries of a square.

    Zero frequency stays at ``N//2``: a flip exchanges the pixels ``N//2 + k`` and ``N//2 − k`` of an axis. On an even
    axis the pixel 0 has no counterpart and stays in place.
    """

    flip_rows: bool = False
    """Reverse the order of the rows."""

    flip_columns: bool = False
    """Reverse the order of the columns."""

    transpose: bool = False
    """Exchange rows and columns, after the flips."""

    @classmethod
    def from_transpose_first(cls, transpose: bool, flip_rows: bool, flip_columns: bool) -> Self:
        """Return the orientation of a transpose that is followed by flips."""
        return cls(flip_columns, flip_rows, True) if transpose else cls(bool(flip_rows), bool(flip_columns), False)

    @classmethod
    def from_code(cls, code: int) -> Self:
        """Return the orientation of a numeric code: 4, transpose; then 2, flip of rows; and 1, flip of columns.

        Args:
            code: sum of the codes, 0 to 7, the convention of ptypy and PtyLab.

        Raises:
            ConfigError: the code is not from 0 to 7.
        """
        if code not in range(8):
            raise ConfigError(f"the code of the detector orientation is {code}; expected a whole number from 0 to 7")
        return cls.from_transpose_first(bool(code & 4), bool(code & 2), bool(code & 1))

    @classmethod
    def from_matrix(cls, matrix: NDArray[Any]) -> Self:
        """Return the orientation whose :attr:`matrix` is ``matrix`` (2, 2)."""
        return next(each for each in map(cls.from_code, range(8)) if np.array_equal(each.matrix, matrix))

    @property
    def code(self) -> int:
        """The numeric code, 0 to 7, of :meth:`from_code`."""
        rows, columns = self[:2] if not self.transpose else (self.flip_columns, self.flip_rows)
        return 4 * self.transpose + 2 * rows + columns

    @property
    def matrix(self) -> NDArray[np.int64]:
        """The map (2, 2) of an offset (row, column) from zero frequency to its place in the oriented pattern."""
        flips = np.diag([-1 if self.flip_rows else 1, -1 if self.flip_columns else 1])
        return flips[::-1].copy() if self.transpose else flips

    @property
    def inverse(self) -> Self:
        """The orientation that undoes this one."""
        return self.from_matrix(self.matrix.T)

    def then(self, after: "Orientation") -> Self:
        """Return the single orientation that is equal to this one followed by ``after``."""
        return self.from_matrix(after.matrix @ self.matrix)

    def apply(self, arrays: NDArray[Any]) -> NDArray[Any]:
        """Return patterns, masks or probes (*, rows, columns), centered at ``N//2``, in this orientation."""
        rows, columns = arrays.shape[-2:]
        if self.flip_rows:
            arrays = arrays[..., make_reversed_indices(rows), :]
        if self.flip_columns:
            arrays = arrays[..., make_reversed_indices(columns)]
        return np.swapaxes(arrays, -2, -1) if self.transpose else arrays

    def __str__(self) -> str:
        names = [name for name, value in zip(("flip_y", "flip_x", "transpose"), self, strict=True) if value]
        return ", ".join(names) or "as stored"


def make_reversed_indices(length: int) -> NDArray[np.int64]:
    """Return the indices (length,) that reverse an axis about its pixel ``length//2``."""
    reversed_indices: NDArray[np.int64] = (2 * (length // 2) - np.arange(length)) % length
    return reversed_indices


ORIENTATIONS = tuple(map(Orientation.from_code, range(8)))
"""All orientations, by their code."""
