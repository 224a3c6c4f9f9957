"""Figures of scans and reconstructions: functions that return a matplotlib Figure, on given axes if there are any.

Images show the covered region; the area outside it is transparent or tinted. Axes are in object pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.annotations import Figure
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.alignment import OverlapRegion, Region, compute_covered_region
from ptycho_torch.evaluation.metrics import TruthComparison
from ptycho_torch.evaluation.uncertainty_calibration import UncertaintyCalibration, compute_expected_shares
from ptycho_torch.plotting.canvas import add_colorbar, add_legend, encode_pixels, prepare_axes
from ptycho_torch.plotting.scale_bar import draw_scale_bar

PHASE_COLORMAP = "twilight"
_OUTSIDE_COLOR = (0.5, 0.5, 0.5, 0.15)  # a tint, so that the edge of a white or black object is visible
_PLAIN_IMAGE_SIDE_PX = 480  # plain images are enlarged by a whole factor to about this many screen pixels
_DYNAMIC_RANGE = 1e6  # of a mean pattern on a log scale


class CroppedObject(NamedTuple):
    """An object cropped to the covered region, with a fixed global phase."""

    object: NDArray[np.complex128]
    """(rows, columns)."""

    region: Region
    """(rows, columns), True where covered."""

    origin_yx: tuple[int, int]
    """Object coordinates of pixel [0, 0]."""

    object_pixel_m: tuple[float, float] | None = None
    """Sides (y, x) of a pixel in meters; None: unknown."""


def crop_to_covered_region(reconstruction: Reconstruction) -> CroppedObject:
    """Return the covered part of a reconstruction, multiplied by the phase that makes its mean real and positive."""
    region = compute_covered_region(reconstruction)
    crop = compute_bounding_box(region)
    region, obj = region[crop], np.asarray(reconstruction.object[crop], np.complex128)
    corner = reconstruction.origin_yx + [axis.start for axis in crop]
    phased = obj * np.exp(-1j * compute_mean_phase(obj, region))
    return CroppedObject(phased, region, (int(corner[0]), int(corner[1])), _get_object_pixel(reconstruction.geometry))


def _get_object_pixel(geometry: Geometry | None) -> tuple[float, float] | None:
    return None if geometry is None else geometry.object_pixel_m


def compute_mean_phase(obj: NDArray[np.complex128], region: Region) -> float:
    """Return the phase of the mean of ``obj`` over the region, in rad."""
    return float(np.angle(obj[region].mean()))


def compute_bounding_box(region: Region) -> tuple[slice, slice]:
    """Return the smallest rows and columns that contain every True pixel."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def compute_robust_range(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the 0.5 and 99.5 percentiles, widened where they coincide; a few outliers have no influence."""
    low, high = np.percentile(values, [0.5, 99.5])
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def compute_phase_limit(phase: NDArray[np.floating]) -> float:
    """Return the end of the symmetric range of the phase map in rad: π, or less for a weak phase.

    The limit is twice the 99th percentile of \\|phase\\|: a weak phase then fills the middle half of the cyclic map,
    where each color occurs once.
    """
    return float(np.clip(2 * np.percentile(np.abs(phase), 99), 1e-3, np.pi))


def render_amplitude(view: CroppedObject) -> bytes:
    """Return a PNG of \\|object\\| in gray, one square per object pixel, transparent where not covered."""
    amplitude = np.abs(view.object)
    limits = compute_robust_range(amplitude[view.region])
    return encode_pixels(amplitude, view.region, limits, "gray", _PLAIN_IMAGE_SIDE_PX)


def render_phase(view: CroppedObject) -> bytes:
    """Return a PNG of the phase in a cyclic color map, one square per object pixel, transparent where not covered."""
    phase = np.angle(view.object)
    limit = compute_phase_limit(phase[view.region])
    return encode_pixels(phase, view.region, (-limit, limit), PHASE_COLORMAP, _PLAIN_IMAGE_SIDE_PX)


def plot_object(reconstruction: Reconstruction, axes: Any = None) -> Figure:
    """Draw amplitude and phase of the object, with color bars.

    Args:
        reconstruction: the result.
        axes: two matplotlib axes to draw on; None: a new figure.
    """
    view = crop_to_covered_region(reconstruction)
    figure, ((left, right),) = prepare_axes(axes, 1, 2, (11.6, 5.2))
    amplitude, phase = np.abs(view.object), np.angle(view.object)
    low, high = compute_robust_range(amplitude[view.region])
    limit = compute_phase_limit(phase[view.region])
    _draw_image(left, amplitude, "amplitude", view, cmap="gray", vmin=low, vmax=high)
    _draw_image(right, phase, "phase (rad)", view, cmap=PHASE_COLORMAP, vmin=-limit, vmax=limit)
    return figure


def plot_probe(reconstruction: Reconstruction, axes: Any = None) -> Figure:
    """Draw every probe mode: hue is phase, brightness is amplitude.

    Args:
        reconstruction: the result.
        axes: matplotlib axes to draw on, one per mode; None: a new figure.
    """
    modes = len(reconstruction.probe)
    figure, (panels,) = prepare_axes(axes, 1, modes, (3.4 * modes + 1.0, 3.9))
    for mode, axis in enumerate(panels):
        _draw_probe_mode(axis, reconstruction.probe, mode, _get_object_pixel(reconstruction.geometry))
    return figure


def plot_scan(scan: Scan, axes: Any = None) -> Figure:
    """Draw the mean pattern on a log scale, the scan positions and the strongest probe mode.

    Args:
        scan: the measurement.
        axes: three matplotlib axes to draw on; None: a new figure.
    """
    from matplotlib.colors import LogNorm

    figure, ((left, middle, right),) = prepare_axes(axes, 1, 3, (13.2, 4.2))
    mean = _compute_mean_pattern(scan)
    highest = float(np.nanmax(mean))
    floored = np.where(np.isnan(mean), np.nan, np.maximum(mean, highest / _DYNAMIC_RANGE))
    left.set_facecolor(_OUTSIDE_COLOR)
    positive = floored[floored > highest / _DYNAMIC_RANGE]
    mappable = left.imshow(floored, cmap="magma", norm=LogNorm(float(positive.min()), highest))
    left.set_title(f"mean pattern ({'squared amplitude' if scan.photons_per_unit is None else 'photons'})")
    add_colorbar(left, mappable)
    middle.plot(scan.positions[:, 1], scan.positions[:, 0], ".", ms=2.5)
    middle.set_aspect("equal")
    middle.invert_yaxis()
    middle.set_title(f"{len(scan):,} scan positions (pixels)")
    if scan.probe is None:
        right.set_axis_off()
        right.set_title("probe unknown")
    else:
        _draw_probe_mode(right, scan.probe, _find_strongest_mode(scan.probe), _get_object_pixel(scan.geometry))
    return figure


def _compute_mean_pattern(scan: Scan) -> NDArray[np.float64]:
    """Return the mean over the patterns in photons, or in squared amplitude, (N, N); NaN where always masked."""
    scale = scan.photons_per_unit or 1.0
    if scan.mask is None or scan.mask.ndim == 2:
        mean = np.einsum("nij,nij->ij", scan.amplitudes, scan.amplitudes, dtype=np.float64) / len(scan)
        return scale * (mean if scan.mask is None else np.where(scan.mask, mean, np.nan))
    counted = np.where(scan.mask, scan.amplitudes, np.float32(0))
    total, count = np.einsum("nij,nij->ij", counted, counted, dtype=np.float64), scan.mask.sum(0)
    return np.asarray(scale * np.where(count > 0, total / np.maximum(count, 1), np.nan), np.float64)


def plot_truth_comparison(comparison: TruthComparison, axes: Any = None, geometry: Geometry | None = None) -> Figure:
    """Draw truth, reconstruction and their difference, amplitude above phase.

    Args:
        comparison: the reconstruction, aligned with the truth.
        axes: six matplotlib axes to draw on, row by row; None: a new figure.
        geometry: pixel sizes, for scale bars; None: unknown.
    """
    pair = comparison.overlap_region
    crop = compute_bounding_box(pair.region)
    truth, rec = pair.truth[crop], comparison.alignment.object[crop]
    view = _crop_overlap(pair, crop, geometry)
    region = view.region
    phase_factor = np.exp(-1j * compute_mean_phase(truth, region))
    figure, panels = prepare_axes(axes, 2, 3, (11.4, 7.0))
    low, high = compute_robust_range(np.abs(truth)[region])
    limit = compute_phase_limit(np.angle(truth * phase_factor)[region])
    amplitude_style: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high}
    phase_style: dict[str, Any] = {"cmap": PHASE_COLORMAP, "vmin": -limit, "vmax": limit}
    for column, (name, obj) in enumerate((("truth", truth), ("reconstruction", rec))):
        _draw_image(panels[0][column], np.abs(obj), f"amplitude, {name}", view, **amplitude_style)
        _draw_image(panels[1][column], np.angle(obj * phase_factor), f"phase, {name}", view, **phase_style)
    difference, wrapped = np.abs(rec) - np.abs(truth), np.angle(rec * truth.conj())
    for row, (name, error) in enumerate((("amplitude error", difference), ("phase error (rad)", wrapped))):
        most = max(float(np.percentile(np.abs(error[region]), 99)), 1e-6)
        _draw_image(panels[row][2], error, name, view, cmap="RdBu_r", vmin=-most, vmax=most)
    return figure


def plot_uncertainty(reconstruction: Reconstruction, axes: Any = None) -> Figure:
    """Draw the estimated standard deviation over the covered region.

    Args:
        reconstruction: a result with an uncertainty.
        axes: matplotlib axes to draw on; None: a new figure.

    Raises:
        DataError: the reconstruction has no uncertainty.
    """
    if reconstruction.uncertainty is None:
        raise DataError("the reconstruction has no uncertainty; estimate it with `uncertainty=True`")
    view = crop_to_covered_region(reconstruction)
    crop = compute_bounding_box(compute_covered_region(reconstruction))
    values = np.asarray(reconstruction.uncertainty[crop], np.float64)
    figure, ((axis,),) = prepare_axes(axes, 1, 1, (5.6, 5.0))
    upper = _compute_upper_limit(values, view.region)
    _draw_image(axis, values, "standard deviation", view, cmap="viridis", vmin=0, vmax=upper)
    return figure


def plot_calibration(
    calibration: UncertaintyCalibration, pair: OverlapRegion, axes: Any = None, geometry: Geometry | None = None
) -> Figure:
    """Draw estimated standard deviation, true error, and the share of pixels with an error within k σ.

    Args:
        calibration: the uncertainty and the error, in units of the truth.
        pair: the overlap that both belong to.
        axes: three matplotlib axes to draw on; None: a new figure.
        geometry: pixel sizes, for scale bars; None: unknown.
    """
    crop = compute_bounding_box(pair.region)
    view = _crop_overlap(pair, crop, geometry)
    uncertainty, error = calibration.uncertainty[crop], calibration.error[crop]
    figure, ((left, middle, right),) = prepare_axes(axes, 1, 3, (13.2, 4.2))
    most = max(_compute_upper_limit(uncertainty, view.region), _compute_upper_limit(error, view.region))
    _draw_image(left, uncertainty, "standard deviation", view, cmap="viridis", vmin=0, vmax=most)
    _draw_image(middle, error, "|error|", view, cmap="viridis", vmin=0, vmax=most)
    ratio = np.sort(error[view.region] / uncertainty[view.region])
    k = np.linspace(0, 3, 121)
    right.plot(k, np.searchsorted(ratio, k, side="right") / len(ratio), lw=1.8, label="measured")
    right.plot(k, compute_expected_shares(tuple(k.tolist())), lw=1.4, ls="--", label="complex Gaussian errors")
    right.set_title("share of pixels with |error| ≤ k σ")
    right.set_xlabel("k")
    right.set_ylim(0, 1.02)
    add_legend(right)
    return figure


def plot_illumination(reconstruction: Reconstruction, axes: Any = None) -> Figure:
    """Draw the coverage with the scan positions, and the strongest probe mode.

    Args:
        reconstruction: the result.
        axes: two matplotlib axes to draw on; None: a new figure.
    """
    figure, ((left, right),) = prepare_axes(axes, 1, 2, (9.4, 4.2))
    coverage = reconstruction.coverage
    top, bottom = reconstruction.origin_yx[0], reconstruction.origin_yx[0] + coverage.shape[0]
    start, end = reconstruction.origin_yx[1], reconstruction.origin_yx[1] + coverage.shape[1]
    mappable = left.imshow(coverage, cmap="viridis", extent=(start - 0.5, end - 0.5, bottom - 0.5, top - 0.5))
    left.plot(reconstruction.positions[:, 1], reconstruction.positions[:, 0], ".", color="white", ms=1.5, alpha=0.5)
    region = compute_covered_region(reconstruction)
    if not region.all():
        grid = np.arange(start, end), np.arange(top, bottom)
        left.contour(*grid, region.astype(float), [0.5], colors="white", linewidths=0.8)
    left.set_title("coverage (photons per pixel), covered region outlined")
    add_colorbar(left, mappable)
    object_pixel_m = _get_object_pixel(reconstruction.geometry)
    draw_scale_bar(left, object_pixel_m)
    _draw_probe_mode(right, reconstruction.probe, _find_strongest_mode(reconstruction.probe), object_pixel_m)
    return figure


def plot_patterns(
    measured: NDArray[np.floating], predicted: NDArray[np.floating], titles: Sequence[str], axes: Any = None
) -> Figure:
    """Draw measured patterns above predicted ones, on one log scale.

    Args:
        measured: photons, (k, N, N), zero frequency in the middle; NaN (transparent) where masked.
        predicted: photons, (k, N, N).
        titles: one per pattern.
        axes: 2k matplotlib axes to draw on, row by row; None: a new figure.
    """
    from matplotlib.colors import LogNorm

    figure, panels = prepare_axes(axes, 2, len(titles), (3.4 * len(titles) + 1.0, 6.6))
    norm = LogNorm(0.5, max(float(np.nanmax(measured)), 2.0))
    for row, (name, patterns) in enumerate((("measured", measured), ("predicted", predicted))):
        for column, (title, pattern) in enumerate(zip(titles, patterns, strict=True)):
            axis = panels[row][column]
            floored = np.where(np.isnan(pattern), np.nan, np.maximum(pattern, 0.5))
            mappable = axis.imshow(floored, cmap="magma", norm=norm)
            axis.set_title(title if row == 0 else "")
            axis.set_ylabel(f"{name} (photons)" if column == 0 else "")
            axis.set_xticks([])
            axis.set_yticks([])
    add_colorbar(panels.ravel().tolist(), mappable)
    return figure


def convert_complex_to_rgb(field: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    """Return the RGB values (rows, columns, 3) of a complex field: hue is phase, brightness is amplitude."""
    from matplotlib.colors import hsv_to_rgb

    amplitude = np.abs(field)
    hue = (np.angle(field) / (2 * np.pi)) % 1
    brightness = amplitude / amplitude.max() if amplitude.max() > 0 else amplitude
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), np.clip(brightness, 0, 1)], -1)))


def _find_strongest_mode(probe: NDArray[np.complexfloating]) -> int:
    return int(np.sum(np.abs(probe) ** 2, axis=(1, 2)).argmax())


def _draw_probe_mode(
    axis: Any, probe: NDArray[np.complexfloating], mode: int, object_pixel_m: tuple[float, float] | None
) -> None:
    """Draw one mode of a probe (M, N, N), with its share of the power in the title and a scale bar."""
    powers = np.sum(np.abs(probe) ** 2, axis=(1, 2))
    share = float(powers[mode] / powers.sum()) if powers.sum() > 0 else 0.0
    axis.imshow(convert_complex_to_rgb(probe[mode]))
    axis.set_title(f"probe mode {mode + 1} of {len(powers)} ({share:.0%} of the power)")
    draw_scale_bar(axis, object_pixel_m)


def _crop_overlap(pair: OverlapRegion, crop: tuple[slice, slice], geometry: Geometry | None) -> CroppedObject:
    """Return the truth of an overlap, cropped."""
    corner = pair.origin_yx + [axis.start for axis in crop]
    origin = (int(corner[0]), int(corner[1]))
    return CroppedObject(pair.truth[crop], pair.region[crop], origin, _get_object_pixel(geometry))


def _compute_upper_limit(values: NDArray[np.floating], region: Region) -> float:
    """Return the 99th percentile over the region, above 0."""
    return max(float(np.percentile(values[region], 99)), 1e-12)


def _draw_image(axis: Any, values: NDArray[np.floating], title: str, view: CroppedObject, **style: Any) -> None:
    """Draw ``values`` on the region of the view, with axes in object pixels and a color bar."""
    (top, left), (height, width) = view.origin_yx, values.shape
    extent = (left - 0.5, left + width - 0.5, top + height - 0.5, top - 0.5)
    axis.set_facecolor(_OUTSIDE_COLOR)
    mappable = axis.imshow(np.ma.masked_array(values, ~view.region), extent=extent, interpolation="nearest", **style)
    axis.set_title(title)
    _label_axes(axis)
    draw_scale_bar(axis, view.object_pixel_m)
    add_colorbar(axis, mappable)


def _label_axes(axis: Any) -> None:
    """Label the axes of an image on the object's grid: x in the last row of a figure, y in its first column."""
    place = axis.get_subplotspec()
    if place is None or place.is_last_row():
        axis.set_xlabel("x (px)")
    if place is None or place.is_first_col():
        axis.set_ylabel("y (px)")
