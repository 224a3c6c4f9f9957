"""A scan: patterns, positions and probe in the one layout that everything inside the package shares."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.annotations import Figure
from ptycho_torch.core.deferred import call_deferred
from ptycho_torch.core.errors import ContractError, DataError
from ptycho_torch.core.summary import format_summary, format_summary_html
from ptycho_torch.data.contract import find_violations, raise_for_violations
from ptycho_torch.data.geometry import GEOMETRY_KEYS, Geometry, read_geometry
from ptycho_torch.data.layout import ArrayHeader, is_positive_number

FIELD_DTYPES: dict[str, Any] = {
    "amplitudes": np.float32,
    "positions": np.float64,
    "probe": np.complex64,
    "mask": np.bool_,
    "truth": np.complex64,
    "scan_index": np.int64,
    "source_index": np.int64,
    "nominal_positions": np.float64,
    "labels": np.complex64,
}
"""The dtype of each array of a scan."""

_CASTABLE_KINDS = {"f": "fiu", "c": "c", "b": "biuf", "i": "iu"}
"""Kinds of dtype that are cast to a field's dtype, by the kind of the field; the contract rejects any other kind."""

_FIELD_OF_KEY = {
    "diffraction": "amplitudes",
    "probeGuess": "probe",
    "objectGuess": "truth",
    "xcoords_start": "nominal_positions",
    "ycoords_start": "nominal_positions",
    "xcoords": "positions",
    "ycoords": "positions",
    "Y": "labels",
}


@dataclass(frozen=True, eq=False, repr=False)
class Scan:
    """A validated ptychographic scan of ``n`` patterns of ``N`` × ``N`` pixels.

    Each array may be a NumPy array, a torch tensor on any device, or any object that NumPy converts to an array. It is
    cast to the dtype of its field, and a probe of one mode may have the shape (N, N). Arrays of the right dtype and
    memory order are not copied.

    Args:
        amplitudes: (n, N, N) float32, square roots of the counts times any constant factor; zero frequency at
            [N//2, N//2].
        positions: (n, 2) float64, scan positions (y, x) in object pixels, in file order: the center of each patch.
        probe: (M, N, N) complex64, incoherent probe modes in real space, of any power; one mode may be (N, N). None:
            unknown, and estimated where it is needed.
        mask: (N, N) or (n, N, N) bool, True where a detector pixel counts, centered as the amplitudes. None: all count.
        truth: (rows, columns) complex64, the true object with the origin (0, 0), used for evaluation only.
        scan_index: (n,) int64, number of the scan that each pattern belongs to.
        source_index: (n,) int64, index of each pattern in the file that the scan was cut from. None: not a cut.
        nominal_positions: (n, 2) float64, commanded positions (y, x) in object pixels.
        labels: (n, N, N) complex64, true object patches.
        photons_per_unit: photons per squared unit of amplitude; 1.0 if the amplitudes are square roots of photon
            counts. None: unknown, and determined where it is needed.
        geometry: wavelength, distance and pixel sizes. None: the entry "geometry" or "pixel_size" of ``metadata``,
            otherwise unknown.
        metadata: further facts, which can be stored as JSON.
        source: file that the scan was read from.

    Raises:
        ContractError: the arrays break a rule of ``specs/data_contracts.md``; the message ends with its number.
            Amplitudes of masked pixels may have any value.
    """

    amplitudes: NDArray[np.float32]
    """Square roots of counts times any constant factor, (n, N, N), zero frequency at [N//2, N//2]."""

    positions: NDArray[np.float64]
    """Scan positions (y, x) in object pixels, (n, 2), in file order: the center of each patch."""

    probe: NDArray[np.complex64] | None = None
    """Incoherent probe modes in real space, (M, N, N), any power; None: unknown."""

    mask: NDArray[np.bool_] | None = None
    """True where a detector pixel counts, (N, N) or (n, N, N), centered as the amplitudes; None: all count."""

    truth: NDArray[np.complex64] | None = None
    """The file's ``objectGuess``, (rows, columns), origin (0, 0): for evaluation only."""

    scan_index: NDArray[np.int64] | None = None
    """The scan that each pattern belongs to, (n,)."""

    source_index: NDArray[np.int64] | None = None
    """Index of each pattern in the file that the scan was cut from, (n,); None: the scan is not a cut."""

    nominal_positions: NDArray[np.float64] | None = None
    """Commanded positions (y, x) in object pixels, (n, 2), where the file has them."""

    labels: NDArray[np.complex64] | None = None
    """The file's ``Y``: object patches, (n, N, N)."""

    photons_per_unit: float | None = None
    """Photons per squared unit of amplitude; None: unknown."""

    geometry: Geometry | None = None
    """Wavelength, distance and pixel sizes; None: unknown."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """The file's metadata (JSON)."""

    source: Path | None = None
    """The file that the scan was read from."""

    def __post_init__(self) -> None:
        _check_required(self)
        for name, dtype in FIELD_DTYPES.items():
            value = getattr(self, name)
            if value is not None:
                array = _convert_to_numpy(name, value)
                if name == "amplitudes":
                    _refuse_counts(self, array)
                object.__setattr__(self, name, _cast(array, np.dtype(dtype)))
        if self.probe is not None and self.probe.ndim == 2:
            object.__setattr__(self, "probe", self.probe[None])
        if self.geometry is None:
            object.__setattr__(self, "geometry", read_geometry(self.metadata))
        kept = {key: value for key, value in self.metadata.items() if key not in GEOMETRY_KEYS}
        object.__setattr__(self, "metadata", kept)
        _check_shapes(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.amplitudes)

    def __repr__(self) -> str:
        return format_summary(*self._summarize())

    def _repr_html_(self) -> str:
        return format_summary_html(*self._summarize())

    @property
    def size(self) -> int:
        """N, the side of a pattern in pixels."""
        return int(self.amplitudes.shape[-1])

    def require_probe(self) -> NDArray[np.complex64]:
        """Return the probe.

        Raises:
            DataError: the probe is unknown.
        """
        if self.probe is None:
            raise DataError(
                f"{_get_name(self)}: the scan has no probe; expected an initial probe (M, N, N); set `probe`, "
                "`probe_key` or `init_probe`"
            )
        return self.probe

    def digest(self) -> str:
        """Return a short fingerprint of the computed-with arrays, which is equal for files of the same scan."""
        digest = hashlib.sha256()
        for array in (self.amplitudes, self.positions, self.probe, self.mask):
            digest.update(b"" if array is None else array.tobytes())
        return digest.hexdigest()[:16]

    def select(self, indices: NDArray[np.intp]) -> Self:
        """Return the scan of the patterns at ``indices``, in that order; every per-pattern array is cut alike."""
        per_pattern = ["amplitudes", "positions", "scan_index", "source_index", "nominal_positions", "labels"]
        if self.mask is not None and self.mask.ndim == 3:
            per_pattern.append("mask")
        arrays = {name: getattr(self, name) for name in per_pattern}
        # Rows of a valid scan are valid, so that no value is checked again.
        selected = object.__new__(type(self))
        vars(selected).update(vars(self))
        vars(selected).update({name: array[indices] for name, array in arrays.items() if array is not None})
        return selected

    def plot(self, axes: Any = None) -> Figure:
        """Draw the mean pattern (log scale), the scan positions and the strongest probe mode.

        Args:
            axes: three matplotlib axes to draw on; None: a new figure.

        Returns:
            The figure, which a notebook displays.
        """
        figure: Figure = call_deferred("ptycho_torch.plotting.figures:plot_scan", self, axes)
        return figure

    def _summarize(self) -> tuple[str, dict[str, str]]:
        """Return title and facts of the representation."""
        modes = 0 if self.probe is None else len(self.probe)
        height, width = np.ptp(self.positions, axis=0)
        facts = {
            "probe": f"{modes} mode{'s' * (modes > 1)}" if modes else "unknown",
            "photons": self._describe_photons(),
            "positions": f"{height:.1f} × {width:.1f} pixels (y, x)",
        }
        if self.geometry is not None and self.geometry.object_pixel_m is not None:
            y, x = (side * 1e9 for side in self.geometry.object_pixel_m)
            facts["object pixel"] = f"{y:.4g} × {x:.4g} nm (y, x)"
        if self.mask is not None:
            facts["mask"] = f"{1 - self.mask.mean():.1%} of the pixels masked"
        if self.truth is not None:
            facts["truth"] = f"{self.truth.shape[0]} × {self.truth.shape[1]} pixels"
        if self.source is not None:
            facts["source"] = str(self.source)
        return f"Scan of {len(self):,} patterns of {self.size} × {self.size} pixels", facts

    def _describe_photons(self) -> str:
        if self.photons_per_unit is None:
            return "unknown (no `photons_per_unit`)"
        counted = self.amplitudes if self.mask is None else np.where(self.mask, self.amplitudes, np.float32(0))
        total = float(np.einsum("nij,nij->", counted, counted, dtype=np.float64))
        return f"{total * self.photons_per_unit / max(len(self), 1):.4g} per pattern"


def scan_to_arrays(scan: Scan) -> dict[str, NDArray[Any]]:
    """Return the arrays of a scan by the key names of the canonical layout, without metadata."""
    arrays: dict[str, NDArray[Any] | None] = {
        "diffraction": scan.amplitudes,
        "probeGuess": scan.probe[0] if scan.probe is not None and len(scan.probe) == 1 else scan.probe,
        "xcoords": scan.positions[:, 1],
        "ycoords": scan.positions[:, 0],
        "mask": scan.mask,
        "objectGuess": scan.truth,
        "scan_index": scan.scan_index,
        "source_index": scan.source_index,
        "Y": scan.labels,
    }
    if scan.nominal_positions is not None:
        arrays |= {"xcoords_start": scan.nominal_positions[:, 1], "ycoords_start": scan.nominal_positions[:, 0]}
    return {key: array for key, array in arrays.items() if array is not None}


def check_scan(scan: Scan) -> None:
    """Check that a scan can be written to a file: every MUST holds. Masked pixels may have any value.

    Raises:
        ContractError: the first broken rule.
    """
    violations = find_violations(scan_to_arrays(scan), "nhw", "amplitude", recommendations=False)
    raise_for_violations(violations, _get_name(scan))


def _get_name(scan: Scan) -> str:
    return str(scan.source) if scan.source else "scan"


def require_scan(value: Any) -> Scan:
    """Return ``value`` if it is a scan.

    Raises:
        DataError: it is not.
    """
    if isinstance(value, Scan):
        return value
    raise DataError(f"`scan` is a {type(value).__name__}; expected a Scan; read a file with load_scan(path)")


def _check_required(scan: Scan) -> None:
    for rule, name in (("R4", "amplitudes"), ("R11", "positions")):
        if getattr(scan, name) is None:
            raise ContractError(rule, f"{_get_name(scan)}: `{name}` is None; expected an array")


def _refuse_counts(scan: Scan, amplitudes: NDArray[Any]) -> None:
    if amplitudes.dtype.kind in "iu" and scan.metadata.get("measurement") != "amplitude":
        raise ContractError(
            "R8",
            f"{_get_name(scan)}: `amplitudes` is {amplitudes.dtype}, which may be counts; expected floating-point "
            'amplitudes; pass np.sqrt(counts), or set "measurement" to "amplitude" in `metadata`',
        )


def _convert_to_numpy(name: str, value: Any) -> NDArray[Any]:
    """Return ``value`` as an array; a torch tensor is recognized by its methods, because this layer has no torch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_conj().resolve_neg().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"`{name}` is no array ({error}); expected rows of equal lengths") from error


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return ``array`` in C order, cast to ``dtype`` if no value is lost by it."""
    if array.dtype.kind not in _CASTABLE_KINDS[dtype.kind] or array.ndim == 0:
        return array
    if dtype.kind == "b" and not ((array == 0) | (array == 1)).all():
        return array
    return np.ascontiguousarray(array, dtype=dtype)


def _check_shapes(scan: Scan) -> None:
    """Check shapes, dtypes and the photon scale, in microseconds.

    Raises:
        ContractError: the first broken rule.
    """
    name = _get_name(scan)
    for rule, label, array in (
        ("R11", "positions", scan.positions),
        ("R20", "nominal_positions", scan.nominal_positions),
    ):
        if array is not None and (array.ndim != 2 or array.shape[1] != 2):
            raise ContractError(rule, f"{name}: `{label}` has shape {array.shape}; expected (n, 2), columns (y, x)")
    if scan.probe is not None and scan.probe.ndim != 3:
        raise ContractError(
            "R13", f"{name}: `probe` has shape {scan.probe.shape}; expected complex, (N, N) or (modes, N, N)"
        )
    if scan.photons_per_unit is not None and not is_positive_number(scan.photons_per_unit):
        raise ContractError(
            "R21", f"{name}: `photons_per_unit` is {scan.photons_per_unit!r}; expected a positive number"
        )
    arrays = scan_to_arrays(scan)
    _raise_for_fields(scan, {key: ArrayHeader(array.shape, array.dtype, False) for key, array in arrays.items()})


def _check_values(scan: Scan) -> None:
    """Check the values of all arrays; amplitudes count where the mask is True.

    Raises:
        ContractError: the first broken rule.
    """
    arrays = scan_to_arrays(scan)
    # NaN makes either extremum NaN: two passes find every bad value, and only a scan that has one is copied.
    bad = not (scan.amplitudes.min() >= 0 and np.isfinite(scan.amplitudes.max()))
    if bad and scan.mask is not None:
        arrays["diffraction"] = np.where(scan.mask, scan.amplitudes, np.float32(0))
    _raise_for_fields(scan, arrays)


def _raise_for_fields(scan: Scan, arrays: Any) -> None:
    """Raise for the first broken MUST, with the fields of :class:`Scan` in place of the keys of a file."""
    for violation in find_violations(arrays, "nhw", "amplitude", recommendations=False):
        message = re.sub(
            r"\b(" + "|".join(_FIELD_OF_KEY) + r")\b", lambda key: f"`{_FIELD_OF_KEY[key[1]]}`", violation.message
        )
        raise ContractError(violation.rule, f"{_get_name(scan)}: {message}")
