"""The report: one self-contained HTML file with the pictures, the figures of merit and where it all came from."""

import base64
import html
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any, NamedTuple


class ReportImage(NamedTuple):
    """A picture of the report."""

    title: str
    png: bytes
    caption: str
    wide: bool = True
    """Over the whole width, or half of it."""


class MetricInfo(NamedTuple):
    """How a metric is told to a person."""

    label: str
    unit: str
    meaning: str


METRICS: dict[str, MetricInfo] = {
    "r": MetricInfo("R", "", "Σ(|F| − √I)² / ΣI of the stitched object, cut again at every position; 0 is perfect"),
    "r_floor": MetricInfo("R, noise floor", "", "R if the model were the truth: Poisson counting noise alone"),
    "amplitude_loss": MetricInfo(
        "amplitude loss", "", "mean of 2(|F| − √I)² a pixel; about ½ at high dose is noise alone"
    ),
    "held_out_deviance": MetricInfo(
        "held-out deviance",
        "",
        "mean over the detector pixels that no engine saw of −log Poisson(counts | model), less its least value",
    ),
    "held_out_deviance_floor": MetricInfo("held-out deviance, noise floor", "", "the same if the model were the truth"),
    "held_out_pixels": MetricInfo("held-out pixels", "", "how many pixels these are"),
    "validation_r": MetricInfo("R, held out", "", "R over the patterns held out of training"),
    "validation_r_floor": MetricInfo("R, held out, noise floor", "", "its noise floor"),
    "validation_loss": MetricInfo(
        "amplitude loss, held out", "", "amplitude loss over the patterns held out of training"
    ),
    "validation_patterns": MetricInfo("patterns held out", "", "how many patterns these are"),
    "nrmse": MetricInfo("NRMSE", "", "‖c·reconstruction − truth‖ / ‖truth‖ of the complex fields, best complex c"),
    "nrmse_scanned_box": MetricInfo("NRMSE, scanned box", "", "the same over the box of the scan positions"),
    "amplitude_psnr_db": MetricInfo("amplitude PSNR", "dB", "peak: the range of the true amplitude; higher is better"),
    "amplitude_ssim": MetricInfo("amplitude SSIM", "", "structural similarity; 1 is perfect"),
    "phase_mae_rad": MetricInfo("phase error", "rad", "mean absolute phase difference, wrapped"),
    "phase_ssim": MetricInfo("phase SSIM", "", "structural similarity of the unwrapped phases; 1 is perfect"),
    "frc_crossing_cycles_per_pixel": MetricInfo(
        "FRC crossing",
        "cycles/pixel",
        "where the complex Fourier ring correlation with the truth first falls below the ½-bit threshold; "
        "0: never above it; none: never below it",
    ),
    "frc_resolution_pixels": MetricInfo(
        "resolution", "pixels", "half a period at that crossing; 1 is the best on a grid"
    ),
    "half_scan_resolution_pixels": MetricInfo(
        "resolution, half scans",
        "pixels",
        "half a period where two reconstructions from halves of the positions cease to agree; none: they never do",
    ),
    "half_scan_resolution_nm": MetricInfo("resolution, half scans", "nm", "the same in nanometres"),
    "half_scan_crossing_cycles_per_pixel": MetricInfo(
        "half-scan FRC crossing",
        "cycles/pixel",
        "where the ring correlation of these two first falls below the ½-bit threshold; 0: never above it",
    ),
    "half_scan_fixed_crossing_cycles_per_pixel": MetricInfo(
        "half-scan FRC crossing, fixed", "cycles/pixel", "where it first falls below the fixed level of 0.5"
    ),
    "half_scan_removed_shift_pixels": MetricInfo(
        "half-scan shift", "pixels", "shift (y, x) of one half onto the other"
    ),
    "uncertainty_median": MetricInfo("uncertainty", "", "median standard deviation stated, in the object's unit"),
    "uncertainty_shares": MetricInfo(
        "within k σ", "", "share of the pixels whose error is at most ½, 1, 1½, 2, 3 times the stated uncertainty"
    ),
    "uncertainty_expected_shares": MetricInfo("within k σ, expected", "", "the same for complex Gaussian errors"),
    "uncertainty_rank_correlation": MetricInfo("uncertainty's rank", "", "Spearman's correlation of it with the error"),
    "patterns": MetricInfo("patterns", "", "patterns judged"),
    "patterns_skipped": MetricInfo("patterns skipped", "", "patterns whose window reaches outside the canvas"),
    "photons_per_pattern": MetricInfo("photons a pattern", "", "mean of the measured patterns, over unmasked pixels"),
    "coverage_share": MetricInfo(
        "covered share", "", "share of the canvas lit by a tenth or more of the highest coverage"
    ),
    "covered_pixels": MetricInfo("covered pixels", "", "the same as a number of pixels: the covered region"),
    "compared_pixels": MetricInfo("compared pixels", "", "pixels of the covered region that the truth has too"),
    "removed_scale": MetricInfo("scale removed", "", "modulus of the complex factor c"),
    "removed_phase_rad": MetricInfo("phase removed", "rad", "phase of the complex factor c"),
    "removed_ramp_rad_per_pixel": MetricInfo("ramp removed", "rad/pixel", "phase ramp (y, x) divided out, if asked"),
    "removed_shift_pixels": MetricInfo(
        "shift removed", "pixels", "shift (y, x) applied to the reconstruction, if asked"
    ),
}
"""What each entry of ``metrics.json`` means, in the order of the table."""

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
    "patterns",
    "photons_per_pattern",
)

_PAGE_TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ground: #fbfbfc; --card: #ffffff; --ink: #1d2127; --soft: #626a75; --line: #e1e4e9;
        --accent: #3a5fb4; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14161a; --card: #1b1e24; --ink: #e6e8eb; --soft: #98a0ab; --line: #2d323a; --accent: #8fb0ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 2.2rem 1.2rem 3rem; background: var(--ground); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.02rem; margin: 0 0 .4rem; }
p, figcaption { color: var(--soft); margin: .25rem 0 0; }
figcaption { font-size: .88rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: .7rem; margin: 1.3rem 0; }
.tile, figure, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; color: var(--accent); }
.tile span { font-size: .8rem; color: var(--soft); }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .9rem; }
figure, section { margin: 0; padding: 1rem 1.1rem; }
figure.wide { grid-column: 1 / -1; }
section { margin-top: .9rem; overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
td, th { text-align: left; padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.meaning { color: var(--soft); }
pre, td code { font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
               overflow-wrap: anywhere; margin: 0; }
@media (min-width: 701px) { td.label { white-space: nowrap; } }
@media (max-width: 700px) { .pictures { grid-template-columns: minmax(0, 1fr); } }
</style>
</head>
<body>
<header><h1>$title</h1><p>$subtitle</p></header>
<div class="tiles">$tiles</div>
<div class="pictures">$pictures</div>
<section><h2>Metrics</h2><table>$metrics</table></section>
<section><h2>Command</h2><pre>$command</pre></section>
<section><h2>Origin</h2><table>$origin</table></section>
</body>
</html>
""")


def render_report(
    *,
    title: str,
    subtitle: str,
    pictures: Sequence[ReportImage],
    metrics: Mapping[str, Any],
    command: str,
    origin: Mapping[str, Any],
) -> str:
    """The report as HTML text: the same input gives the same bytes, and nothing in it points outside the file.

    Args:
        title: heading of the page.
        subtitle: a line below it.
        pictures: in order.
        metrics: as in ``metrics.json``; entries are explained by :data:`METRICS`.
        command: the exact command that made the result.
        origin: what is known of the result, by name.
    """
    return _PAGE_TEMPLATE.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        tiles="".join(_render_tile(name, metrics[name]) for name in _HEADLINE_METRICS if metrics.get(name) is not None),
        pictures="\n".join(map(_render_image, pictures)),
        metrics="\n".join(_render_metric(name, metrics[name]) for name in METRICS if name in metrics),
        command=html.escape(command),
        origin="\n".join(
            f"<tr><td>{html.escape(name)}</td><td><code>{html.escape(_abbreviate(value))}</code></td></tr>"
            for name, value in origin.items()
        ),
    )


def format_value(value: Any) -> str:
    """A metric as text: four significant digits, thousands apart, ``none`` for null."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value))
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _abbreviate(value: Any) -> str:
    """A value of the origin table; long lists are counted rather than printed."""
    if isinstance(value, list | tuple) and len(value) > 20:
        return f"{len(value)} values, {value[0]} … {value[-1]}"
    return str(value)


def _render_tile(name: str, value: Any) -> str:
    figure = METRICS[name]
    label = html.escape(f"{figure.label} ({figure.unit})" if figure.unit else figure.label)
    return f'<div class="tile"><b>{html.escape(format_value(value))}</b><span>{label}</span></div>'


def _render_metric(name: str, value: Any) -> str:
    figure = METRICS[name]
    number = html.escape(f"{format_value(value)} {figure.unit if value is not None else ''}".strip())
    return (
        f'<tr><td class="label">{html.escape(figure.label)}</td><td class="number">{number}</td>'
        f'<td class="meaning">{html.escape(figure.meaning)}</td></tr>'
    )


def _render_image(picture: ReportImage) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    kind = ' class="wide"' if picture.wide else ""
    return (
        f'<figure{kind}><h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
