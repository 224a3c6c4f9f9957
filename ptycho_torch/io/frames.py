"""Patterns on the way from a file to a scan: markers, dark, flat, masks, orientation, and the window."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import Measurement
from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import ConfigError, ContractError, DataError
from ptycho_torch.data.beam_center import estimate_center
from ptycho_torch.data.detector import apply_flat, clip_negative, find_marker_pixels, fit_window, subtract_dark
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.io.arrays import read_single_array
from ptycho_torch.io.parts import ScanParts
from ptycho_torch.io.size_limits import check_array_size

logger = logging.getLogger(__name__)

MAX_NEGATIVE_SHARE = 0.01
"""Largest share of negative values whose bias is left unmentioned."""


@dataclass
class Frames:
    """Patterns with their mask, center and detector pixel, through all steps of the conversion."""

    values: NDArray[Any]
    """(n, rows, columns)."""

    mask: NDArray[np.bool_] | None
    """(rows, columns) or (n, rows, columns), True where a pixel counts."""

    center: tuple[float, float] | None
    """Zero frequency (row, column); None: unknown."""

    measurement: Measurement


def correct_frames(parts: ScanParts, settings: InputSettings, name: str) -> Frames:
    """Return the patterns with markers masked, and dark and flat applied."""
    values, mask, measurement = parts.patterns, parts.mask, settings.measurement or parts.measurement
    assert values is not None  # checked before
    if measurement is None:
        raise ConfigError(
            f"{name}: the patterns are {values.dtype} and may be counts or amplitudes; set `measurement` to counts or "
            "amplitude"
        )
    values = values.astype(np.uint8) if values.dtype.kind == "b" else values
    mask = None if mask is None else _check_mask(mask, values, name)
    if settings.mask is not None:
        given = _check_mask(read_single_array(settings.mask, "mask", ("mask",)), values, str(settings.mask))
        mask = _combine_masks(mask, ~given if settings.invert_mask else given)
    elif mask is not None and settings.invert_mask:
        mask = ~mask
    markers = find_marker_pixels(values) if measurement == "counts" else ~np.isfinite(values)
    values, mask = _mask_markers(values, mask, markers, parts, name)
    dark = read_single_array(settings.dark, "dark", ("dark",)) if settings.dark else parts.dark
    flat = read_single_array(settings.flat, "flat", ("flat",)) if settings.flat else parts.flat
    if measurement == "amplitude" and (settings.dark or settings.flat):
        raise ConfigError(f"{name}: `dark` and `flat` apply to counts; the patterns are amplitudes; omit both")
    if dark is not None:
        values = subtract_dark(values, dark.mean(0) if dark.ndim == 3 else dark)
        parts.report.add("dark", str(settings.dark or "the file"), "counts", "mean subtracted from each pattern")
    if flat is not None:
        values, usable = apply_flat(values, flat.mean(0) if flat.ndim == 3 else flat)
        mask = _combine_masks(mask, None if usable.all() else usable)
        parts.report.add("flat", str(settings.flat or "the file"), "", "counts divided by the relative efficiency")
    clipped, negative = clip_negative(values)
    if negative:
        _note(parts, name, _describe_clipping(values, negative))
    values = clipped
    return Frames(values, mask, parts.center, measurement)


def _describe_clipping(values: NDArray[Any], negative: int) -> str:
    """Return the share of the values that are set to 0 and, if it is large, the bias and its remedy."""
    share = negative / values.size
    text = f"{negative} negative values ({share:.2%} of all) are set to 0"
    if share <= MAX_NEGATIVE_SHARE:
        return text
    bias = -float(np.minimum(values, 0).sum(dtype=np.float64)) / values.size
    return (
        f"{text}, which adds {bias:.3g} counts per pixel and pattern: noise of pixels without signal, or a dark of "
        "another exposure; exclude pixels without signal by `mask` or `crop`, or change `dark`"
    )


def _check_mask(mask: NDArray[Any], values: NDArray[Any], name: str) -> NDArray[np.bool_]:
    while mask.ndim > 2 and mask.shape[0] == 1:
        mask = mask[0]
    if mask.shape not in (values.shape, values.shape[1:]) or not np.isin(mask, (0, 1)).all():
        raise ContractError(
            "R18",
            f"{name}: the mask is {mask.dtype} of shape {mask.shape}; expected 0 and 1, one per pixel of a pattern, "
            f"{values.shape[1:]}; change `mask`",
        )
    return mask.astype(bool)


def _combine_masks(first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    if first is None or second is None:
        return second if first is None else first
    combined: NDArray[np.bool_] = first & second
    return combined


def _mask_markers(
    values: NDArray[Any], mask: NDArray[np.bool_] | None, markers: NDArray[np.bool_], parts: ScanParts, name: str
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return the patterns with markers set to 0, and the mask without the pixels of the markers."""
    if not markers.any():
        return values, mask
    in_any, in_all = np.asarray(markers.any(0)), np.asarray(markers.all(0))
    unmasked = in_any if mask is None else markers & mask
    if unmasked.any():
        _note(
            parts,
            name,
            f"{int(in_any.sum())} detector pixels hold markers instead of counts (gaps, saturation or not finite) and "
            "are masked",
        )
    found = ~in_any if (in_any == in_all).all() else ~markers
    return np.where(markers, values.dtype.type(0), values), _combine_masks(mask, found)


def _note(parts: ScanParts, name: str, text: str) -> None:
    parts.report.assumptions.append(text)
    logger.warning("%s: %s", name, text)


def _get_orientation(settings: InputSettings) -> Orientation:
    return Orientation(settings.flip_y, settings.flip_x, settings.transpose)


def orient_frames(frames: Frames, settings: InputSettings) -> Frames:
    """Return the patterns with a centered origin, flipped and transposed about zero frequency."""
    values, mask, center = frames.values, frames.mask, frames.center
    if settings.origin == "corner":
        values = np.fft.fftshift(values, axes=(-2, -1))
        mask = None if mask is None else np.fft.fftshift(mask, axes=(-2, -1))
        center = None
    given = _parse_center(settings)
    center = given if given is not None else None if settings.center == "middle" else center
    orientation = _get_orientation(settings)
    if orientation != Orientation():
        rows, columns = values.shape[1:]
        values = orientation.apply(values)
        mask = None if mask is None else orientation.apply(mask)
        if center is not None:
            row = 2 * (rows // 2) - center[0] if settings.flip_y else center[0]
            column = 2 * (columns // 2) - center[1] if settings.flip_x else center[1]
            center = (column, row) if settings.transpose else (row, column)
    return Frames(values, mask, center, frames.measurement)


def _parse_center(settings: InputSettings) -> tuple[float, float] | None:
    if settings.center in (None, "auto", "middle"):
        return None
    try:
        row, column = (float(part) for part in str(settings.center).split(","))
    except ValueError as error:
        raise ConfigError(f"`center` is {settings.center!r}; expected ROW,COLUMN in pixels, auto or middle") from error
    if not np.isfinite((row, column)).all():
        raise ConfigError(f"`center` is {settings.center!r}; expected finite numbers")
    return row, column


def get_reference_size(parts: ScanParts, frames: Frames) -> int:
    """Return N of the patterns before the crop: the side of the probe, otherwise the longer side of the detector."""
    if parts.probe is not None and parts.probe.ndim >= 2 and parts.probe.shape[-1] == parts.probe.shape[-2]:
        return int(parts.probe.shape[-1])
    return int(max(frames.values.shape[1:]))


def cut_window(frames: Frames, settings: InputSettings, size: int, parts: ScanParts, name: str) -> Frames:
    """Return square patterns of ``size`` pixels about the center."""
    rows, columns = frames.values.shape[1:]
    middle = (float(rows // 2), float(columns // 2))
    center = frames.center or middle
    if settings.center == "auto":
        counts = frames.values if frames.measurement == "counts" else np.square(frames.values.astype(np.float32))
        counting = (
            None if frames.mask is None else frames.mask if frames.mask.ndim == 2 else np.asarray(frames.mask.all(0))
        )
        estimate = estimate_center(counts.mean(0, dtype=np.float64), counting)
        if not estimate.decided:
            raise DataError(
                f"{name}: the center of the patterns cannot be estimated; set `center` to ROW,COLUMN or middle"
            )
        center = (estimate.row, estimate.column)
        _note(parts, name, f"center of the patterns estimated at ({center[0]:.2f}, {center[1]:.2f})")
    check_array_size(f"{name}: the window of `crop` {size}", (len(frames.values), size, size), frames.values.dtype)
    shift = np.floor(np.asarray(center) + 0.5) - middle
    if rows == columns == size and not shift.any():
        return frames
    values, mask = fit_window(frames.values, frames.mask, center, size)
    share = 1.0 if mask is None else float(mask.mean())
    parts.report.add(
        "patterns",
        f"{rows} × {columns} pixels",
        "pixel",
        f"window of {size} × {size} pixels about ({center[0]:.2f}, {center[1]:.2f}), {1 - share:.1%} masked",
    )
    return Frames(values, mask, (size // 2, size // 2), frames.measurement)
