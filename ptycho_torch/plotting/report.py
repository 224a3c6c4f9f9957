"""The report: one self-contained HTML file with images, metrics and provenance of a result."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from ptycho_torch.evaluation.metric_table import METRICS, format_value


class ReportImage(NamedTuple):
    """An image of the report."""

    title: str
    png: bytes
    caption: str
    wide: bool = True
    """Over the whole width, or over half of it."""


_HEADLINE_METRICS = (
    "r",
    "r_floor",
    "held_out_deviance",
    "held_out_deviance_floor",
    "half_scan_resolution_pixels",
    "half_scan_resolution_nm",
    "nrmse",
    "phase_ssim",
    "frc_resolution_pixels",
    "frc_resolution_nm",
    "object_pixel_nm",
    "patterns",
    "photons_per_pattern",
)


def render_report(
    *,
    title: str,
    subtitle: str,
    images: Sequence[ReportImage],
    metrics: Mapping[str, Any],
    command: str,
    origin: Mapping[str, Any],
) -> str:
    """Return the report as HTML text. Equal inputs give equal bytes, and the page loads nothing from elsewhere.

    Args:
        title: heading of the page.
        subtitle: a line below it.
        images: in order.
        metrics: as in ``metrics.json``; :data:`~ptycho_torch.evaluation.metric_table.METRICS` defines them.
        command: the exact command that made the result.
        origin: provenance of the result, by name.
    """
    headlines = [name for name in _HEADLINE_METRICS if metrics.get(name) is not None]
    return Template(_read_template("report.html")).substitute(
        style=_read_template("report.css"),
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        tiles="".join(_render_tile(name, metrics[name]) for name in headlines),
        verdict=_render_verdict(metrics),
        images="\n".join(map(_render_image, images)),
        metrics="\n".join(_render_metric(name, metrics[name]) for name in METRICS if name in metrics),
        command=html.escape(command),
        origin="\n".join(
            f"<tr><td>{html.escape(name)}</td><td><code>{html.escape(_abbreviate(value))}</code></td></tr>"
            for name, value in origin.items()
        ),
    )


@cache
def _read_template(name: str) -> str:
    return (files("ptycho_torch.plotting") / "templates" / name).read_text(encoding="utf-8")


def _abbreviate(value: Any) -> str:
    """Return a value of the provenance table as text, with the length of a long list in place of its items."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_abbreviate(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple) and len(value) > 20:
        return f"{len(value)} values, {value[0]} … {value[-1]}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_abbreviate, value))
    return str(value)


def _render_tile(name: str, value: Any) -> str:
    info = METRICS[name]
    label = html.escape(f"{info.label} ({info.unit})" if info.unit else info.label)
    return f'<div class="tile"><b>{html.escape(format_value(value))}</b><span>{label}</span></div>'


def _render_verdict(metrics: Mapping[str, Any]) -> str:
    """Return the section of the verdict; empty without a verdict."""
    if "verdict_text" not in metrics:
        return ""
    causes = "".join(f"<li>{_remove_backticks(cause)}</li>" for cause in metrics["likely_causes"])
    heading = f"<p>Likely causes, the most likely first:</p><ol>{causes}</ol>" if causes else ""
    kind = metrics["verdict"].replace(" ", "-")
    return (
        f'<section class="verdict {kind}"><h2>Verdict: {html.escape(metrics["verdict"])}</h2>'
        f"<p>{_remove_backticks(metrics['verdict_text'])}</p>{heading}</section>"
    )


def _remove_backticks(text: str) -> str:
    """Return a message as HTML with the settings in backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _render_metric(name: str, value: Any) -> str:
    info = METRICS[name]
    number = html.escape(f"{format_value(value)} {info.unit if value is not None else ''}".strip())
    return (
        f'<tr><td class="label">{html.escape(info.label)}</td><td class="number">{number}</td>'
        f'<td class="meaning">{html.escape(info.meaning)}</td></tr>'
    )


def _render_image(image: ReportImage) -> str:
    data = base64.b64encode(image.png).decode("ascii")
    title, caption = html.escape(image.title), html.escape(image.caption)
    kind = ' class="wide"' if image.wide else ""
    return (
        f'<figure{kind}><h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
