"""The contract of all formats: a scan of any file has the right positions, orientation, counts, photons and units."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases import Case, compute_misfit, predict_counts, save_as
from cases_beamlines import CASES as BEAMLINE_CASES
from cases_electron import ELECTRON_CASES
from cases_generic import CASES as GENERIC_CASES
from cases_matlab import MATLAB_CASES
from cases_photons import PHOTON_CASES

from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.container import open_input
from ptycho_torch.io.formats.registry import recognize_format
from ptycho_torch.io.scan import InputScan, read_input

CASES = [
    Case("npz", save_as("scan.npz")),
    *BEAMLINE_CASES,
    *GENERIC_CASES,
    *MATLAB_CASES,
    *ELECTRON_CASES,
    *PHOTON_CASES,
]

PARAMETERS = [pytest.param(case, size, id=f"{case.name}-{size}") for case in CASES for size in case.sizes]

MAX_POSITION_ERROR_PX = 0.05
MAX_MISFIT = 1.2
"""Largest misfit of a right prediction of Poisson counts; a transposed or reversed pattern has more than 10."""

Load = Callable[[Case, int], InputScan]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Writes and reads the file of a case once."""
    loaded: dict[tuple[str, int], InputScan] = {}

    def load_case(case: Case, size: int) -> InputScan:
        if (case.name, size) not in loaded:
            path = case.write(tmp_path_factory.mktemp("format"), case.make_truth(size))
            loaded[case.name, size] = read_input(path, **case.get_settings(path))
        return loaded[case.name, size]

    return load_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_content_selects_the_format(case: Case, tmp_path: Path) -> None:
    if case.settings.get("format"):
        pytest.skip("the content does not decide; the format is a setting")
    path = case.write(tmp_path, case.make_truth(case.sizes[0]))
    with open_input(path) as file:
        assert recognize_format(file).name == case.format_name
    if path.is_file():
        renamed = path.rename(path.with_name("renamed"))
        with open_input(renamed) as file:
            assert recognize_format(file).name == case.format_name


@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_positions_are_those_of_the_scan_in_object_pixels(case: Case, size: int, load: Load) -> None:
    truth, scan = case.make_truth(size), load(case, size).scan
    difference = scan.positions - truth.positions
    if scan.truth is None:
        difference = difference - difference.mean(0)
    assert np.abs(difference).max() < MAX_POSITION_ERROR_PX


@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_patterns_have_the_orientation_of_the_positions(case: Case, size: int, load: Load) -> None:
    truth, scan = case.make_truth(size), load(case, size).scan
    moved = scan.positions - (scan.positions - truth.positions).mean(0)
    measured = np.square(scan.amplitudes, dtype=np.float64) * (scan.photons_per_unit or 1.0)
    assert compute_misfit(measured, predict_counts(truth.object, truth.probe, moved), truth.mask) < MAX_MISFIT


@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_counts_and_photons_are_exact(case: Case, size: int, load: Load) -> None:
    truth, scan = case.make_truth(size), load(case, size).scan
    assert scan.photons_per_unit == 1.0
    counted = np.square(scan.amplitudes, dtype=np.float64)[:, truth.mask]
    np.testing.assert_allclose(counted, truth.counts[:, truth.mask], rtol=1e-5)


@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_mask_leaves_out_the_defective_pixels_and_no_others(case: Case, size: int, load: Load) -> None:
    scan = load(case, size).scan
    mask = np.ones((size, size), bool) if scan.mask is None else scan.mask
    np.testing.assert_array_equal(mask, np.broadcast_to(case.make_mask(size), mask.shape))


@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_probe_is_that_of_the_file(case: Case, size: int, load: Load) -> None:
    truth, scan = case.make_truth(size), load(case, size).scan
    if not case.probe:
        assert scan.probe is None
        return
    assert scan.probe is not None
    factor = np.vdot(truth.probe, scan.probe) / np.vdot(truth.probe, truth.probe)
    np.testing.assert_allclose(scan.probe / factor, truth.probe, atol=1e-4 * np.abs(truth.probe).max())


@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_object_and_probe_of_the_file_predict_the_patterns_at_its_positions(case: Case, size: int, load: Load) -> None:
    truth, scan = case.make_truth(size), load(case, size).scan
    if not case.object:
        assert scan.truth is None
        return
    assert scan.truth is not None
    probe = truth.probe if scan.probe is None else scan.probe.astype(np.complex128)
    predicted = predict_counts(scan.truth.astype(np.complex128), probe, scan.positions)
    counts = truth.counts[:, truth.mask]
    predicted *= counts.sum() / predicted[:, truth.mask].sum()
    assert compute_misfit(truth.counts, predicted, truth.mask) < MAX_MISFIT


@pytest.mark.parametrize(("case", "size"), PARAMETERS)
def test_geometry_is_in_meters(case: Case, size: int, load: Load) -> None:
    expected, scan = case.make_truth(size).geometry, load(case, size).scan
    geometry = scan.geometry or Geometry()
    for name in case.geometry:
        assert getattr(geometry, name) == pytest.approx(getattr(expected, name), rel=1e-5), name
    if case.geometry:
        assert geometry.radiation == expected.radiation
    assert geometry.propagation == "far_field"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_report_names_the_place_of_patterns_and_positions(case: Case, load: Load) -> None:
    report = load(case, case.sizes[0]).report
    fields = {entry.field for entry in report.mapping} if report.mapping else {"patterns", "positions"}
    assert {"patterns", "positions"} <= fields
