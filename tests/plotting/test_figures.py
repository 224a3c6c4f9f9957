"""Pictures show what is there: orientation, colours, edges, and no figure fails on a flat object."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.alignment import compute_covered_region
from ptycho_torch.evaluation.frc import ring_correlation
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import compute_calibration
from ptycho_torch.plotting import figures

HISTORY = {"epoch": [1.0, 2.0, 3.0], "loss": [3.0, 2.0, 1.5], "val_loss": [3.5, 2.5, 2.1]}


def pixels(png: bytes) -> NDArray[np.uint8]:
    """(rows, columns, 4)."""
    image = Image.open(io.BytesIO(png))
    image.load()
    return np.asarray(image.convert("RGBA"))


def cells(png: bytes, view: figures.CroppedObject) -> NDArray[np.int64]:
    """One RGBA colour for each object pixel of a plain picture, whose cells are whole squares."""
    shown = pixels(png).astype(np.int64)
    factor = shown.shape[0] // view.region.shape[0]
    assert shown.shape[:2] == tuple(factor * n for n in view.region.shape)
    return shown[factor // 2 :: factor, factor // 2 :: factor]


def all_figures(known: Any, rec: Reconstruction) -> dict[str, bytes | None]:
    view = figures.crop_to_covered_region(rec)
    patterns = known.scan.amplitudes[:3] ** 2
    stated = replace(rec, uncertainty=np.full(rec.object.shape, 0.1, np.float32))
    comparison = compare_with_truth(rec, known.truth)
    calibration = compute_calibration(stated, comparison)
    assert calibration is not None
    return {
        "amplitude": figures.render_amplitude(view),
        "phase": figures.render_phase(view),
        "object": figures.plot_object(view),
        "illumination": figures.plot_illumination(rec),
        "truth": figures.plot_truth_comparison(compare_with_truth(rec, known.truth)),
        "patterns": figures.plot_patterns(patterns, patterns, ["a", "b", "c"]),
        "history": figures.plot_history(rec.history),
        "uncertainty": figures.plot_uncertainty(stated),
        "calibration": figures.plot_calibration(calibration, comparison.overlap_region),
        "frc": figures.plot_frc(ring_correlation(known.truth[:64, :64], known.truth[1:65, :64])),
    }


def test_every_figure_of_a_flat_object_lit_everywhere_is_a_picture(simulated_case: Any) -> None:
    rec = simulated_case.reconstruction
    flat = replace(rec, object=np.ones_like(rec.object), coverage=np.ones_like(rec.coverage))
    for name, png in all_figures(simulated_case, flat).items():
        assert png is not None, name
        assert min(pixels(png).shape[:2]) > 100, name
        assert b"matplotlib" not in png, name


def test_the_amplitude_is_drawn_where_it_is(simulated_case: Any) -> None:
    view = figures.crop_to_covered_region(simulated_case.reconstruction)
    shown, amplitude = cells(figures.render_amplitude(view), view), np.abs(view.object)
    np.testing.assert_array_equal(shown[..., 3] > 0, view.region)
    gray = shown[..., 0][view.region]
    assert np.corrcoef(gray, amplitude[view.region])[0, 1] > 0.99
    assert np.ptp(gray) == 255
    top, left = np.array(view.origin_yx) - simulated_case.reconstruction.origin_yx
    there = simulated_case.reconstruction.object[top : top + amplitude.shape[0], left : left + amplitude.shape[1]]
    np.testing.assert_allclose(amplitude, np.abs(there), rtol=1e-6)


@pytest.mark.parametrize("strength", [0.02, 0.3, 1.0])
def test_a_weak_phase_is_not_flat(simulated_case: Any, strength: float) -> None:
    obj = simulated_case.reconstruction.object
    weak = np.abs(obj) * np.exp(1j * strength * np.angle(obj))
    view = figures.crop_to_covered_region(replace(simulated_case.reconstruction, object=weak.astype(np.complex64)))
    colors = cells(figures.render_phase(view), view)[view.region]
    assert np.ptp(colors[:, :3], axis=0).max() > 100


@pytest.mark.parametrize("turn", [1.0, 3.0])
@pytest.mark.parametrize("factor", [1.0, 50.0])
def test_the_free_gauge_does_not_show(simulated_case: Any, turn: float, factor: float) -> None:
    rec = simulated_case.reconstruction
    turned = replace(rec, object=(rec.object * factor * np.exp(1j * turn)).astype(np.complex64))
    for picture in (figures.render_amplitude, figures.render_phase):
        first, second = (pixels(picture(figures.crop_to_covered_region(each))).astype(int) for each in (rec, turned))
        assert np.abs(first - second).max() <= 4  # a value between two colours of the map


def test_the_view_is_real_in_the_mean_and_cropped(simulated_case: Any) -> None:
    view = figures.crop_to_covered_region(simulated_case.reconstruction)
    mean = view.object[view.region].mean()
    assert abs(mean.imag) < 1e-12 < mean.real
    assert view.region.sum() == compute_covered_region(simulated_case.reconstruction).sum()
    for edge in (view.region[0], view.region[-1], view.region[:, 0], view.region[:, -1]):
        assert edge.any()


def test_phases_that_differ_by_a_turn_have_one_colour() -> None:
    obj = np.exp(1j * np.linspace(-np.pi, np.pi, 100))[None, :] * np.ones((20, 1))
    view = figures.CroppedObject(obj, np.ones(obj.shape, bool), (0, 0))
    colors = cells(figures.render_phase(view), view)[0, :, :3]
    assert np.abs(colors[0] - colors[-1]).max() < 12
    assert np.abs(colors[0] - colors[50]).max() > 100
    assert np.abs(colors[25] - colors[75]).max() > 50


def test_a_few_wild_pixels_do_not_set_the_range() -> None:
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
    png = figures.plot_history(history)
    assert png is not None
    axes_only = figures.plot_history({"loss": [1e30]})
    assert png != axes_only


def test_the_validation_loss_is_seen() -> None:
    assert figures.plot_history(HISTORY) != figures.plot_history(HISTORY | {"val_loss": [4.0, 3.0, 2.0]})


def test_floor_held_out_pixels_and_stages_are_drawn() -> None:
    plain = {"epoch": [1.0, 2.0, 3.0], "r": [0.3, 0.1, 0.05], "stage": [1.0, 1.0, 1.0]}
    further: list[dict[str, list[float]]] = [
        {"r_floor": [0.02] * 3},
        {"stage": [1.0, 1.0, 2.0]},
        {"held_out_deviance": [3.0, 1.0, 1.2]},
        {"held_out_deviance": [3.0, 1.0, 1.2], "held_out_floor": [0.4, 0.4, 0.4]},
        {"held_out_deviance": [3.0, float("nan"), 1.2]},
    ]
    pictures = [figures.plot_history(plain | more) for more in [{}, *further]]
    assert len(set(pictures)) == len(pictures)
    assert figures.plot_history(plain | {"held_out_deviance": [float("nan")] * 3}) == pictures[0]


@pytest.mark.parametrize("history", [{}, {"epoch": []}, {"loss": []}, {"loss": [float("nan")]}, {"epoch": [1.0]}])
def test_no_history_is_no_figure(history: dict[str, list[float]]) -> None:
    assert figures.plot_history(history) is None


def test_masked_detector_pixels_are_transparent(simulated_case: Any) -> None:
    patterns = simulated_case.scan.amplitudes[:1] ** 2 * 100
    masked = patterns.copy()
    masked[:, 3:20, 3:20] = np.nan
    whole = pixels(figures.plot_patterns(patterns, patterns, ["a"]))
    holed = pixels(figures.plot_patterns(masked, patterns, ["a"]))
    assert (holed[..., 3] == 0).sum() > 1.1 * (whole[..., 3] == 0).sum()
