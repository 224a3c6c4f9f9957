"""Pictures: plain ones of the object, and the report's figures, as PNG bytes that are the same for the same values.

Figures are drawn with matplotlib's object interface (no global state), on a transparent ground with gray lettering, so
that they can be read on white and on black. Images show the covered region; what lies outside is transparent or tinted.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.alignment import OverlapRegion, Region, compute_covered_region
from ptycho_torch.evaluation.frc import RingCorrelation
from ptycho_torch.evaluation.metrics import TruthComparison
from ptycho_torch.evaluation.uncertainty_calibration import UncertaintyCalibration, compute_expected_shares

PHASE_COLORMAP = "twilight"
_INK_COLOR = "#80868f"  # contrast of at least 3.5 on white and on near-black
_OUTSIDE_COLOR = (0.5, 0.5, 0.5, 0.15)  # a tint of the page, so that a white or black object ends where it ends
_DPI = 80
_MAX_MARKED_POINTS = 20  # points of a curve that get a dot each: a single one has no line
_PLAIN_IMAGE_SIDE_PX = 480  # pixels: plain pictures are enlarged by a whole factor up to about this


class CroppedObject(NamedTuple):
    """An object as it is shown: cropped to the covered region and in a fixed gauge."""

    object: NDArray[np.complex128]
    """(rows, columns)."""

    region: Region
    """(rows, columns), True where shown."""

    origin_yx: tuple[int, int]
    """Object coordinates of pixel [0, 0]."""


def crop_to_covered_region(reconstruction: Reconstruction) -> CroppedObject:
    """The covered part of a reconstruction, turned so that its mean over the region is real and positive."""
    region = compute_covered_region(reconstruction)
    crop = compute_bounding_box(region)
    region, obj = region[crop], np.asarray(reconstruction.object[crop], np.complex128)
    corner = reconstruction.origin_yx + [axis.start for axis in crop]
    return CroppedObject(obj * np.exp(-1j * compute_mean_phase(obj, region)), region, (int(corner[0]), int(corner[1])))


def compute_mean_phase(obj: NDArray[np.complex128], region: Region) -> float:
    """The phase of the mean of ``obj`` over the region, in rad."""
    return float(np.angle(obj[region].mean()))


def compute_bounding_box(region: Region) -> tuple[slice, slice]:
    """The smallest rows and columns that hold every True pixel."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def compute_robust_range(values: NDArray[np.floating]) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles, widened where they coincide, so that a few wild pixels do not set the range."""
    low, high = np.percentile(values, [0.5, 99.5])
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def compute_phase_limit(phase: NDArray[np.floating]) -> float:
    """The end of the symmetric range of the phase map in rad: π, or less for a weak phase.

    Twice the 99th percentile of |phase|: a weak phase then fills the middle half of the cyclic map, where no colour
    comes twice.
    """
    return float(np.clip(2 * np.percentile(np.abs(phase), 99), 1e-3, np.pi))


def render_amplitude(view: CroppedObject) -> bytes:
    """PNG of |object| in grays, one object pixel a square of whole screen pixels, transparent where not covered."""
    amplitude = np.abs(view.object)
    return _encode_plain_png(amplitude, view.region, *compute_robust_range(amplitude[view.region]), "gray")


def render_phase(view: CroppedObject) -> bytes:
    """PNG of the phase in a cyclic colour map, as :func:`render_amplitude`."""
    phase = np.angle(view.object)
    limit = compute_phase_limit(phase[view.region])
    return _encode_plain_png(phase, view.region, -limit, limit, PHASE_COLORMAP)


def plot_object(view: CroppedObject) -> bytes:
    """Amplitude beside phase, with colour bars."""
    figure, (left, right) = _make_figure(1, 2, (11.6, 5.2))
    amplitude, phase = np.abs(view.object), np.angle(view.object)
    low, high = compute_robust_range(amplitude[view.region])
    limit = compute_phase_limit(phase[view.region])
    _draw_image(left, amplitude, "amplitude", view, cmap="gray", vmin=low, vmax=high)
    _draw_image(right, phase, "phase (rad)", view, cmap=PHASE_COLORMAP, vmin=-limit, vmax=limit)
    return _encode_png(figure)


def plot_truth_comparison(comparison: TruthComparison) -> bytes:
    """Truth, reconstruction and their difference, amplitude above phase, in the gauge of the truth."""
    pair = comparison.overlap_region
    crop = compute_bounding_box(pair.region)
    region, truth, rec = pair.region[crop], pair.truth[crop], comparison.alignment.object[crop]
    phase_factor = np.exp(-1j * compute_mean_phase(truth, region))
    corner = pair.origin_yx + [axis.start for axis in crop]
    view = CroppedObject(truth, region, (int(corner[0]), int(corner[1])))
    figure, axes = _make_figure(2, 3, (11.4, 7.0))
    low, high = compute_robust_range(np.abs(truth)[region])
    limit = compute_phase_limit(np.angle(truth * phase_factor)[region])
    difference, wrapped = np.abs(rec) - np.abs(truth), np.angle(rec * truth.conj())
    for column, (name, obj) in enumerate((("truth", truth), ("reconstruction", rec))):
        _draw_image(axes[0][column], np.abs(obj), f"amplitude, {name}", view, cmap="gray", vmin=low, vmax=high)
        _draw_image(
            axes[1][column],
            np.angle(obj * phase_factor),
            f"phase, {name}",
            view,
            cmap=PHASE_COLORMAP,
            vmin=-limit,
            vmax=limit,
        )
    for row, (name, error) in enumerate((("amplitude error", difference), ("phase error (rad)", wrapped))):
        most = max(float(np.percentile(np.abs(error[region]), 99)), 1e-6)
        _draw_image(axes[row][2], error, name, view, cmap="RdBu_r", vmin=-most, vmax=most)
    return _encode_png(figure)


def plot_uncertainty(reconstruction: Reconstruction) -> bytes:
    """The standard deviation that a reconstruction states, over the covered region."""
    assert reconstruction.uncertainty is not None
    view = crop_to_covered_region(reconstruction)
    values = np.asarray(
        reconstruction.uncertainty[compute_bounding_box(compute_covered_region(reconstruction))], np.float64
    )
    figure, axis = _make_figure(1, 1, (5.6, 5.0))
    _draw_image(
        axis, values, "standard deviation", view, cmap="viridis", vmin=0, vmax=_compute_upper_limit(values, view.region)
    )
    return _encode_png(figure)


def plot_calibration(calibration: UncertaintyCalibration, pair: OverlapRegion) -> bytes:
    """Stated standard deviation and true error, in units of the truth, beside the share of pixels within k of it."""
    crop = compute_bounding_box(pair.region)
    corner = pair.origin_yx + [axis.start for axis in crop]
    view = CroppedObject(pair.truth[crop], pair.region[crop], (int(corner[0]), int(corner[1])))
    uncertainty, error = calibration.uncertainty[crop], calibration.error[crop]
    figure, axes = _make_figure(1, 3, (13.2, 4.2))
    most = max(_compute_upper_limit(uncertainty, view.region), _compute_upper_limit(error, view.region))
    _draw_image(axes[0], uncertainty, "standard deviation", view, cmap="viridis", vmin=0, vmax=most)
    _draw_image(axes[1], error, "|error|", view, cmap="viridis", vmin=0, vmax=most)
    ratio = np.sort(error[view.region] / uncertainty[view.region])
    k = np.linspace(0, 3, 121)
    axes[2].plot(k, np.searchsorted(ratio, k, side="right") / len(ratio), lw=1.8, label="found")
    axes[2].plot(k, compute_expected_shares(tuple(k.tolist())), lw=1.4, ls="--", label="complex Gaussian errors")
    axes[2].set_title("share of pixels with |error| ≤ k σ")
    axes[2].set_xlabel("k")
    axes[2].set_ylim(0, 1.02)
    _add_legend(axes[2])
    return _encode_png(figure)


def _compute_upper_limit(values: NDArray[np.floating], region: Region) -> float:
    """The 99th percentile over the region, above 0."""
    return max(float(np.percentile(values[region], 99)), 1e-12)


def plot_illumination(reconstruction: Reconstruction) -> bytes:
    """Coverage with the scan positions, beside the strongest probe mode (hue: phase, brightness: amplitude)."""
    figure, (left, right) = _make_figure(1, 2, (9.4, 4.2))
    coverage = reconstruction.coverage
    top, bottom = reconstruction.origin_yx[0], reconstruction.origin_yx[0] + coverage.shape[0]
    start, end = reconstruction.origin_yx[1], reconstruction.origin_yx[1] + coverage.shape[1]
    mappable = left.imshow(coverage, cmap="viridis", extent=(start - 0.5, end - 0.5, bottom - 0.5, top - 0.5))
    left.plot(reconstruction.positions[:, 1], reconstruction.positions[:, 0], ".", color="white", ms=1.5, alpha=0.5)
    region = compute_covered_region(reconstruction)
    if not region.all():
        grid = np.arange(start, end), np.arange(top, bottom)
        left.contour(*grid, region.astype(float), [0.5], colors="white", linewidths=0.8)
    left.set_title("coverage (photons a pixel), covered region outlined")
    _add_colorbar(left, mappable)
    powers = np.sum(np.abs(reconstruction.probe) ** 2, axis=(1, 2))
    mode = int(powers.argmax())
    share = float(powers[mode] / powers.sum()) if powers.sum() > 0 else 0.0
    right.imshow(convert_complex_to_rgb(reconstruction.probe[mode]))
    right.set_title(f"probe mode {mode + 1} of {len(powers)} ({share:.0%} of the power)")
    return _encode_png(figure)


def convert_complex_to_rgb(field: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    """RGB (rows, columns, 3) of a complex field: hue is phase, brightness is amplitude."""
    from matplotlib.colors import hsv_to_rgb

    amplitude = np.abs(field)
    hue = (np.angle(field) / (2 * np.pi)) % 1
    brightness = amplitude / amplitude.max() if amplitude.max() > 0 else amplitude
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), np.clip(brightness, 0, 1)], -1)))


def plot_patterns(measured: NDArray[np.floating], predicted: NDArray[np.floating], titles: Sequence[str]) -> bytes:
    """Measured above predicted patterns (k, N, N) in photons, zero frequency in the middle, on one log scale.

    A pixel that is masked is NaN in ``measured`` and transparent.
    """
    from matplotlib.colors import LogNorm

    figure, axes = _make_figure(2, len(titles), (3.4 * len(titles) + 1.0, 6.6))
    axes = np.reshape(axes, (2, len(titles)))
    highest = max(float(np.nanmax(measured)), 2.0)
    norm = LogNorm(0.5, highest)
    for row, (name, patterns) in enumerate((("measured", measured), ("predicted", predicted))):
        for column, (title, pattern) in enumerate(zip(titles, patterns, strict=True)):
            axis = axes[row][column]
            floored = np.where(np.isnan(pattern), np.nan, np.maximum(pattern, 0.5))
            mappable = axis.imshow(floored, cmap="magma", norm=norm)
            axis.set_title(title if row == 0 else "")
            axis.set_ylabel(f"{name} (photons)" if column == 0 else "")
            axis.set_xticks([])
            axis.set_yticks([])
    _add_colorbar(axes.ravel().tolist(), mappable)
    return _encode_png(figure)


def plot_history(history: Mapping[str, Sequence[float]]) -> bytes | None:
    """Every loss and R of a history against ``"epoch"`` (or 1, 2, …); None where it holds no finite one.

    Beside R stands what counting noise alone would leave, and below it the deviance of held-out pixels, where the
    history has them. The stages of a chain are set apart.
    """
    curves = _select_finite_curves({name: values for name, values in history.items() if "loss" in name or name == "r"})
    if not curves:
        return None
    held_out = _select_finite_curves({name: history[name] for name in ("held_out_deviance",) if name in history})
    figure, axes = _make_chart(2 if held_out else 1)
    upper, *lower = np.atleast_1d(axes)
    _draw_curves(upper, history, curves)
    _draw_noise_floor(upper, history, "r_floor")
    if all(np.nanmin(values) > 0 for values in curves.values()):
        upper.set_yscale("log")
    upper.set_ylabel("R" if set(curves) == {"r"} else "loss")
    for axis in lower:
        _draw_curves(axis, history, held_out)
        _draw_noise_floor(axis, history, "held_out_floor")
        axis.set_ylabel("deviance a pixel")
        _set_log_scale(axis)
    for axis in (upper, *lower):
        _add_legend(axis)
    (upper, *lower)[-1].set_xlabel("epoch")
    return _encode_png(figure)


def _set_log_scale(axis: Any) -> None:
    """A log axis of y with numbers written out, where all is positive and spreads by more than a factor of four."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.dataLim.intervaly
    if low > 0 and high > 4 * low:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def _select_finite_curves(curves: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.float64]]:
    arrays = {name: np.asarray(values, float) for name, values in curves.items()}
    return {name: values for name, values in arrays.items() if np.isfinite(values).any()}


def _get_epochs(history: Mapping[str, Sequence[float]], count: int) -> NDArray[np.float64]:
    epochs = history.get("epoch", [])
    return np.asarray(epochs if len(epochs) == count else np.arange(1, count + 1), float)


def _draw_curves(axis: Any, history: Mapping[str, Sequence[float]], curves: Mapping[str, NDArray[np.float64]]) -> None:
    """Curves against the epoch, with the stages of a chain set apart and numbered."""
    for name, values in curves.items():
        marker = "o" if len(values) < _MAX_MARKED_POINTS else None
        label = "R" if name == "r" else name.replace("_", " ")
        axis.plot(_get_epochs(history, len(values)), values, label=label, lw=1.8, marker=marker, ms=4)
    stages = np.asarray(history.get("stage", []))
    for change in np.flatnonzero(np.diff(stages)):
        axis.axvline(change + 1.5, color=_INK_COLOR, lw=1, ls=":")
    for stage in np.unique(stages) if len(np.unique(stages)) > 1 else ():
        middle = np.flatnonzero(stages == stage).mean() + 1
        place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axis.text(middle, 1.01, f"stage {stage:g}", color=_INK_COLOR, fontsize=8, **place)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_noise_floor(axis: Any, history: Mapping[str, Sequence[float]], name: str) -> None:
    """What counting noise alone would leave, a level at each epoch."""
    if name in history:
        floor = np.asarray(history[name], float)
        epochs = _get_epochs(history, len(floor))
        # A level as wide as an epoch, so that a single one is seen too.
        edges, levels = np.stack([epochs - 0.5, epochs + 0.5], 1).ravel(), np.repeat(floor, 2)
        axis.plot(edges, levels, color=_INK_COLOR, lw=1.3, ls="--", label="counting noise alone")


def plot_frc(frc: RingCorrelation, level: float | None = None) -> bytes:
    """The ring correlation, the ½-bit threshold and where they cross; and a fixed ``level`` to compare."""
    figure, axis = _make_chart()
    axis.plot(frc.frequency, frc.correlation, lw=1.8, label="correlation")
    axis.plot(frc.frequency, frc.threshold, lw=1.4, ls="--", label="½-bit threshold")
    if level is not None:
        axis.axhline(level, color=_INK_COLOR, lw=1, ls="-.", label=f"fixed level {level:g}")
    if frc.crossing:
        axis.axvline(frc.crossing, color=_INK_COLOR, lw=1, ls=":")
    axis.set_xlim(0, 0.5)
    axis.set_ylim(min(-0.1, float(frc.correlation.min())), 1.05)
    axis.set_xlabel("spatial frequency (cycles / pixel)")
    axis.set_ylabel("Fourier ring correlation")
    _add_legend(axis)
    return _encode_png(figure)


def _make_chart(rows: int = 1) -> tuple[Any, Any]:
    """A figure of one chart of half the report's width, or of some below each other, with room for a log axis."""
    return _make_figure(rows, 1, (5.6, 3.6 if rows == 1 else 2.8 * rows), left=0.85)


def _make_figure(rows: int, columns: int, size: tuple[float, float], left: float = 0.6) -> tuple[Any, Any]:
    """A figure without pyplot, and its axes as ``Figure.subplots`` gives them, in the report's ink.

    ``size`` (width, height) and ``left`` (margin) are in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, facecolor="none")
    FigureCanvasAgg(figure)
    # Fixed margins: the layout engines of matplotlib take longer than the drawing itself.
    width, height = size
    right, top, bottom = 1 - 0.45 / width, 1 - 0.4 / height, 0.5 / height
    spacing = {"left": left / width, "right": right, "top": top, "bottom": bottom, "wspace": 0.26, "hspace": 0.26}
    axes = figure.subplots(rows, columns, gridspec_kw=spacing)
    for axis in np.ravel(axes):
        axis.set_facecolor("none")
        axis.tick_params(which="both", colors=_INK_COLOR, labelsize=8)
        for part in (axis.title, axis.xaxis.label, axis.yaxis.label):
            part.set_color(_INK_COLOR)
            part.set_fontsize(10)
        for spine in axis.spines.values():
            spine.set_edgecolor(_INK_COLOR)
    return figure, axes


def _draw_image(axis: Any, values: NDArray[np.floating], title: str, view: CroppedObject, **how: Any) -> None:
    """Show ``values`` on the view's region, with axes in object pixels and a colour bar."""
    (top, left), (height, width) = view.origin_yx, values.shape
    extent = (left - 0.5, left + width - 0.5, top + height - 0.5, top - 0.5)
    axis.set_facecolor(_OUTSIDE_COLOR)
    mappable = axis.imshow(np.ma.masked_array(values, ~view.region), extent=extent, interpolation="nearest", **how)
    axis.set_title(title)
    _add_colorbar(axis, mappable)


def _add_colorbar(axes: Any, mappable: Any) -> None:
    bar = mappable.figure.colorbar(mappable, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(which="both", colors=_INK_COLOR, labelsize=8)
    bar.outline.set_edgecolor(_INK_COLOR)


def _add_legend(axis: Any) -> None:
    axis.legend(frameon=False, labelcolor=_INK_COLOR, fontsize=9)
    axis.grid(color=_INK_COLOR, alpha=0.2)


def _encode_png(figure: Any) -> bytes:
    """The figure as PNG, without the maker's version or a date, so that the same values give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _encode_plain_png(values: NDArray[np.floating], region: Region, low: float, high: float, cmap: str) -> bytes:
    """An image without axes, colours from ``low`` to ``high``, enlarged by a whole factor."""
    from matplotlib import colormaps
    from PIL import Image

    colors: Callable[..., Any] = colormaps[cmap]
    pixels = colors(np.clip((values - low) / (high - low), 0, 1), bytes=True)
    pixels[~region, 3] = 0
    factor = max(1, round(_PLAIN_IMAGE_SIDE_PX / max(values.shape)))
    buffer = io.BytesIO()
    Image.fromarray(np.kron(pixels, np.ones((factor, factor, 1), np.uint8))).save(buffer, format="PNG")
    return buffer.getvalue()
