"""The files of a result: the same bytes for the same result, and no file after bad input."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.evaluation.scores import ExamplePatterns, evaluate_result, select_example_patterns
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.plotting.result_folder import write_images, write_results

FILES = [
    "metrics.json",
    "reconstructed_amplitude.png",
    "reconstructed_phase.png",
    "reconstruction.npz",
    "report.html",
]


def write(folder: Path, case: Any, **options: Any) -> dict[str, Any]:
    unit = case.reconstruction.photons_per_unit
    return write_results(
        folder, case.reconstruction, case.scan, photons_per_unit=unit, command="made by hand", **options
    )


def test_equal_results_give_equal_files(simulated_case: Any, tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name, simulated_case, truth=simulated_case.truth)
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    loaded = load_reconstruction(tmp_path / "first" / "reconstruction.npz")
    np.testing.assert_array_equal(loaded.object, simulated_case.reconstruction.object)
    assert loaded.history == simulated_case.reconstruction.history


def test_metrics_are_finite_numbers_or_null_in_sorted_order(simulated_case: Any, tmp_path: Path) -> None:
    returned = write(tmp_path, simulated_case, truth=simulated_case.truth, validation=np.array([3, 5, 60]))
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    metrics = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert metrics == returned
    assert list(metrics) == sorted(metrics)
    assert metrics["patterns"] == len(simulated_case.scan)
    assert metrics["validation_patterns"] == 3
    assert metrics["r"] < 1e-9
    assert metrics["frc_crossing_cycles_per_pixel"] is None  # it agrees up to the last ring
    for value in metrics.values():
        numbers = value if isinstance(value, list) else [value]
        assert all(number is None or isinstance(number, str) or math.isfinite(number) for number in numbers)


def test_the_truth_of_the_scan_is_not_used_unless_it_is_given(simulated_case: Any, tmp_path: Path) -> None:
    assert simulated_case.scan.truth is not None
    metrics = write(tmp_path, simulated_case)
    assert "nrmse" not in metrics
    assert "validation_r" not in metrics
    assert "Against the truth" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_held_out_scores_use_the_held_out_patterns_only(simulated_case: Any) -> None:
    scan = replace(simulated_case.scan, amplitudes=simulated_case.scan.amplitudes.copy())
    scan.amplitudes[7] *= 2
    unit = simulated_case.reconstruction.photons_per_unit

    def held_out(*indices: int) -> Any:
        return evaluate_result(
            simulated_case.reconstruction, scan, photons_per_unit=unit, validation=np.array(indices)
        ).validation

    # A measured amplitude of 2 for a predicted amplitude of 1: (1 − 2)² / 2².
    assert held_out(7).r == pytest.approx(0.25, rel=1e-4)
    assert held_out(6, 8).r < 1e-9


@pytest.mark.parametrize("value", [1, 0])
def test_a_constant_object_is_written_too(simulated_case: Any, tmp_path: Path, value: complex) -> None:
    rec = replace(
        simulated_case.reconstruction, object=np.full_like(simulated_case.reconstruction.object, value), history={}
    )
    metrics = write(tmp_path, simulated_case._replace(reconstruction=rec), truth=simulated_case.truth)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert metrics["r"] > 0.02
    assert metrics["frc_resolution_pixels"] is None


def test_the_two_images_alone_equal_those_of_a_whole_result(simulated_case: Any, tmp_path: Path) -> None:
    paths = write_images(tmp_path, simulated_case.reconstruction)
    assert [path.name for path in paths] == ["reconstructed_amplitude.png", "reconstructed_phase.png"]
    assert sorted(tmp_path.iterdir()) == paths
    write(tmp_path / "all", simulated_case)
    for path in paths:
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()


def test_example_patterns_are_sorted_from_best_to_worst(case_factory: Any) -> None:
    case = case_factory(photons=1e4, noise=True)
    scan = replace(case.scan, mask=np.random.default_rng(0).random((24, 24)) > 0.1)
    evaluation = evaluate_result(case.reconstruction, scan, photons_per_unit=case.reconstruction.photons_per_unit)
    found = evaluation.patterns
    assert isinstance(found, ExamplePatterns)
    np.testing.assert_array_equal(np.isnan(found.measured), np.broadcast_to(~scan.mask, found.measured.shape))
    error = [
        np.nansum((np.sqrt(measured) - np.sqrt(predicted)) ** 2) / np.nansum(measured)
        for measured, predicted in zip(found.measured, found.predicted, strict=True)
    ]
    assert error == sorted(error)
    assert evaluation.fourier_error is not None
    each = evaluation.fourier_error.per_pattern
    np.testing.assert_allclose(error, [each.min(), np.sort(each)[45], each.max()], rtol=1e-4)
    assert [title.split("(")[1].split(",")[0] for title in found.titles] == ["best", "median", "worst"]


def test_example_patterns_of_a_single_pattern(simulated_case: Any) -> None:
    one = simulated_case.scan.select(np.array([11]))
    found = evaluate_result(
        simulated_case.reconstruction, one, photons_per_unit=simulated_case.reconstruction.photons_per_unit
    )
    assert found.fourier_error is not None
    patterns = select_example_patterns(
        simulated_case.reconstruction, one, found.fourier_error, simulated_case.reconstruction.photons_per_unit
    )
    assert patterns.measured.shape == (3, 24, 24)


def test_bad_input_leaves_no_folder(simulated_case: Any, case_factory: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write(tmp_path / "out", simulated_case._replace(scan=case_factory(size=15).scan))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="output folder cannot be created"):
        write(tmp_path / "file", simulated_case)


def test_r_above_the_limit_is_an_error_with_causes_and_no_file(simulated_case: Any, tmp_path: Path) -> None:
    bright = replace(simulated_case.reconstruction, probe=20 * simulated_case.reconstruction.probe)
    with pytest.raises(DataError, match=r"no image: R .* is worse than an empty model.*`photons_per_unit`"):
        write_results(
            tmp_path / "r", bright, simulated_case.scan, photons_per_unit=2.5, command="", report=False, max_r=1.0
        )
    assert not (tmp_path / "r").exists()
