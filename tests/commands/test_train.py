"""The command train."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.__main__ import main
from ptycho_torch.models.saved_model import load_model

Command = Callable[..., Any]
Train = Callable[..., Path]


def make_documented_arguments(file: Path, folder: Path, groups: int = 16) -> list[str]:
    """Return the arguments of the documented command line."""
    words = f"--max_epochs 2 --n_images {groups} --gridsize 1 --batch_size 4 --device cpu --disable_mlflow"
    named = ["--train_data_file", str(file), "--test_data_file", str(file), "--output_dir", str(folder)]
    return [*named, *words.split()]


def check_trained_model(folder: Path, epochs: int = 2, groups: int = 16) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "bundle.json",
        "checkpoints",
        "config.yaml",
        "history.csv",
        "model.safetensors",
        "timing.json",
    }
    lines = (folder / "history.csv").read_text().splitlines()
    column = lines[0].split(",").index("groups")
    assert [line.split(",")[column] for line in lines[1:]] == [str(groups)] * epochs
    assert load_model(folder).provenance["epochs"] == epochs


def test_documented_command_writes_a_model(tmp_path: Path, scan_file: Path, run_process: Command) -> None:
    done = run_process(
        "-m",
        "ptycho_torch.train",
        *make_documented_arguments(scan_file, tmp_path / "a model"),
        cwd=tmp_path,
        CUDA_VISIBLE_DEVICES="",
    )
    assert (done.code, "Traceback" in done.err) == (0, False), done.err
    assert "itself" in done.err, "the validation on the training scan is logged"
    assert "loss" in done.out
    check_trained_model(tmp_path / "a model")
    assert [path.name for path in tmp_path.iterdir()] == ["a model"]


def test_both_layouts_give_the_same_loss(tmp_path: Path, scan_file: Path, legacy_file: Path, run_main: Command) -> None:
    losses = []
    for file in (scan_file, legacy_file):
        assert run_main("train", *make_documented_arguments(file, tmp_path / file.stem), "--width", 4).code == 0
        check_trained_model(tmp_path / file.stem)
        losses.append(float((tmp_path / file.stem / "history.csv").read_text().splitlines()[-1].split(",")[2]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.skipif(not os.environ.get("PTYCHO_TORCH_DATA"), reason="PTYCHO_TORCH_DATA is not set")
def test_documented_command_on_the_simulated_run1084(tmp_path: Path, run_main: Command) -> None:
    file = Path(os.environ["PTYCHO_TORCH_DATA"]) / "run1084" / "Run1084_twin_legacy.npz"
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    assert run_main("train", *make_documented_arguments(file, tmp_path / "model", 64)).code == 0
    check_trained_model(tmp_path / "model", groups=64)


def test_console_command_equals_the_module_and_the_library(
    tmp_path: Path, scan_file: Path, restore_logging: None, train_model: Train
) -> None:
    script = Path(sys.executable).with_name("ptycho-torch")
    if not script.exists():
        pytest.skip("the package is not installed with its console command")
    words = ["--max-epochs=1", "--batch-size=6", "--width", "4", "--device", "cpu", "--precision", "fp32"]
    words += ["--logger", "none", "--quiet"]
    words = ["train", "--train-data-file", str(scan_file), *words, "--output-dir"]
    done = subprocess.run(
        [script, *words, tmp_path / "script"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == (b"", 0)
    assert main([*words, str(tmp_path / "module")]) == 0
    alone = train_model(tmp_path / "alone")
    for name in ("model.safetensors", "history.csv"):
        for folder in ("script", "module"):
            assert (tmp_path / folder / name).read_bytes() == (alone / name).read_bytes()


def test_recorded_configuration_reproduces_the_training(tmp_path: Path, scan_file: Path, run_main: Command) -> None:
    assert (
        run_main("train", *make_documented_arguments(scan_file, tmp_path / "first"), "--width", 4, "--seed", 5).code
        == 0
    )
    again = ("train", "--config", tmp_path / "first" / "config.yaml", "--output_dir", tmp_path / "second")
    assert run_main(*again).code == 0
    for name in ("model.safetensors", "history.csv"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_quiet_prints_nothing(tmp_path: Path, scan_file: Path, run_main: Command) -> None:
    outcome = run_main("train", *make_documented_arguments(scan_file, tmp_path / "model"), "--width", 4, "--quiet")
    assert outcome == (0, "", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_and_resume(workers: int, tmp_path: Path, scan_file: Path, train_model: Train) -> None:
    """A real signal to real processes: the last complete epoch remains, and a resume gives the same bytes."""
    folder = tmp_path / "stopped"
    words = ["--train_data_file", scan_file, "--output_dir", folder, "--max_epochs", "1000000", "--batch_size", "6"]
    words += ["--width", "4", "--device", "cpu", "--precision", "fp32", "--logger", "none"]
    words += ["--num_workers", str(workers)]
    run = subprocess.Popen(
        [sys.executable, "-m", "ptycho_torch.train", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    state = folder / "checkpoints" / "last" / "state.safetensors"
    deadline = time.monotonic() + 60
    untrained = None
    while time.monotonic() < deadline:  # the first state is that of the untrained model
        if state.exists():
            untrained = untrained or state.stat().st_mtime_ns
            if state.stat().st_mtime_ns > untrained:
                break
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does it: to the workers too
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted after epoch ")
    done = len((folder / "history.csv").read_text().splitlines()) - 1
    assert done >= 1
    names = ("model.safetensors", "history.csv")
    straight = train_model(tmp_path / "straight", max_epochs=done)
    assert all((folder / name).read_bytes() == (straight / name).read_bytes() for name in names)
    resumed, straight = (
        train_model(path, max_epochs=done + 1, resume=resume)
        for path, resume in ((folder, True), (tmp_path / "further", False))
    )
    assert all((resumed / name).read_bytes() == (straight / name).read_bytes() for name in names)


def spoil(arrays: dict[str, Any], fault: str) -> None:
    """Break a canonical file in one place."""
    count = len(arrays["xcoords"])
    if fault == "key":
        del arrays["diffraction"]
    elif fault == "rank":
        arrays["diffraction"] = arrays["diffraction"][0]
    elif fault in ("nan", "negative"):
        arrays["diffraction"] = arrays["diffraction"].copy()
        arrays["diffraction"][1, 2, 3] = np.nan if fault == "nan" else -1
    elif fault == "count":
        arrays["xcoords"] = arrays["xcoords"][: count - 1]
    elif fault == "object":
        arrays["probeGuess"] = np.array([{"probe": 1}], dtype=object)
    elif fault == "probe":
        arrays["probeGuess"] = arrays["probeGuess"][..., :20, :20]
    elif fault == "empty":
        arrays |= {key: arrays[key][:0] for key in ("diffraction", "xcoords", "ycoords")}


BAD_FILES = {
    "key": "diffraction",
    "rank": "expected three axes",
    "nan": "not finite",
    "negative": "negative",
    "count": "too few coordinates",
    "object": "pickle",
    "probe": "20 × 20",
    "empty": "empty",
    "absent": "no such file",
    "folder": "folder",
    "not a zip": "the format is unknown",
    "truncated": "truncated or damaged",
}


@pytest.mark.parametrize("fault", sorted(BAD_FILES))
def test_bad_file_gives_a_one_line_error_and_no_output(
    fault: str, tmp_path: Path, scan_file: Path, run_main: Command
) -> None:
    file = tmp_path / "scan.npz"
    if fault == "folder":
        file.mkdir()
    elif fault == "not a zip":
        file.write_text("xcoords,ycoords\n")
    elif fault == "truncated":
        file.write_bytes(scan_file.read_bytes()[:-1000])
    elif fault != "absent":
        with np.load(scan_file, allow_pickle=False) as stored:
            arrays = dict(stored)
        spoil(arrays, fault)
        np.savez(file, **arrays)
    before = sorted(tmp_path.iterdir())
    code, out, err = run_main("train", "--train_data_file", file, "--output_dir", tmp_path / "m", "--disable_mlflow")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("train: ")
    assert BAD_FILES[fault] in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--n_images", "0"), "--n_images is 0"),
        (("--n_images", "37"), "--n_images is 37; expected at most 34"),
        (("--gridsize", "6"), "choose a smaller --gridsize"),
        (("--gridsize", "1000000"), "choose a smaller --gridsize"),
        (("--nonsense", "1"), "--nonsense"),
        (("--network", "vgg"), "--network is vgg; expected one of"),
        (("--head", "tanh"), "--head is tanh; expected one of"),
        (("--resume",), "no checkpoint to resume from"),
        (("--test_data_file", "none.npz"), "none.npz: there is no such file"),
        (("--photons_per_unit", "inf"), "--photons_per_unit is inf"),
        (("--output_dir", ""), "--output_dir: an empty path"),
        (("--seed", "9" * 30), "--seed"),
        (("--config", "none.yaml"), "none.yaml"),
    ],
)
def test_bad_settings_give_a_one_line_error_and_no_output(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    scan_file: Path,
    run_main: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main("train", "--train_data_file", scan_file, "--output_dir", "m", "--disable_mlflow", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_file_at_the_output_folder_is_an_error(tmp_path: Path, scan_file: Path, run_main: Command) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        words = ("--train_data_file", scan_file, "--output_dir", tmp_path / place, "--disable_mlflow", "--quiet")
        code, out, err = run_main("train", *words)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "the output folder cannot be created" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_unavailable_device_is_an_error(tmp_path: Path, scan_file: Path, run_main: Command) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code, _, err = run_main("train", "--train_data_file", scan_file, "--output_dir", tmp_path / "m", "--device", "cuda")
    assert (code, err.count("\n")) == (2, 1)
    assert "--device cuda is not available on this machine; choose --device cpu or auto" in err
    assert not (tmp_path / "m").exists()


def test_unusual_names_of_files_and_folders(tmp_path: Path, scan_file: Path, run_main: Command) -> None:
    odd = tmp_path / "a b ü # ? % 'quoted'"
    odd.mkdir()
    file = odd / "scan with [brackets].npz"
    shutil.copy(scan_file, file)
    words = ("--width", "4", "--batch_size", "6", "--max_epochs", "1", "--device", "cpu", "--quiet", "--logger", "csv")
    assert run_main("train", "--train_data_file", file, "--output_dir", odd / "below" / "model", *words).code == 0
    assert load_model(odd / "below" / "model").provenance["epochs"] == 1
