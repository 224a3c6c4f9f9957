"""The report: one self-contained file, checked as text and in a browser."""

import base64
import html
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.geometry import Geometry
from ptycho_torch.evaluation.half_split import correlate_half_scans
from ptycho_torch.evaluation.metric_table import METRICS, format_value
from ptycho_torch.evaluation.scores import UNTABULATED_METRICS, collect_metrics, evaluate_result
from ptycho_torch.plotting.report import ReportImage, render_report
from ptycho_torch.plotting.report_images import make_half_scan_image
from ptycho_torch.plotting.result_folder import write_evaluation

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
COMMAND = "python -m ptycho_torch.evaluate 'a & b <c>.npz' --output_dir D"


@pytest.fixture(scope="module")
def report(simulated_case: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every kind of image."""
    folder = tmp_path_factory.mktemp("report")
    evaluation = evaluate_result(
        simulated_case.reconstruction, simulated_case.scan, photons_per_unit=2.5, truth=simulated_case.truth
    )
    write_evaluation(folder, simulated_case.reconstruction, evaluation, command=COMMAND)
    return folder / "report.html"


def test_the_report_loads_nothing_from_elsewhere(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert re.findall(r"https?://|//cdn|@import|url\(|<script|<link|<iframe", text) == []
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) >= 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_report_has_every_image_and_the_command(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    titles = re.findall(r"<figure[^>]*><h2>([^<]+)</h2>", text)
    assert titles == [
        "Object",
        "Against the truth",
        "Illumination",
        "Diffraction patterns",
        "Loss",
        "Fourier ring correlation",
    ]
    assert f"<pre>{html.escape(COMMAND)}</pre>" in text
    assert "<c>" not in text
    assert "the truth itself" in text
    for label in ("R, noise floor", "NRMSE, scanned box", "FRC crossing", "photons per pattern"):
        assert label in text


def test_text_is_escaped() -> None:
    nasty = '<script>alert("x")</script>'
    page = render_report(
        title=nasty,
        subtitle=nasty,
        images=[ReportImage(nasty, PIXEL, nasty)],
        metrics={"r": 0.5},
        command=nasty,
        origin={nasty: nasty},
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_every_metric_is_defined(simulated_case: Any) -> None:
    uncertainty = np.full(simulated_case.reconstruction.object.shape, 0.1, np.float32)
    geometry = Geometry(object_pixel_m=(1e-8, 2e-8))
    reconstruction = replace(
        simulated_case.reconstruction,
        uncertainty=uncertainty,
        geometry=geometry,
        metadata={"excluded_patterns": [3]},
    )
    evaluation = evaluate_result(
        reconstruction,
        simulated_case.scan,
        photons_per_unit=2.5,
        truth=simulated_case.truth,
        validation=simulated_case.scan.positions[:, 0].argsort()[:5],
    )
    metrics = collect_metrics(reconstruction, evaluation)
    assert metrics["object_pixel_nm"] == pytest.approx([10, 20])
    halves = correlate_half_scans(reconstruction, reconstruction)
    assert make_half_scan_image(halves).png.startswith(b"\x89PNG")
    metrics |= halves.to_metrics()
    held_out = {"held_out_deviance", "held_out_deviance_floor", "held_out_pixels"}
    assert (set(metrics) | held_out) - set(UNTABULATED_METRICS) == set(METRICS)
    assert all(info.label and info.meaning for info in METRICS.values())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (1087, "1,087"),
        (0.0013512, "0.001351"),
        (999975.7, "999,976"),
        (3.0, "3"),
        ([0.25, -1.0], "0.25, -1"),
        (1.5e-9, "1.5e-09"),
    ],
)
def test_numbers_have_four_digits_and_separated_thousands(value: Any, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium, chromium-browser or google-chrome")
def test_a_browser_draws_all_images(report: Path, tmp_path: Path) -> None:
    """A script in a copy of the page records the widths of the images and of the page."""
    probe = (
        "<script>addEventListener('load', () => { document.body.dataset.widths = "
        "[...document.images].map(image => image.naturalWidth).join(); "
        "document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth; })</script>"
    )
    text = report.read_text(encoding="utf-8")
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", probe + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,900", f"--user-data-dir={tmp_path}/b"]
    dom = subprocess.run(
        [str(BROWSER), *options, "--dump-dom", copy.as_uri()],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    widths = re.search(r'data-widths="([\d,]+)"', dom)
    assert widths is not None
    assert len(widths[1].split(",")) == text.count("<img ") == 6
    assert all(int(width) > 200 for width in widths[1].split(","))
    overflow = re.search(r'data-overflow="(-?\d+)"', dom)
    assert overflow is not None
    assert int(overflow[1]) <= 0
