"""The command sweep: trainings, each measured in a separate process."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL_FILES = {"log.txt", "history.csv", "timing.json", "config.yaml"}
"""Files of a run that a sweep does not delete."""

SMALL = "width=4,batch_size=6"


@pytest.fixture(scope="module")
def reporting_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which every Python prints its process id and CUDA_VISIBLE_DEVICES at its start."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "print('process', os.getpid(), 'cuda', repr(os.environ['CUDA_VISIBLE_DEVICES']), file=sys.stderr)"
    )
    return {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "0"}


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory,
    scan_file: Path,
    run_process: Callable[..., Any],
    reporting_environment: dict[str, str],
) -> tuple[Path, Any]:
    """A sweep of a training and of a run with too many groups."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "scan.npz").write_bytes(scan_file.read_bytes())
    runs = (
        f"epochs=2,n-images=20,{SMALL},update_probe=true,seed=3",
        f"epochs=1,n_images=10000,{SMALL}",
    )
    words = ["-m", "ptycho_torch.sweep", "--train_data_file", "scan.npz", "--output_dir", "out"]
    for run in runs:
        words += ["--run", run]
    return folder / "out", run_process(*words, cwd=folder, **reporting_environment)


@pytest.fixture(scope="module")
def scope(swept: tuple[Path, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((swept[0] / "scope.json").read_text())
    return content


def test_failed_run_is_a_row_and_gives_exit_code_1(swept: tuple[Path, Any], scope: dict[str, Any]) -> None:
    folder, result = swept
    assert result.code == 1
    assert result.out.strip() == f"{Path('out/scope.md')}: 2 runs, run 2 failed"
    assert [run["exit_code"] for run in scope["runs"]] == [0, 2]
    failed = scope["runs"][1]
    assert failed["work"] is None
    assert re.fullmatch(r"exit code 2: train: --n_images is 10000; .*", failed["failure"])
    assert failed["failure"] in (folder / "scope.md").read_text()


def test_row_contains_the_work_of_the_training(swept: tuple[Path, Any], scope: dict[str, Any]) -> None:
    folder, _ = swept
    run, work = scope["runs"][0], scope["runs"][0]["work"]
    run_folder = folder / "runs" / "1"
    with (run_folder / "history.csv").open() as stream:
        history = list(csv.DictReader(stream))
    assert (work["epochs"], work["groups"], work["batch_size"]) == (2, 20, 6) == (len(history), 20, 6)
    assert work["loss"] == float(history[-1]["loss"])
    assert work["stages"] == json.loads((run_folder / "timing.json").read_text())
    done = re.search(r"training: (\d+) of \1 ", (run_folder / "log.txt").read_text())
    assert done
    assert work["batches_per_epoch"] * work["epochs"] == int(done[1])
    assert sum(work["stages"].values()) < run["wall_seconds"]
    assert 0 < run["cpu_seconds"] < run["wall_seconds"] * (os.cpu_count() or 1)
    assert 50 < run["peak_bytes"] / 2**20 < 4000  # torch alone is over 50
    assert run["peak_bytes"] > scope["runs"][1]["peak_bytes"]


def test_file_sizes_are_recorded_and_small_files_remain(swept: tuple[Path, Any], scope: dict[str, Any]) -> None:
    folder, _ = swept
    for run in scope["runs"]:
        remaining = {path.name: path for path in (folder / "runs" / run["name"]).iterdir()}
        assert remaining.keys() == (SMALL_FILES if run["exit_code"] == 0 else {"log.txt"})
        assert {name: run["files"][name] for name in remaining} == {
            name: path.stat().st_size for name, path in remaining.items()
        }
    sizes = set(scope["runs"][0]["files"])
    assert sizes == SMALL_FILES | {"model.safetensors", "bundle.json", "checkpoints/last/state.safetensors"}
    assert {path.name for path in folder.iterdir()} == {"scope.json", "scope.md", "runs"}


def test_command_is_recorded_and_cuda_hidden(swept: tuple[Path, Any], scope: dict[str, Any]) -> None:
    folder, _ = swept
    assert shlex.split(scope["runs"][0]["command"]) == shlex.split(
        "CUDA_VISIBLE_DEVICES= python -m ptycho_torch.train --train_data_file scan.npz --output_dir out/runs/1 "
        "--max_epochs 2 --n_images 20 --width 4 --batch_size 6 --update_probe --seed 3 --logger csv --device cpu"
    )
    for run in scope["runs"]:
        assert run["command"] in (folder / "scope.md").read_text()
        first_line = (folder / "runs" / run["name"] / "log.txt").read_text().splitlines()[0]
        assert first_line.endswith("cuda ''")
    assert "update_probe: true" in (folder / "runs" / "1" / "config.yaml").read_text()


def test_report_does_not_name_the_machine(swept: tuple[Path, Any]) -> None:
    folder, _ = swept
    for name in ("scope.json", "scope.md"):
        text = (folder / name).read_text()
        assert str(folder) not in text
        assert os.uname().nodename not in re.split(r"\W+", text) or os.uname().nodename == "localhost"


def test_report_describes_the_scan_file(scope: dict[str, Any]) -> None:
    assert "diffraction is float32 of shape (36, 24, 24)" in scope["observations"]
    assert "axis order nhw: from the metadata" in scope["observations"]


@pytest.mark.parametrize("seconds", ["0.5"])
def test_run_is_stopped_at_the_limit_and_not_retried(
    seconds: str, tmp_path: Path, scan_file: Path, run_main: Callable[..., Any]
) -> None:
    words = ["--train_data_file", scan_file, "--output_dir", tmp_path / "out", "--timeout", seconds]
    result = run_main("sweep", *words, "--run", f"epochs=10000,{SMALL}")
    assert (result.code, result.out.count("\n")) == (1, 1)
    (run,) = json.loads((tmp_path / "out" / "scope.json").read_text())["runs"]
    assert run["failure"].startswith(f"stopped at the limit of {seconds} s")
    assert run["exit_code"] == -signal.SIGTERM
    assert run["wall_seconds"] >= float(seconds)
    assert (tmp_path / "out" / "scope.md").read_text().count(f"stopped at the limit of {seconds} s") == 1
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir()] == ["1"]


def test_keep_leaves_all_files_and_no_epoch_has_no_loss(
    tmp_path: Path, scan_file: Path, run_main: Callable[..., Any]
) -> None:
    words = ["--train_data_file", scan_file, "--output_dir", tmp_path / "out", "--keep_outputs", "--quiet"]
    result = run_main("sweep", *words, "--run", f"epochs=0,{SMALL},update_probe=false")
    assert (result.code, result.out, result.err) == (0, "", "")
    (run,) = json.loads((tmp_path / "out" / "scope.json").read_text())["runs"]
    folder = tmp_path / "out" / "runs" / "1"
    left = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert left == run["files"]
    assert "model.safetensors" in left
    assert "--no_update_probe" in run["command"]
    work = run["work"]
    assert (work["epochs"], work["groups"], work["batches_per_epoch"], work["loss"]) == (0, None, None, None)


def test_ctrl_c_ends_the_run(tmp_path: Path, scan_file: Path, reporting_environment: dict[str, str]) -> None:
    words = [
        "--train_data_file",
        str(scan_file),
        "--output_dir",
        str(tmp_path / "out"),
        "--run",
        f"epochs=10000,{SMALL}",
    ]
    log = tmp_path / "out" / "runs" / "1" / "log.txt"
    with subprocess.Popen(
        [sys.executable, "-m", "ptycho_torch.sweep", *words],
        env=os.environ | reporting_environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as sweep:
        deadline = time.monotonic() + 30
        while not (log.is_file() and "process" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        sweep.send_signal(signal.SIGINT)
        _, err = sweep.communicate(timeout=30)
    assert sweep.returncode == 130
    assert err.splitlines()[-1] == "sweep: interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split()[1]), 0)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([""], "name=value"),
        (["epochs"], "name=value"),
        (["epochs=1,,width=4"], "name=value"),
        (["epochs="], "name=value"),
        (["=3"], "name=value"),
        (["epochs=1", "epoch=1"], "no setting epoch"),
        (["Epochs=1"], "no setting Epochs"),
        (["epochs=1,device=cpu"], "sets device"),
        (["output-dir=here"], "sets output_dir"),
        (["train_data_file=scan.npz"], "sets train_data_file"),
        (["epochs=1,max_epochs=2"], "max_epochs occurs twice"),
        ([], "--run missing"),
    ],
)
def test_malformed_run_gives_a_one_line_error(
    runs: list[str], message: str, tmp_path: Path, scan_file: Path, run_main: Callable[..., Any]
) -> None:
    words = [word for run in runs for word in ("--run", run)]
    result = run_main("sweep", "--train_data_file", scan_file, "--output_dir", tmp_path / "out", *words)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["none.npz", "."])
def test_unreadable_scan_gives_a_one_line_error(missing: str, tmp_path: Path, run_main: Callable[..., Any]) -> None:
    words = ["--train_data_file", tmp_path / missing, "--output_dir", tmp_path / "out", "--run", "epochs=1"]
    result = run_main("sweep", *words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", ["0", "-1", "inf", "nan"])
def test_invalid_limit_gives_a_one_line_error(
    limit: str, tmp_path: Path, scan_file: Path, run_main: Callable[..., Any]
) -> None:
    words = ["--train_data_file", scan_file, "--output_dir", tmp_path / "out", "--run", "epochs=1", "--timeout", limit]
    result = run_main("sweep", *words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--timeout is" in result.err


def test_runs_of_an_earlier_sweep_are_not_changed(
    tmp_path: Path, scan_file: Path, run_main: Callable[..., Any]
) -> None:
    earlier = tmp_path / "out" / "runs" / "1" / "model.safetensors"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("precious")
    result = run_main("sweep", "--train_data_file", scan_file, "--output_dir", tmp_path / "out", "--run", "epochs=1")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "earlier sweep" in result.err
    assert earlier.read_text() == "precious"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["runs"]
