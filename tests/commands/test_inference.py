"""The command inference."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.scan import Scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import save_scan

Command = Callable[..., Any]
RESULTS = {
    "reconstruction.npz",
    "reconstructed_amplitude.png",
    "reconstructed_phase.png",
    "metrics.json",
    "timing.json",
    "report.html",
}


def make_arguments(model: Path, scan: Path, folder: Path) -> list[str]:
    return ["--model_path", str(model), "--test_data", str(scan), "--output_dir", str(folder), "--device", "cpu"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, scan_file: Path, run_process: Command) -> Path:
    """Run the command in a separate process and return its output folder."""
    folder = tmp_path_factory.mktemp("result") / "a result"
    done = run_process(
        "-m", "ptycho_torch.inference", *make_arguments(model_folder, scan_file, folder), CUDA_VISIBLE_DEVICES=""
    )
    assert (done.code, "Traceback" in done.err) == (0, False), done.err
    assert re.search(r"^R 0\.\d+ \(counting noise alone 0\.\d+\): above the noise floor$", done.out, re.MULTILINE)
    assert done.out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    return folder


def test_folder_contains_all_results(result: Path) -> None:
    assert {path.name for path in result.iterdir()} == RESULTS
    assert (result / "report.html").stat().st_size > 10_000
    assert "ptycho_torch.inference" in (result / "report.html").read_text()


def test_equal_commands_give_equal_bytes(
    result: Path, tmp_path: Path, model_folder: Path, scan_file: Path, run_main: Command
) -> None:
    assert run_main("inference", *make_arguments(model_folder, scan_file, tmp_path / "again"), "--quiet") == (0, "", "")
    for name in ("reconstruction.npz", "metrics.json", "reconstructed_phase.png"):
        assert (tmp_path / "again" / name).read_bytes() == (result / name).read_bytes()


@pytest.mark.parametrize("name", ["reconstructed_amplitude.png", "reconstructed_phase.png"])
def test_images_are_not_uniform(result: Path, name: str) -> None:
    from matplotlib.image import imread

    image = imread(result / name)
    assert min(image.shape[:2]) >= 20
    assert image[..., :3].std() > 0.01


def test_reconstruction_and_metrics_are_complete(result: Path, scan: Scan) -> None:
    reconstruction = load_reconstruction(result / "reconstruction.npz")
    assert [str(array.dtype) for array in (reconstruction.object, reconstruction.coverage)] == ["complex64", "float32"]
    assert np.isfinite(reconstruction.object).all()
    np.testing.assert_array_equal(reconstruction.positions, scan.positions)
    assert reconstruction.metadata["epochs"] == 10
    assert len(reconstruction.history["loss"]) == 10
    metrics = json.loads((result / "metrics.json").read_text())
    assert 0 < metrics["r_floor"] < metrics["r"] < 1
    assert metrics["validation_patterns"] >= 1
    assert metrics["patterns"] == 36


def test_truth_in_the_scan_file_has_no_effect(
    result: Path, tmp_path: Path, model_folder: Path, scan: Scan, run_main: Command
) -> None:
    save_scan(tmp_path / "scan.npz", replace(scan, truth=None))
    assert (
        run_main("inference", *make_arguments(model_folder, tmp_path / "scan.npz", tmp_path / "without_truth")).code
        == 0
    )
    without_truth = (tmp_path / "without_truth" / "reconstruction.npz").read_bytes()
    assert without_truth == (result / "reconstruction.npz").read_bytes()


@pytest.mark.parametrize("count", [1, 7])
def test_n_images_selects_positions_over_the_whole_scan(
    count: int, tmp_path: Path, model_folder: Path, scan: Scan, scan_file: Path, run_main: Command
) -> None:
    assert (
        run_main("inference", *make_arguments(model_folder, scan_file, tmp_path / "r"), "--n-images", count).code == 0
    )
    reconstruction = load_reconstruction(tmp_path / "r" / "reconstruction.npz")
    assert len(reconstruction.positions) == count
    np.testing.assert_array_equal(reconstruction.positions[0], scan.positions[0])
    if count > 1:
        np.testing.assert_array_equal(reconstruction.positions[-1], scan.positions[-1])


@pytest.mark.parametrize("settings", [("--gridsize", "2"), ("--gridsize", "2", "--n_images", "5")])
def test_groups_of_neighbors_are_reconstructed(
    settings: tuple[str, ...], tmp_path: Path, model_folder: Path, scan_file: Path, run_main: Command
) -> None:
    assert run_main("inference", *make_arguments(model_folder, scan_file, tmp_path / "r"), *settings).code == 0
    assert {path.name for path in (tmp_path / "r").iterdir()} == RESULTS


def test_untrained_model_gives_a_constant_object(
    tmp_path: Path, scan_file: Path, train_model: Callable[..., Path], run_main: Command
) -> None:
    model = train_model(tmp_path / "model", max_epochs=0, network="lifted_unet")  # without data-consistency steps
    assert run_main("inference", *make_arguments(model, scan_file, tmp_path / "r")).code == 0
    assert np.abs(load_reconstruction(tmp_path / "r" / "reconstruction.npz").object - 1).max() < 1e-5


def test_photon_scale_is_the_scale_of_the_model_unless_given(
    tmp_path: Path, model_folder: Path, scan: Scan, run_main: Command
) -> None:
    """A different scale in the file gives a warning; the flag overrides both."""
    scales = {}
    save_scan(tmp_path / "scan.npz", replace(scan, photons_per_unit=4.0))
    for name, words in (("bundle", ()), ("flag", ("--photons_per_unit", "4"))):
        outcome = run_main("inference", *make_arguments(model_folder, tmp_path / "scan.npz", tmp_path / name), *words)
        assert outcome.code == 0
        assert ("states 4 photons" in outcome.err) is (name == "bundle")
        scales[name] = load_reconstruction(tmp_path / name / "reconstruction.npz").photons_per_unit
    assert scales == {"bundle": 1.0, "flag": 4.0}


def test_scan_of_another_size_is_refused(
    tmp_path: Path, model_folder: Path, scan_factory: Callable[..., Scan], run_main: Command
) -> None:
    save_scan(tmp_path / "large.npz", scan_factory(9, 32))
    code, out, err = run_main("inference", *make_arguments(model_folder, tmp_path / "large.npz", tmp_path / "r"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "patterns of 32 × 32 pixels" in err
    assert "24 × 24" in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model_path", "none"), "no model bundle"),
        (("--model_path", ""), "--model_path: an empty path"),
        (("--test_data", "none.npz"), "no such file"),
        (("--test_data", "."), "folder"),
        (("--n_images", "0"), "--n_images is 0"),
        (("--n_images", "37"), "--n_images is 37"),
        (("--gridsize", "7"), "--gridsize is 7, which needs groups of 49 positions"),
        (("--batch_size", "0"), "--batch_size is 0"),
        (("--positions", "none.npz"), "no such file"),
        (("--positions", "probe.npz"), "no positions; expected positions, or xcoords and ycoords; change --positions"),
        (("--positions", "few.npz"), "positions of shape (2, 2) (float64); expected (36, 2)"),
        (("--positions", "words.npz"), "(<U1); expected (36, 2)"),
        (("--positions", "uneven.npz"), "xcoords has shape (36,) and ycoords (35,)"),
        (("--update_positions", "--position_bound", "0"), "--position_bound is 0"),
        (("--update_positions", "--position_bound", "25"), "expected at most 24, the side of a pattern"),
        (("--photons_per_unit", "nan"), "--photons_per_unit is nan"),
        (("--output_dir", ""), "--output_dir: an empty path"),
        (("--output_dir", "file"), "the output folder cannot be created"),
        (("--output_dir", "file/below"), "the output folder cannot be created"),
        (("--train_data_file", "x"), "--train_data_file"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    run_main: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    np.savez(tmp_path / "probe.npz", probe=np.ones((24, 24)))
    np.savez(tmp_path / "few.npz", positions=np.ones((2, 2)))
    np.savez(tmp_path / "words.npz", positions=np.full((36, 2), "a"))
    np.savez(tmp_path / "uneven.npz", xcoords=np.ones(36), ycoords=np.ones(35))
    before = sorted(tmp_path.iterdir())
    code, out, err = run_main("inference", *make_arguments(model_folder, scan_file, Path("r")), "--quiet", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("inference: ")
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def shifted_scan_file(tmp_path: Path, scan: Scan) -> Path:
    """Write the scan with position errors of half a pixel."""
    errors = np.random.default_rng(0).normal(0, 0.5, scan.positions.shape)
    save_scan(tmp_path / "shifted.npz", replace(scan, positions=scan.positions + errors))
    return tmp_path / "shifted.npz"


@pytest.mark.parametrize("kind", ["scan", "result"])
def test_positions_are_read_from_another_file(
    kind: str,
    shifted_scan_file: Path,
    result: Path,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    run_main: Command,
) -> None:
    """A scan with wrong positions and the positions of another file gives the object for the right positions."""
    source = {"scan": scan_file, "result": result / "reconstruction.npz"}[kind]
    words = make_arguments(model_folder, shifted_scan_file, tmp_path / "r")
    assert f"positions: from {source.name}" in run_main("inference", *words, "--positions", source).err
    reconstruction, right = (load_reconstruction(folder / "reconstruction.npz") for folder in (tmp_path / "r", result))
    np.testing.assert_allclose(reconstruction.positions, right.positions, atol=1e-9)
    assert np.abs(reconstruction.object - right.object).max() < 1e-5


def test_update_positions_reduces_the_fourier_error(
    shifted_scan_file: Path, tmp_path: Path, model_folder: Path, run_main: Command
) -> None:
    """The positions move by at most the bound."""
    r = {}
    for name, words in (("fixed", ()), ("refined", ("--update-positions", "--position-bound", "0.3"))):
        assert (
            run_main(
                "inference", *make_arguments(model_folder, shifted_scan_file, tmp_path / name), *words, "--quiet"
            ).code
            == 0
        )
        r[name] = json.loads((tmp_path / name / "metrics.json").read_text())["r"]
    assert r["refined"] < r["fixed"]
    fixed, refined = (load_reconstruction(tmp_path / name / "reconstruction.npz") for name in r)
    assert 0.05 < np.abs(refined.positions - fixed.positions).max() <= 0.3 + 1e-9
    assert (fixed.metadata["positions"], refined.metadata["positions"]) == ("as in the scan", "refined")


def test_bundle_of_a_newer_schema_is_refused(
    tmp_path: Path, model_folder: Path, scan_file: Path, run_main: Command
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    description = tmp_path / "model" / "bundle.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"schema": 99}))
    code, out, err = run_main("inference", *make_arguments(tmp_path / "model", scan_file, tmp_path / "r"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "schema 99" in err
    assert not (tmp_path / "r").exists()


def test_uncertainty_is_written_reported_and_evaluated(
    tmp_path: Path, model_folder: Path, scan_file: Path, run_main: Command
) -> None:
    words = make_arguments(model_folder, scan_file, tmp_path)
    assert run_main("inference", *words, "--uncertainty", "--update_positions", "--quiet") == (0, "", "")
    reconstruction = load_reconstruction(tmp_path / "reconstruction.npz")
    assert reconstruction.uncertainty is not None
    illuminated = reconstruction.coverage > 0
    assert np.isfinite(reconstruction.uncertainty[illuminated]).all()
    assert np.isinf(reconstruction.uncertainty[~illuminated]).all()
    assert "<h2>Uncertainty</h2>" in (tmp_path / "report.html").read_text()
    arguments = ["evaluate", str(tmp_path / "reconstruction.npz"), "--truth", str(scan_file), "--quiet"]
    assert run_main(*arguments, "--output_dir", str(tmp_path / "scores")) == (0, "", "")
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    shares = metrics["uncertainty_shares"]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
    assert "Uncertainty against the error" in (tmp_path / "scores" / "report.html").read_text()


def test_another_scan_of_the_same_beam_in_another_unit_gives_the_same_result(
    tmp_path: Path, model_folder: Path, scan_factory: Callable[..., Scan], run_main: Command
) -> None:
    other = scan_factory(seed=5)
    scaled = replace(other, amplitudes=other.amplitudes / other.amplitudes.max(), photons_per_unit=None)
    metrics = []
    for name, changed in (("photons", other), ("scaled", scaled)):
        save_scan(tmp_path / f"{name}.npz", changed)
        words = ("--no_report", "--quiet")
        run_main("inference", *make_arguments(model_folder, tmp_path / f"{name}.npz", tmp_path / name), *words)
        metrics.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    assert metrics[1]["r"] == pytest.approx(metrics[0]["r"], rel=1e-3)
    assert metrics[0]["r"] < 0.1
