"""Figures of scans and reconstructions: orientation, colors, edges, given axes; a flat object has figures too."""

import io
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.alignment import compute_covered_region
from ptycho_torch.evaluation.frc import compute_ring_correlation
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import compute_calibration
from ptycho_torch.plotting import curves, figures
from ptycho_torch.plotting.canvas import INK_COLOR, encode_figure

HISTORY = {"epoch": [1.0, 2.0, 3.0], "loss": [3.0, 2.0, 1.5], "val_loss": [3.5, 2.5, 2.1]}


def read_pixels(png: bytes) -> NDArray[np.uint8]:
    """Return the RGBA values of a PNG, (rows, columns, 4)."""
    image = Image.open(io.BytesIO(png))
    image.load()
    return np.asarray(image.convert("RGBA"))


def read_object_pixels(png: bytes, view: figures.CroppedObject) -> NDArray[np.int64]:
    """Return one RGBA color per object pixel of a plain image, in which each is a square of screen pixels."""
    pixels = read_pixels(png).astype(np.int64)
    factor = pixels.shape[0] // view.region.shape[0]
    assert pixels.shape[:2] == tuple(factor * n for n in view.region.shape)
    return pixels[factor // 2 :: factor, factor // 2 :: factor]


def make_all_figures(case: Any, rec: Reconstruction) -> dict[str, Any]:
    patterns = case.scan.amplitudes[:3] ** 2
    with_uncertainty = replace(rec, uncertainty=np.full(rec.object.shape, 0.1, np.float32))
    comparison = compare_with_truth(rec, case.truth)
    calibration = compute_calibration(with_uncertainty, comparison)
    assert calibration is not None
    correlation = compute_ring_correlation(case.truth[:64, :64], case.truth[1:65, :64])
    return {
        "scan": figures.plot_scan(case.scan),
        "object": figures.plot_object(rec),
        "probe": figures.plot_probe(rec),
        "illumination": figures.plot_illumination(rec),
        "truth": figures.plot_truth_comparison(comparison),
        "patterns": figures.plot_patterns(patterns, patterns, ["a", "b", "c"]),
        "history": curves.plot_history(rec.history),
        "uncertainty": figures.plot_uncertainty(with_uncertainty),
        "calibration": figures.plot_calibration(calibration, comparison.overlap_region),
        "frc": curves.plot_frc(correlation, 0.5),
    }


def test_every_figure_of_a_flat_object_is_encoded(simulated_case: Any) -> None:
    rec = simulated_case.reconstruction
    flat = replace(rec, object=np.ones_like(rec.object), coverage=np.ones_like(rec.coverage))
    pngs = {name: encode_figure(figure) for name, figure in make_all_figures(simulated_case, flat).items()}
    view = figures.crop_to_covered_region(flat)
    pngs |= {"plain amplitude": figures.render_amplitude(view), "plain phase": figures.render_phase(view)}
    for name, png in pngs.items():
        assert min(read_pixels(png).shape[:2]) > 100, name
        assert b"matplotlib" not in png, name


def test_figures_are_dark_on_white_in_a_notebook_and_gray_on_transparent_in_the_report(simulated_case: Any) -> None:
    for name, figure in make_all_figures(simulated_case, simulated_case.reconstruction).items():
        notebook = read_pixels(figure._repr_png_())
        assert (notebook[..., 3] == 255).all(), name
        assert (notebook[0, 0, :3] == 255).all(), name
        assert figure.axes[0].title.get_color() == "black", name
        report = read_pixels(encode_figure(figure))
        assert report[0, 0, 3] == 0, name
        assert figure.axes[0].title.get_color() == INK_COLOR, name


def test_the_encoding_is_reproducible(simulated_case: Any) -> None:
    first, second = (
        {name: encode_figure(figure) for name, figure in make_all_figures(simulated_case, each).items()}
        for each in [simulated_case.reconstruction] * 2
    )
    assert first == second


def test_figures_are_drawn_on_given_axes(simulated_case: Any) -> None:
    figure = Figure()
    axes = figure.subplots(2, 2)
    assert simulated_case.reconstruction.plot(axes[0]) is figure
    assert [axis.get_title() for axis in axes.flat] == ["amplitude", "phase (rad)", "", ""]
    assert simulated_case.reconstruction.plot_history(axes[1, 0]) is figure
    assert axes[1, 0].get_xlabel() == "epoch"
    assert simulated_case.reconstruction.plot_probe(axes[1, 1]) is figure
    assert axes[1, 1].get_title().startswith("probe mode 1")
    assert simulated_case.scan.plot(Figure().subplots(1, 3)) is not figure


def test_a_wrong_number_of_axes_is_rejected(simulated_case: Any) -> None:
    with pytest.raises(ConfigError, match="`axes` has 3 axes; expected 2"):
        simulated_case.reconstruction.plot(Figure().subplots(1, 3))


def test_no_figure_uses_pyplot(simulated_case: Any) -> None:
    make_all_figures(simulated_case, simulated_case.reconstruction)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_missing_uncertainty_is_reported(simulated_case: Any) -> None:
    with pytest.raises(DataError, match="no uncertainty"):
        simulated_case.reconstruction.plot_uncertainty()


@pytest.mark.parametrize("per_pattern", [False, True])
def test_a_mean_pattern_ignores_masked_values(simulated_case: Any, per_pattern: bool) -> None:
    scan = simulated_case.scan
    mask = np.ones(scan.amplitudes.shape if per_pattern else scan.amplitudes.shape[1:], bool)
    mask[..., 5, 6] = False
    mask[0, 0] = not per_pattern
    mean = figures._compute_mean_pattern(replace(scan, mask=mask, photons_per_unit=2.0))
    expected = 2 * np.mean(np.square(scan.amplitudes, dtype=np.float64), axis=0)
    assert np.argwhere(np.isnan(mean)).tolist() == [[5, 6]]
    np.testing.assert_allclose(mean[8:], expected[8:], rtol=1e-6)


def test_the_plain_amplitude_has_the_orientation_of_the_object(simulated_case: Any) -> None:
    view = figures.crop_to_covered_region(simulated_case.reconstruction)
    pixels, amplitude = read_object_pixels(figures.render_amplitude(view), view), np.abs(view.object)
    np.testing.assert_array_equal(pixels[..., 3] > 0, view.region)
    gray = pixels[..., 0][view.region]
    assert np.corrcoef(gray, amplitude[view.region])[0, 1] > 0.99
    assert np.ptp(gray) == 255
    top, left = np.array(view.origin_yx) - simulated_case.reconstruction.origin_yx
    same = simulated_case.reconstruction.object[top : top + amplitude.shape[0], left : left + amplitude.shape[1]]
    np.testing.assert_allclose(amplitude, np.abs(same), rtol=1e-6)


@pytest.mark.parametrize("strength", [0.02, 0.3, 1.0])
def test_a_weak_phase_is_not_flat(simulated_case: Any, strength: float) -> None:
    obj = simulated_case.reconstruction.object
    weak = np.abs(obj) * np.exp(1j * strength * np.angle(obj))
    view = figures.crop_to_covered_region(replace(simulated_case.reconstruction, object=weak.astype(np.complex64)))
    colors = read_object_pixels(figures.render_phase(view), view)[view.region]
    assert np.ptp(colors[:, :3], axis=0).max() > 100


@pytest.mark.parametrize("turn", [1.0, 3.0])
@pytest.mark.parametrize("factor", [1.0, 50.0])
def test_the_free_global_phase_and_scale_are_not_visible(simulated_case: Any, turn: float, factor: float) -> None:
    rec = simulated_case.reconstruction
    turned = replace(rec, object=(rec.object * factor * np.exp(1j * turn)).astype(np.complex64))
    for render in (figures.render_amplitude, figures.render_phase):
        first, second = (
            read_pixels(render(figures.crop_to_covered_region(each))).astype(int) for each in (rec, turned)
        )
        assert np.abs(first - second).max() <= 4  # a value between two colors of the map


def test_the_cropped_object_has_a_real_mean(simulated_case: Any) -> None:
    view = figures.crop_to_covered_region(simulated_case.reconstruction)
    mean = view.object[view.region].mean()
    assert abs(mean.imag) < 1e-12 < mean.real
    assert view.region.sum() == compute_covered_region(simulated_case.reconstruction).sum()
    for edge in (view.region[0], view.region[-1], view.region[:, 0], view.region[:, -1]):
        assert edge.any()


def test_phases_that_differ_by_two_pi_have_one_color() -> None:
    obj = np.exp(1j * np.linspace(-np.pi, np.pi, 100))[None, :] * np.ones((20, 1))
    view = figures.CroppedObject(obj, np.ones(obj.shape, bool), (0, 0))
    colors = read_object_pixels(figures.render_phase(view), view)[0, :, :3]
    assert np.abs(colors[0] - colors[-1]).max() < 12
    assert np.abs(colors[0] - colors[50]).max() > 100
    assert np.abs(colors[25] - colors[75]).max() > 50


def test_outliers_do_not_set_the_range() -> None:
    values = np.append(np.linspace(1, 2, 1000), [1e6, -1e6])
    low, high = figures.compute_robust_range(values)
    assert 0.9 < low < 1.1
    assert 1.9 < high < 2.1
    assert figures.compute_robust_range(np.full(5, 3.0)) == (2.5, 3.5)


def test_complex_colors_are_hue_and_brightness() -> None:
    red, dark, cyan, black = figures.convert_complex_to_rgb(np.array([[1, 0.5, -1, 0]], complex))[0]
    assert red.argmax() == 0
    np.testing.assert_allclose(dark, red / 2)
    assert cyan.argmin() == 0
    np.testing.assert_array_equal(black, 0)
    assert np.isfinite(figures.convert_complex_to_rgb(np.zeros((2, 2), complex))).all()


@pytest.mark.parametrize(
    "history",
    [
        HISTORY,
        {"epoch": [1.0], "loss": [3.0], "val_loss": [2.0]},
        {"epoch": [1.0, 2.0], "loss": [1.0, 2.0], "val_loss": [float("nan")] * 2},
        {"epoch": [1.0, 2.0], "loss": [-1.0, 0.0]},
        {"loss": list(map(float, range(50, 0, -1)))},
    ],
    ids=["usual", "one epoch", "no validation", "not positive", "no epochs"],
)
def test_a_history_is_drawn(history: dict[str, list[float]]) -> None:
    assert encode_figure(curves.plot_history(history)) != encode_figure(curves.plot_history({"loss": [1e30]}))


def encode_history(history: dict[str, list[float]]) -> bytes:
    return encode_figure(curves.plot_history(history))


def test_the_validation_loss_is_drawn() -> None:
    assert encode_history(HISTORY) != encode_history(HISTORY | {"val_loss": [4.0, 3.0, 2.0]})


def test_noise_floor_held_out_pixels_and_stages_are_drawn() -> None:
    plain = {"epoch": [1.0, 2.0, 3.0], "r": [0.3, 0.1, 0.05], "stage": [1.0, 1.0, 1.0]}
    further: list[dict[str, list[float]]] = [
        {"r_floor": [0.02] * 3},
        {"stage": [1.0, 1.0, 2.0]},
        {"held_out_deviance": [3.0, 1.0, 1.2]},
        {"held_out_deviance": [3.0, 1.0, 1.2], "held_out_floor": [0.4, 0.4, 0.4]},
        {"held_out_deviance": [3.0, float("nan"), 1.2]},
    ]
    pngs = [encode_history(plain | more) for more in [{}, *further]]
    assert len(set(pngs)) == len(pngs)
    assert encode_history(plain | {"held_out_deviance": [float("nan")] * 3}) == pngs[0]


@pytest.mark.parametrize("history", [{}, {"epoch": []}, {"loss": []}, {"loss": [float("nan")]}, {"epoch": [1.0]}])
def test_a_history_without_a_finite_curve_is_rejected(history: dict[str, list[float]]) -> None:
    with pytest.raises(DataError, match="no finite loss or R"):
        curves.plot_history(history)


def test_masked_detector_pixels_are_transparent(simulated_case: Any) -> None:
    patterns = simulated_case.scan.amplitudes[:1] ** 2 * 100
    masked = patterns.copy()
    masked[:, 3:20, 3:20] = np.nan
    whole = read_pixels(encode_figure(figures.plot_patterns(patterns, patterns, ["a"])))
    holed = read_pixels(encode_figure(figures.plot_patterns(masked, patterns, ["a"])))
    assert (holed[..., 3] == 0).sum() > 1.1 * (whole[..., 3] == 0).sum()
