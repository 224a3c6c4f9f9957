"""Creation of matplotlib figures, and their encoding as PNG.

Figures are made by matplotlib's object interface, without pyplot and its global state. They have dark text on white;
the report encodes them with gray text on a transparent ground, which is readable on white and on black.
"""

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.annotations import Figure
from ptycho_torch.core.errors import ConfigError

INK_COLOR = "#80868f"  # contrast of at least 3.5 on white and on near-black
SCALE_BAR_GID = "scale bar"  # mark of the text of a scale bar, which has a ground of its own
REPORT_DPI = 80
NOTEBOOK_DPI = 100


def prepare_axes(
    axes: Any, rows: int, columns: int, size: tuple[float, float], left: float = 0.6
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure and its axes (rows, columns): new ones, or those that a caller gave.

    Args:
        axes: axes of matplotlib, alone or in a sequence or array of rows · columns; None: a new figure.
        rows: rows of panels.
        columns: columns of panels.
        size: width and height of a new figure in inches.
        left: left margin of a new figure in inches.

    Raises:
        ConfigError: another number of axes is given.
    """
    if axes is None:
        return _make_figure(rows, columns, size, left)
    given = np.ravel(np.asarray(axes, object))
    if len(given) != rows * columns:
        raise ConfigError(f"`axes` has {len(given)} axes; expected {rows * columns}, one per panel")
    return given[0].get_figure(), given.reshape(rows, columns)


def _make_figure(rows: int, columns: int, size: tuple[float, float], left: float) -> tuple[Figure, NDArray[Any]]:
    figure = _get_figure_class()(figsize=size, dpi=NOTEBOOK_DPI)
    # Fixed margins: the layout engines of matplotlib take longer than the drawing itself.
    width, height = size
    right, top, bottom = 1 - 0.45 / width, 1 - 0.4 / height, 0.5 / height
    spacing = {"left": left / width, "right": right, "top": top, "bottom": bottom, "wspace": 0.26, "hspace": 0.26}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=spacing)
    for axis in axes.flat:
        axis.set_facecolor("none")
        axis.tick_params(which="both", labelsize=8)
        for part in (axis.title, axis.xaxis.label, axis.yaxis.label):
            part.set_fontsize(10)
    return figure, axes


@cache
def _get_figure_class() -> Any:
    """Return a Figure class that a notebook displays although pyplot does not manage it (import: 1.5 s)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            FigureCanvasAgg(self)

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", facecolor="white")
            return buffer.getvalue()

    return NotebookFigure


def add_colorbar(axes: Any, mappable: Any) -> None:
    """Add the color bar of ``mappable`` at the right of ``axes``."""
    bar = mappable.figure.colorbar(mappable, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(which="both", labelsize=8)


def add_legend(axis: Any) -> None:
    """Add a legend without a frame, and a faint grid."""
    axis.legend(frameon=False, fontsize=9)
    axis.grid(color=INK_COLOR, alpha=0.2)


def encode_figure(figure: Figure) -> bytes:
    """Return a figure as PNG in the look of the report; the figure itself takes that look.

    The file has neither the version of the program nor a date, and equal values give equal bytes.
    """
    for axis in figure.axes:
        axis.tick_params(which="both", colors=INK_COLOR)
        legend = axis.get_legend()
        labels = [text for text in axis.texts if text.get_gid() != SCALE_BAR_GID]
        texts = [axis.title, axis.xaxis.label, axis.yaxis.label, *labels, *(legend.get_texts() if legend else ())]
        for text in texts:
            text.set_color(INK_COLOR)
        for spine in axis.spines.values():
            spine.set_edgecolor(INK_COLOR)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=REPORT_DPI, facecolor="none", metadata={"Software": None})
    return buffer.getvalue()


def encode_pixels(
    values: NDArray[np.floating], visible: NDArray[np.bool_], limits: tuple[float, float], colormap: str, side: int
) -> bytes:
    """Return an image without axes as PNG: one value is one square of whole screen pixels.

    Args:
        values: (rows, columns).
        visible: (rows, columns), False where the image is transparent.
        limits: the values at the ends of the color map.
        colormap: name of a matplotlib color map.
        side: approximate length of the longer side, in screen pixels.
    """
    from matplotlib import colormaps
    from PIL import Image

    low, high = limits
    colors: Callable[..., Any] = colormaps[colormap]
    pixels = colors(np.clip((values - low) / (high - low), 0, 1), bytes=True)
    pixels[~visible, 3] = 0
    factor = max(1, round(side / max(values.shape)))
    buffer = io.BytesIO()
    Image.fromarray(np.kron(pixels, np.ones((factor, factor, 1), np.uint8))).save(buffer, format="PNG")
    return buffer.getvalue()
