"""A scan: patterns, positions and probe in the one layout that everything inside the package shares."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Scan:
    """A validated ptychographic scan of ``n`` patterns of ``N`` × ``N`` pixels.

    Made by :func:`ptycho_torch.io.npz.load_scan` or :mod:`ptycho_torch.simulation`, which check the rules of
    ``specs/data_contracts.md``; :func:`ptycho_torch.data.contract.check_scan` checks one made by hand.
    """

    amplitudes: NDArray[np.float32]
    """Measured amplitudes in the file's unit, (n, N, N), zero frequency at [N//2, N//2]."""

    positions: NDArray[np.float64]
    """Scan positions (y, x) in object pixels, (n, 2), in file order: the centre of each patch."""

    probe: NDArray[np.complex64]
    """Incoherent probe modes in real space, (M, N, N), any power."""

    mask: NDArray[np.bool_] | None = None
    """True where a detector pixel counts, (N, N) or (n, N, N), centred as the amplitudes; None: all count."""

    truth: NDArray[np.complex64] | None = None
    """The file's ``objectGuess``, (rows, columns), origin (0, 0): for evaluation only."""

    scan_index: NDArray[np.int64] | None = None
    """Which scan each pattern belongs to, (n,)."""

    source_index: NDArray[np.int64] | None = None
    """Index of each pattern in the file that it was cut from, (n,); None: this is no cut."""

    nominal_positions: NDArray[np.float64] | None = None
    """Commanded positions (y, x) in object pixels, (n, 2), where the file keeps them."""

    labels: NDArray[np.complex64] | None = None
    """The file's ``Y``: object patches, (n, N, N)."""

    photons_per_unit: float | None = None
    """Photons for one squared unit of amplitude, where the file's metadata say it."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """The file's metadata (JSON)."""

    source: Path | None = None
    """The file that this scan was read from."""

    def __len__(self) -> int:
        return len(self.amplitudes)

    @property
    def size(self) -> int:
        """N, the side of a pattern in pixels."""
        return int(self.amplitudes.shape[-1])

    def digest(self) -> str:
        """A short fingerprint of what is computed with: tells whether two files hold the same scan."""
        found = hashlib.sha256()
        for array in (self.amplitudes, self.positions, self.probe, self.mask):
            found.update(b"" if array is None else array.tobytes())
        return found.hexdigest()[:16]

    def select(self, indices: NDArray[np.intp]) -> Self:
        """The same scan with only the patterns at ``indices``, in that order; every per-pattern array is cut alike."""

        def cut(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else array[indices]

        return replace(
            self,
            amplitudes=self.amplitudes[indices],
            positions=self.positions[indices],
            mask=cut(self.mask) if self.mask is not None and self.mask.ndim == 3 else self.mask,
            scan_index=cut(self.scan_index),
            source_index=cut(self.source_index),
            nominal_positions=cut(self.nominal_positions),
            labels=cut(self.labels),
        )
