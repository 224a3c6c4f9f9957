"""Several processes under torchrun do what one does."""

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


def training(scan_file: Path, folder: Path, *more: str) -> list[str]:
    """The words behind ``train`` that do what ``train_to`` does."""
    words = "--batch_size 6 --width 4 --device cpu --logger none --precision fp32"
    return ["--train_data_file", str(scan_file), "--output_dir", str(folder), *words.split(), *more]


def losses(folder: Path) -> list[float]:
    with (folder / "history.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream) for name in ("loss", "val_loss")]


def test_identities_over_two_ranks(run_process: Command) -> None:
    done = run_process(*TORCHRUN, HERE / "identities.py", PYTHONPATH=os.pathsep.join([str(HERE.parent), *sys.path]))
    assert done.code == 0, done.err


def test_one_process_does_not_import_accelerate(tmp_path: Path, scan_file: Path, run_process: Command) -> None:
    words = training(scan_file, tmp_path / "model", "--max_epochs", "1", "--quiet")
    code = f"import sys; from ptycho_torch.train import main; main({words!r}); print('accelerate' in sys.modules)"
    done = run_process("-c", code)
    assert done.out.splitlines()[-1] == "False", done.err


def test_a_training_on_two_ranks(tmp_path: Path, scan_file: Path, run_process: Command, train_model: Train) -> None:
    """Begun on one rank, gone on with on two and again on one, it is that of one rank all along."""
    straight = train_model(tmp_path / "straight", max_epochs=3, update_probe=True)
    folder = train_model(tmp_path / "shared", max_epochs=1, update_probe=True)
    words = training(scan_file, folder, "--max_epochs", "2", "--update_probe", "--resume")
    done = run_process(*TORCHRUN, "-m", "ptycho_torch.train", *words)
    assert (done.code, done.out.count("loss")) == (0, 1), done.err
    assert done.err.count("resuming after epoch 1") == done.err.count("validation: ") == 1, done.err
    assert load_model(folder).provenance["epochs"] == 2
    train_model(folder, max_epochs=3, update_probe=True, resume=True)
    assert losses(folder) == pytest.approx(losses(straight), rel=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in straight.iterdir())


def test_inference_on_two_ranks(
    tmp_path: Path, scan_file: Path, train_model: Train, run_process: Command, run_main: Command
) -> None:
    """The same bytes where no clock is in the file, with groups across the shares and positions that were learned and
    are then moved further."""
    model = train_model(tmp_path / "model", max_epochs=20, update_positions=True)
    assert load_model(model).model.get_position_offsets(0).abs().max() > 0
    words = ["--model_path", model, "--test_data", scan_file, "--batch_size", "5", "--gridsize", "2"]
    words += ["--device", "cpu", "--no_report", "--update_positions", "--output_dir"]
    assert run_main("inference", *words, tmp_path / "alone").code == 0
    done = run_process(*TORCHRUN, "-m", "ptycho_torch.inference", *words, tmp_path / "shared")
    assert (done.code, done.out.count("R 0.")) == (0, 1), done.err
    assert {path.name for path in (tmp_path / "shared").iterdir()} >= {"reconstruction.npz", "metrics.json"}
    for name in ("reconstruction.npz", "metrics.json"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_lost_rank_ends_the_run_with_a_sentence(
    tmp_path: Path, scan_file: Path, run_process: Command, train_model: Train
) -> None:
    folder = tmp_path / "model"
    words = training(scan_file, folder, *ENDLESS)
    done = run_process(*TORCHRUN, HERE / "dying.py", "SIGKILL", *words)  # within its limit of time
    told = [line for line in done.err.splitlines() if line.startswith("train: ")]
    assert done.code != 0
    assert len(told) == 1, done.err
    assert "rank 1 of 2 was lost" in told[0] or "the launcher ended this process" in told[0]
    assert "--resume" in told[0]
    assert not (folder / "bundle.json").exists()
    kept = losses(train_model(folder, max_epochs=0, resume=True))
    assert kept[:2] == pytest.approx(losses(train_model(tmp_path / "straight")), rel=1e-5)
    resumed = losses(train_model(folder, max_epochs=len(kept) // 2 + 1, resume=True))
    assert (resumed[:-2], len(resumed)) == (kept, len(kept) + 2)


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_ends_a_rank_that_waits_for_one_that_says_nothing(
    stopped: int, tmp_path: Path, scan_file: Path
) -> None:
    """Its main thread is then in a message, where Python calls no handler; the other rank is stopped, not gone, and
    holds the store by which ranks agree on who speaks if it is the first.
    """
    folder = tmp_path / "model"
    words = [sys.executable, HERE / "dying.py", "SIGSTOP", *training(scan_file, folder, *ENDLESS)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    where["FATED"] = str(stopped)
    other = subprocess.Popen(words, env=where | {"RANK": str(stopped)}, stderr=subprocess.DEVNULL)
    run = subprocess.Popen(words, env=where | {"RANK": str(1 - stopped)}, stderr=subprocess.PIPE, text=True)
    try:
        assert os.WIFSTOPPED(os.waitpid(other.pid, os.WUNTRACED)[1])
        time.sleep(1)  # by then the other waits
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
def test_bad_input_is_one_sentence_of_all_ranks(tmp_path: Path, run_process: Command) -> None:
    words = training(tmp_path / "none.npz", tmp_path / "model")
    done = run_process(*TORCHRUN, "-m", "ptycho_torch.train", *words)
    assert done.code != 0
    assert [line for line in done.err.splitlines() if line.startswith("train: ")] == [
        f"train: {tmp_path / 'none.npz'}: there is no such file; give the path of a scan file (NPZ)"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_on_two_ranks_saves_what_is_done(tmp_path: Path, scan_file: Path, train_model: Train) -> None:
    folder = tmp_path / "model"
    words = map(str, [*TORCHRUN, "-m", "ptycho_torch.train", *training(scan_file, folder, *ENDLESS)])
    run = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    state = folder / "checkpoints" / "last" / "state.safetensors"
    deadline = time.monotonic() + 60
    untrained = None
    while time.monotonic() < deadline:
        if state.exists():
            untrained = untrained or state.stat().st_mtime_ns
            if state.stat().st_mtime_ns > untrained:
                break
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode != 0
    assert [line.split(" after ")[0] for line in err.splitlines() if "interrupted" in line] == ["interrupted"]
    done = load_model(folder).provenance["epochs"]
    assert done >= 1
    assert len(losses(train_model(folder, max_epochs=done + 1, resume=True))) == 2 * (done + 1)
