"""The command reconstruct: engines and pipelines."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ptycho_torch.data.scan import Scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan, save_scan

Call = Callable[..., Any]
QUICK = ("--epochs", "4", "--batch_size", "8", "--device", "cpu", "--no_report")


def test_engine_needs_only_the_scan(run_process: Call, scan_file: Path, tmp_path: Path) -> None:
    done = run_process(
        "-m", "ptycho_torch.reconstruct", scan_file, "--output_dir", "result", "--engine", "pie", cwd=tmp_path
    )
    assert done.code == 0, done.err
    assert "R 0." in done.out
    folder = tmp_path / "result"
    written = {"reconstruction.npz", "metrics.json", "timing.json", "config.yaml", "report.html"}
    assert written <= {path.name for path in folder.iterdir()}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["r"] < 3 * metrics["r_floor"]
    assert "stage 1: pie" in json.loads((folder / "timing.json").read_text())
    assert load_reconstruction(folder / "reconstruction.npz").history["r"][-1] < 0.1


def test_pipeline_of_a_network_and_engines(run_main: Call, scan_file: Path, model_folder: Path, tmp_path: Path) -> None:
    words = ("--engine", "neural", "--model_path", model_folder, "--then", "pie:epochs=3,batch-size=9")
    single, pipeline = tmp_path / "single", tmp_path / "pipeline"
    assert run_main("reconstruct", scan_file, "--output_dir", single, *words[:4], "--no_report").code == 0
    assert run_main("reconstruct", scan_file, "--output_dir", pipeline, *words, "--then", "pie:epochs=2").code == 0
    assert [path.name for path in sorted((pipeline / "stages").iterdir())] == ["1-neural.npz", "2-pie.npz", "3-pie.npz"]
    first, whole = (
        load_reconstruction(pipeline / "stages" / "1-neural.npz"),
        load_reconstruction(single / "reconstruction.npz"),
    )
    assert first.object.tobytes() == whole.object.tobytes()
    result = load_reconstruction(pipeline / "reconstruction.npz")
    assert result.history["stage"] == [2, 2, 2, 3, 3]
    timing = json.loads((pipeline / "timing.json").read_text())
    assert {"stage 1: neural", "stage 2: pie", "stage 3: pie"} < set(timing)
    before, after = (json.loads((folder / "metrics.json").read_text())["r"] for folder in (single, pipeline))
    assert after < before
    assert "Stage 3: pie" in (pipeline / "report.html").read_text()


def test_results_of_stages_of_an_earlier_run_are_removed(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    stages = tmp_path / "stages"
    stages.mkdir()
    for name in ("1-pie.npz", "2-lsqml.npz", "notes.txt", "1-other.npz"):
        (stages / name).touch()
    words = ("--output_dir", tmp_path, "--engine", "pie", "--epochs", "1", "--device", "cpu", "--no_report")
    assert run_main("reconstruct", scan_file, *words).code == 0
    assert {path.name for path in stages.iterdir()} == {"notes.txt", "1-other.npz"}


def test_positions_refined_by_the_network_are_used_by_the_next_engine(
    run_main: Call, scan_file: Path, model_folder: Path, tmp_path: Path
) -> None:
    words = ("--engine", "neural", "--model_path", model_folder, "--update_positions", "--position_bound", "0.2")
    assert run_main("reconstruct", scan_file, "--output_dir", tmp_path, *words, "--then", "pie:epochs=1").code == 0
    first, last = (load_reconstruction(tmp_path / name) for name in ("stages/1-neural.npz", "reconstruction.npz"))
    before = load_scan(scan_file).positions
    assert 0 < np.abs(first.positions - before).max() <= 0.2 + 1e-9
    np.testing.assert_array_equal(last.positions, first.positions)


def test_settings_and_stages_are_read_from_a_file(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    settings = {"engine": "pie", "epochs": 2, "then": ["pie:epochs=1,update_probe", "pie:epochs=1"], "report": False}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    words = (scan_file, "--output_dir", tmp_path / "result", "--config", tmp_path / "settings.yaml")
    assert run_main("reconstruct", *words).code == 0
    assert load_reconstruction(tmp_path / "result" / "reconstruction.npz").history["stage"] == [1, 1, 2, 3]
    stored = yaml.safe_load((tmp_path / "result" / "config.yaml").read_text())
    assert stored["then"] == settings["then"]


def test_object_in_the_scan_file_has_no_effect(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    save_scan(tmp_path / "bare.npz", replace(load_scan(scan_file), truth=None))
    results = []
    for name, path in (("with", scan_file), ("without", tmp_path / "bare.npz")):
        assert run_main("reconstruct", path, "--output_dir", tmp_path / name, *QUICK).code == 0
        results.append(load_reconstruction(tmp_path / name / "reconstruction.npz").object.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["reconstruction", "scan file"])
def test_initial_object_reduces_the_first_fourier_error(
    run_main: Call, scan_file: Path, tmp_path: Path, kind: str
) -> None:
    assert (
        run_main("reconstruct", scan_file, "--output_dir", tmp_path / "first", "--epochs", "20", *QUICK[2:]).code == 0
    )
    start = tmp_path / "first" / "reconstruction.npz" if kind == "reconstruction" else scan_file
    words = (scan_file, "--output_dir", tmp_path / "second", *QUICK, "--init_object", start)
    assert run_main("reconstruct", *words).code == 0
    first, second = (
        load_reconstruction(tmp_path / name / "reconstruction.npz").history["r"] for name in ("first", "second")
    )
    assert second[0] < first[0] / 2


def test_initial_probe_and_positions_are_used(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    words = (scan_file, "--output_dir", tmp_path / "result", *QUICK, "--init_probe", "gaussian:4", "--update_probe")
    assert (
        run_main("reconstruct", *words, "--probe_modes", "2", "--init_positions", scan_file, "--update_positions").code
        == 0
    )
    result = load_reconstruction(tmp_path / "result" / "reconstruction.npz")
    assert result.probe.shape == (2, 24, 24)
    words = (tmp_path / "result" / "reconstruction.npz", "--scan", scan_file, "--output_dir", tmp_path / "scores")
    assert run_main("evaluate", *words, "--no_report").code == 0
    scores, metrics = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("scores", "result"))
    assert scores["r"] == pytest.approx(metrics["r"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "pye"), "pie"),
        (("--then", "pie:epochs"), "epochs=20"),
        (("--then", "pye:epochs=2"), "pie"),
        (("--then", "pie:nonsense=2"), "unknown setting nonsense"),
        (("--then", "pie:epochs=-1"), "--epochs"),
        (("--engine", "neural"), "--model_path"),
        (("--then", "neural:model_path=none"), "none"),
        (("--init_probe", "gaussian:x"), "gaussian:SIGMA"),
        (("--init_probe", "none.npz"), "no such file"),
        (("--init_object", "none.npz"), "no such file"),
        (("--init_positions", "none.npz"), "no such file"),
        (("--momentum", "1"), "--momentum"),
        (("--time_limit", "0"), "--time_limit"),
        (("--resume",), "no checkpoint"),
        (("--batches", "odd"), "random"),
        (("--engine", "lsqml", "--tv", "1e-3"), "gradient"),
        (("--then", "pie:relaxation=0.9"), "dm, raar"),
        (("--alpha", "2"), "--alpha"),
        (("--support", "none.npz"), "no such file"),
        (("--then", "dm:support=none.npz"), "no such file"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(
    run_main: Call,
    scan_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_main("reconstruct", scan_file, "--output_dir", "result", *words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_initial_object_that_does_not_fit_is_refused(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "far.npz", object=np.ones((5, 5), complex), origin_yx=np.array([500, 500]))
    np.savez(tmp_path / "bad.npz", object=np.full((50, 50), np.nan, complex))
    for name, message in (("far", "share no pixel"), ("bad", "finite")):
        done = run_main(
            "reconstruct", scan_file, "--output_dir", tmp_path / "r", "--init_object", tmp_path / f"{name}.npz"
        )
        assert done.code == 2
        assert message in done.err


def test_time_limit_ends_the_run(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    words = (scan_file, "--output_dir", tmp_path / "result", *QUICK, "--epochs", "100000", "--time_limit", "0.5")
    started = time.perf_counter()
    assert run_main("reconstruct", *words).code == 0
    assert time.perf_counter() - started < 20
    assert len(load_reconstruction(tmp_path / "result" / "reconstruction.npz").history["r"]) < 100000


def test_ctrl_c_saves_complete_epochs_and_resume_continues_exactly(
    run_main: Call, scan_file: Path, tmp_path: Path
) -> None:
    words = [str(scan_file), *QUICK[2:], "--epochs", "2000", "--update_probe", "--output_dir"]
    command = [sys.executable, "-m", "ptycho_torch.reconstruct", *words, "interrupted"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "of 2000" not in process.stderr.readline():  # until a tenth of the epochs is complete
            pass
        process.send_signal(signal.SIGINT)
        output = process.stderr.read()
    assert process.returncode == 130
    assert "--resume" in output
    interrupted = tmp_path / "interrupted"
    early = len(load_reconstruction(interrupted / "reconstruction.npz").history["r"])
    assert 100 < early < 2000
    assert run_main("reconstruct", *words, interrupted, "--resume").code == 0
    assert run_main("reconstruct", *words, tmp_path / "whole").code == 0
    resumed, whole = (load_reconstruction(path / "reconstruction.npz") for path in (interrupted, tmp_path / "whole"))
    assert resumed.object.tobytes() == whole.object.tobytes()
    assert resumed.probe.tobytes() == whole.probe.tobytes()
    assert run_main("reconstruct", *words, interrupted, "--resume", "--seed", "5").code == 2


def test_result_without_an_image_is_written_with_its_verdict_and_exit_code_three(
    run_main: Call, scan: Scan, tmp_path: Path
) -> None:
    """Patterns without their bright middle, and without a mask that leaves it out."""
    y, x = np.mgrid[:24, :24] - 12
    covered = np.where(y**2 + x**2 < 50, np.float32(0), scan.amplitudes)
    save_scan(tmp_path / "stop.npz", replace(scan, amplitudes=covered))
    outcome = run_main("reconstruct", tmp_path / "stop.npz", "--output_dir", tmp_path / "result", *QUICK)
    metrics = json.loads((tmp_path / "result" / "metrics.json").read_text())
    assert (outcome.code, metrics["verdict"]) == (3, "no image"), outcome.out
    assert "no image: R" in outcome.err
    assert "R 0." not in outcome.out
    assert "beam stop" in metrics["likely_causes"][0]
    assert (tmp_path / "result" / "reconstruction.npz").exists()


def test_one_result_restores_every_unknown_and_single_ones_are_overridden(
    run_main: Call, scan: Scan, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    counts = np.square(scan.amplitudes) * rng.uniform(0.8, 1.2, (len(scan), 1, 1)) + 3
    save_scan(tmp_path / "scan.npz", replace(scan, amplitudes=np.sqrt(counts).astype(np.float32)))
    unknowns = ("--update_probe", "--update_positions", "--update_background", "--update_intensity")
    call = ("reconstruct", tmp_path / "scan.npz", *QUICK[2:])
    assert run_main(*call, "--output_dir", tmp_path / "first", "--epochs", "30", *unknowns).code == 0
    first = tmp_path / "first" / "reconstruction.npz"
    for name, words in (("all", ()), ("object", ("--init_object", tmp_path / "scan.npz"))):
        words = ("--output_dir", tmp_path / name, "--epochs", "1", *unknowns, "--init", first, *words)
        assert run_main(*call, *words).code == 0
    earlier = load_reconstruction(first)
    restored, changed = (load_reconstruction(tmp_path / name / "reconstruction.npz") for name in ("all", "object"))
    assert restored.background is not None
    assert restored.intensities is not None
    assert restored.history["r"][0] < 1.2 * earlier.history["r"][-1]
    assert changed.history["r"][0] > 1.3 * restored.history["r"][0]


def test_one_of_several_scans_has_to_be_chosen(run_main: Call, scan: Scan, tmp_path: Path) -> None:
    save_scan(tmp_path / "scan.npz", replace(scan, scan_index=(np.arange(len(scan)) >= 18) + 4))
    words = (tmp_path / "scan.npz", "--output_dir", tmp_path / "result", *QUICK)
    code, _, err = run_main("reconstruct", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "choose one by --scan_index" in err
    assert run_main("reconstruct", *words, "--scan_index", "5").code == 0
    result = load_reconstruction(tmp_path / "result" / "reconstruction.npz")
    np.testing.assert_array_equal(result.positions, scan.positions[18:])


def test_result_is_also_written_to_the_named_files(run_main: Call, scan_file: Path, tmp_path: Path) -> None:
    words = (scan_file, "--output_dir", tmp_path / "result", *QUICK)
    code, _, err = run_main("reconstruct", *words, "--save_as", tmp_path / "image.xyz")
    assert (code, err.count("\n")) == (2, 1)
    assert ".npz" in err
    assert not (tmp_path / "result").exists()
    assert run_main("reconstruct", *words, "--save_as", tmp_path / "copy.npz").code == 0
    assert (tmp_path / "copy.npz").read_bytes() == (tmp_path / "result" / "reconstruction.npz").read_bytes()
