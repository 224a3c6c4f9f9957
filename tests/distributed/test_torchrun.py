"""Commands on two processes under torchrun: results of one process, lost processes and signals."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho_torch.models.saved_model import load_model

Command = Callable[..., Any]
Train = Callable[..., Path]

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
ENDLESS = ("--max_epochs", "1000000")


def make_train_arguments(scan_file: Path, folder: Path, *more: str) -> list[str]:
    """Return the arguments of ``train`` with the settings of the fixture ``train_model``."""
    settings = "--batch_size 6 --width 4 --device cpu --logger none --precision fp32"
    return ["--train_data_file", str(scan_file), "--output_dir", str(folder), *settings.split(), *more]


def read_losses(folder: Path) -> list[float]:
    with (folder / "history.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream) for name in ("loss", "val_loss")]


def test_identities_over_two_ranks(run_process: Command) -> None:
    outcome = run_process(
        *TORCHRUN, HERE / "two_rank_identities.py", PYTHONPATH=os.pathsep.join([str(HERE.parent), *sys.path])
    )
    assert outcome.code == 0, outcome.err


def test_one_process_does_not_import_accelerate(tmp_path: Path, scan_file: Path, run_process: Command) -> None:
    arguments = make_train_arguments(scan_file, tmp_path / "model", "--max_epochs", "1", "--quiet")
    code = f"import sys; from ptycho_torch.train import main; main({arguments!r}); print('accelerate' in sys.modules)"
    outcome = run_process("-c", code)
    assert outcome.out.splitlines()[-1] == "False", outcome.err


def test_training_on_two_ranks_equals_training_on_one(
    tmp_path: Path, scan_file: Path, run_process: Command, train_model: Train
) -> None:
    """Also if a resumed run has another number of ranks."""
    uninterrupted = train_model(tmp_path / "uninterrupted", max_epochs=3, update_probe=True)
    folder = train_model(tmp_path / "distributed", max_epochs=1, update_probe=True)
    arguments = make_train_arguments(scan_file, folder, "--max_epochs", "2", "--update_probe", "--resume")
    outcome = run_process(*TORCHRUN, "-m", "ptycho_torch.train", *arguments)
    assert (outcome.code, outcome.out.count("loss")) == (0, 1), outcome.err
    assert outcome.err.count("resuming after epoch 1") == outcome.err.count("validation: ") == 1, outcome.err
    assert load_model(folder).provenance["epochs"] == 2
    train_model(folder, max_epochs=3, update_probe=True, resume=True)
    assert read_losses(folder) == pytest.approx(read_losses(uninterrupted), rel=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in uninterrupted.iterdir())


def test_inference_on_two_ranks_writes_the_bytes_of_one(
    tmp_path: Path, scan_file: Path, train_model: Train, run_process: Command, run_main: Command
) -> None:
    """With groups across the shards, and with learned positions that inference refines further."""
    model = train_model(tmp_path / "model", max_epochs=20, update_positions=True)
    assert load_model(model).model.get_position_offsets(0).abs().max() > 0
    arguments = ["--model_path", model, "--test_data", scan_file, "--batch_size", "5", "--gridsize", "2"]
    arguments += ["--device", "cpu", "--no_report", "--update_positions", "--output_dir"]
    assert run_main("inference", *arguments, tmp_path / "single").code == 0
    outcome = run_process(*TORCHRUN, "-m", "ptycho_torch.inference", *arguments, tmp_path / "distributed")
    assert (outcome.code, outcome.out.count("R 0.")) == (0, 1), outcome.err
    assert {path.name for path in (tmp_path / "distributed").iterdir()} >= {"reconstruction.npz", "metrics.json"}
    for name in ("reconstruction.npz", "metrics.json"):
        assert (tmp_path / "distributed" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()


def test_lost_rank_ends_the_run_with_a_one_line_error(
    tmp_path: Path, scan_file: Path, run_process: Command, train_model: Train
) -> None:
    folder = tmp_path / "model"
    arguments = make_train_arguments(scan_file, folder, *ENDLESS)
    outcome = run_process(
        *TORCHRUN, HERE / "failing_rank.py", "SIGKILL", *arguments
    )  # within the time limit of the fixture
    messages = [line for line in outcome.err.splitlines() if line.startswith("train: ")]
    assert outcome.code != 0
    assert len(messages) == 1, outcome.err
    assert "rank 1 of 2 was lost" in messages[0] or "the launcher ended this process" in messages[0]
    assert "--resume" in messages[0]
    assert not (folder / "bundle.json").exists()
    saved = read_losses(train_model(folder, max_epochs=0, resume=True))
    assert saved[:2] == pytest.approx(read_losses(train_model(tmp_path / "uninterrupted")), rel=1e-5)
    resumed = read_losses(train_model(folder, max_epochs=len(saved) // 2 + 1, resume=True))
    assert (resumed[:-2], len(resumed)) == (saved, len(saved) + 2)


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_ends_a_rank_that_waits_for_a_stopped_rank(stopped: int, tmp_path: Path, scan_file: Path) -> None:
    """The main thread waits for a message, where Python calls no signal handler; the other rank is stopped, not lost.

    A stopped rank 0 holds the store by which ranks agree on which of them reports an error.
    """
    folder = tmp_path / "model"
    arguments = [
        sys.executable,
        HERE / "failing_rank.py",
        "SIGSTOP",
        *make_train_arguments(scan_file, folder, *ENDLESS),
    ]
    with socket.socket() as probe_socket:
        probe_socket.bind(("localhost", 0))
        port = probe_socket.getsockname()[1]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    environment["FAILING_RANK"] = str(stopped)
    other = subprocess.Popen(arguments, env=environment | {"RANK": str(stopped)}, stderr=subprocess.DEVNULL)
    run = subprocess.Popen(arguments, env=environment | {"RANK": str(1 - stopped)}, stderr=subprocess.PIPE, text=True)
    try:
        assert os.WIFSTOPPED(os.waitpid(other.pid, os.WUNTRACED)[1])
        time.sleep(1)  # the rank then waits for a message
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=30)
    finally:
        for process in (run, other):
            process.kill()
            process.wait()
    assert run.returncode == 2
    assert [line.partition(" process")[0] for line in err.splitlines() if line.startswith("train: ")] == [
        "train: the launcher ended this"
    ]


@pytest.mark.slow
def test_bad_input_gives_one_line_from_one_rank(tmp_path: Path, run_process: Command) -> None:
    arguments = make_train_arguments(tmp_path / "none.npz", tmp_path / "model")
    outcome = run_process(*TORCHRUN, "-m", "ptycho_torch.train", *arguments)
    assert outcome.code != 0
    assert [line for line in outcome.err.splitlines() if line.startswith("train: ")] == [
        f"train: {tmp_path / 'none.npz'}: there is no such file; give the path of a scan file (NPZ)"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_on_two_ranks_saves_complete_epochs(tmp_path: Path, scan_file: Path, train_model: Train) -> None:
    folder = tmp_path / "model"
    arguments = map(str, [*TORCHRUN, "-m", "ptycho_torch.train", *make_train_arguments(scan_file, folder, *ENDLESS)])
    run = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)
    state = folder / "checkpoints" / "last" / "state.safetensors"
    deadline = time.monotonic() + 60
    first_time = None  # the first checkpoint is of the untrained model
    while time.monotonic() < deadline:
        if state.exists():
            first_time = first_time or state.stat().st_mtime_ns
            if state.stat().st_mtime_ns > first_time:
                break
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode != 0
    assert [line.split(" after ")[0] for line in err.splitlines() if "interrupted" in line] == ["interrupted"]
    epochs = load_model(folder).provenance["epochs"]
    assert epochs >= 1
    assert len(read_losses(train_model(folder, max_epochs=epochs + 1, resume=True))) == 2 * (epochs + 1)
