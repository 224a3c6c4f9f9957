"""Curves: the history of a run, and the Fourier ring correlation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.annotations import Figure
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.frc import RingCorrelation
from ptycho_torch.plotting.canvas import INK_COLOR, add_legend, prepare_axes

History = Mapping[str, Sequence[float]]

_CURVE_LABELS = {"r": "R", "val_loss": "validation loss (held-out region)"}

_MAX_MARKED_POINTS = 20  # a shorter curve gets a dot per point: a single point has no line


def plot_history(history: Reconstruction | History, axes: Any = None) -> Figure:
    """Draw every loss and R of a history against the epoch.

    R comes with the level of counting noise alone, and the deviance of held-out pixels is drawn below it, where the
    history has them. Stages of a pipeline are separated by lines.

    Args:
        history: a reconstruction, or values per epoch by name. ``"epoch"`` numbers them; without it they are 1, 2, ….
        axes: one matplotlib axes, or two if the history has a held-out deviance; None: a new figure.

    Raises:
        DataError: the history has no finite loss or R.
    """
    history = history.history if isinstance(history, Reconstruction) else history
    curves = select_curves(history)
    if not curves:
        raise DataError("the history has no finite loss or R; expected at least one epoch of them")
    held_out = _select_finite({name: history[name] for name in ("held_out_deviance",) if name in history})
    rows = 2 if held_out else 1
    figure, panels = _prepare_chart(axes, rows)
    upper, *lower = panels
    _draw_curves(upper, history, curves)
    _draw_noise_floor(upper, history, "r_floor")
    if all(np.nanmin(values) > 0 for values in curves.values()):
        upper.set_yscale("log")
    upper.set_ylabel("R" if set(curves) == {"r"} else "loss")
    for axis in lower:
        _draw_curves(axis, history, held_out)
        _draw_noise_floor(axis, history, "held_out_floor")
        axis.set_ylabel("deviance per pixel")
        _set_log_scale(axis)
    for axis in panels:
        add_legend(axis)
    panels[-1].set_xlabel("epoch")
    return figure


def select_curves(history: History) -> dict[str, NDArray[np.float64]]:
    """Return the losses and R of a history that have a finite value."""
    return _select_finite({name: values for name, values in history.items() if "loss" in name or name == "r"})


def plot_frc(frc: RingCorrelation, level: float | None = None, axes: Any = None) -> Figure:
    """Draw the ring correlation, the ½-bit threshold and their crossing.

    Args:
        frc: the correlation.
        level: a fixed level, which is drawn for comparison.
        axes: matplotlib axes to draw on; None: a new figure.
    """
    figure, (axis,) = _prepare_chart(axes)
    axis.plot(frc.frequency, frc.correlation, lw=1.8, label="correlation")
    axis.plot(frc.frequency, frc.threshold, lw=1.4, ls="--", label="½-bit threshold")
    if level is not None:
        axis.axhline(level, color=INK_COLOR, lw=1, ls="-.", label=f"fixed level {level:g}")
    if frc.crossing:
        axis.axvline(frc.crossing, color=INK_COLOR, lw=1, ls=":")
    axis.set_xlim(0, 0.5)
    axis.set_ylim(min(-0.1, float(frc.correlation.min())), 1.05)
    axis.set_xlabel("spatial frequency (cycles / pixel)")
    axis.set_ylabel("Fourier ring correlation")
    add_legend(axis)
    return figure


def _prepare_chart(axes: Any, rows: int = 1) -> tuple[Figure, NDArray[Any]]:
    """Return a figure of half the report's width and its panels, one below the other, with room for a log axis."""
    figure, panels = prepare_axes(axes, rows, 1, (5.6, 3.6 if rows == 1 else 2.8 * rows), left=0.85)
    return figure, panels[:, 0]


def _set_log_scale(axis: Any) -> None:
    """Use a log scale of y with plain numbers where all values are positive and span more than a factor of four."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.dataLim.intervaly
    if low > 0 and high > 4 * low:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def _select_finite(curves: History) -> dict[str, NDArray[np.float64]]:
    arrays = {name: np.asarray(values, float) for name, values in curves.items()}
    return {name: values for name, values in arrays.items() if np.isfinite(values).any()}


def _get_epochs(history: History, count: int) -> NDArray[np.float64]:
    epochs = history.get("epoch", [])
    return np.asarray(epochs if len(epochs) == count else np.arange(1, count + 1), float)


def _draw_curves(axis: Any, history: History, curves: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw curves against the epoch, and separate and number the stages of a pipeline."""
    for name, values in curves.items():
        marker = "o" if len(values) < _MAX_MARKED_POINTS else None
        label = _CURVE_LABELS.get(name, name.replace("_", " "))
        axis.plot(_get_epochs(history, len(values)), values, label=label, lw=1.8, marker=marker, ms=4)
    stages = np.asarray(history.get("stage", []))
    for change in np.flatnonzero(np.diff(stages)):
        axis.axvline(change + 1.5, color=INK_COLOR, lw=1, ls=":")
    for stage in np.unique(stages) if len(np.unique(stages)) > 1 else ():
        middle = np.flatnonzero(stages == stage).mean() + 1
        place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axis.text(middle, 1.01, f"stage {stage:g}", fontsize=8, **place)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_noise_floor(axis: Any, history: History, name: str) -> None:
    """Draw the level of counting noise alone at each epoch."""
    if name in history:
        floor = np.asarray(history[name], float)
        epochs = _get_epochs(history, len(floor))
        # Each level is one epoch wide, so that a single level is visible too.
        edges, levels = np.stack([epochs - 0.5, epochs + 0.5], 1).ravel(), np.repeat(floor, 2)
        axis.plot(edges, levels, color=INK_COLOR, lw=1.3, ls="--", label="counting noise alone")
