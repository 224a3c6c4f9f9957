"""The command pretrain, and inference and training with its network."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.scan import Scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import save_scan
from ptycho_torch.models.saved_model import load_model

Command = Callable[..., Any]

BRIEF = ("--batch_size", "4", "--width", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, scan_factory: Callable[..., Scan]) -> Path:
    """A scan of 32 × 32 pixels."""
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    save_scan(path, scan_factory(n=25, size=32))
    return path


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory, file: Path, run_process: Command) -> Path:
    """The folder of a pretraining on the scan's probe and on families, in a process of its own."""
    folder = tmp_path_factory.mktemp("pretrained") / "a model"
    words = ("--output_dir", folder, "--probe", file, "--probe_family", "fresnel", "vortex", "--steps", 6, *BRIEF)
    done = run_process("-m", "ptycho_torch.pretrain", *map(str, words))
    assert (done.code, "Traceback" in done.err) == (0, False), done.err
    assert "24 patterns" in done.out
    return folder


def test_output_is_a_model_without_a_probe(general: Path) -> None:
    assert {path.name for path in general.iterdir()} == {
        "bundle.json",
        "checkpoints",
        "config.yaml",
        "history.csv",
        "model.safetensors",
        "timing.json",
    }
    bundle = load_model(general)
    assert (bundle.scans, bundle.model.probes, bundle.model.size) == ((), [], 32)
    assert bundle.provenance["lessons"] == 6


def test_inference_reconstructs_a_scan_outside_the_pretraining(
    general: Path, file: Path, tmp_path: Path, run_main: Command
) -> None:
    words = ("--model_path", general, "--test_data", file, "--quiet", "--no_report")
    done = run_main("inference", *words, "--output_dir", tmp_path / "own")
    assert (done.code, done.err) == (0, "")
    assert load_reconstruction(tmp_path / "own" / "reconstruction.npz").metadata["probe"] == "the scan's own"
    assert json.loads((tmp_path / "own" / "metrics.json").read_text())["r"] < 1
    better = tmp_path / "own" / "reconstruction.npz"
    assert run_main("inference", *words, "--probe", better, "--output_dir", tmp_path / "given").code == 0
    own, given = (load_reconstruction(tmp_path / name / "reconstruction.npz") for name in ("own", "given"))
    np.testing.assert_allclose(own.object, given.object, atol=1e-4)


def test_training_starts_from_the_pretrained_network(
    general: Path, file: Path, tmp_path: Path, run_main: Command
) -> None:
    words = (
        "--train_data_file",
        file,
        "--init_model",
        general,
        "--update_probe",
        "--max_epochs",
        1,
        "--logger",
        "none",
    )
    done = run_main("train", *words, "--output_dir", tmp_path / "tuned", "--quiet")
    assert done.code == 0, done.err
    tuned = load_model(tmp_path / "tuned")
    assert tuned.model.config == load_model(general).model.config
    assert len(tuned.model.probes) == 1


def test_resumed_pretraining_gives_the_same_bytes(general: Path, file: Path, tmp_path: Path, run_main: Command) -> None:
    families = ("--probe", file, "--probe_family", "fresnel", "vortex")
    words = ("--output_dir", tmp_path / "model", *families, *BRIEF, "--quiet", "--steps")
    assert run_main("pretrain", *words, 2).code == 0
    assert run_main("pretrain", *words, 6, "--resume").code == 0
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (general / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--probe_family", "lens"), "families has lens; expected names of"),
        (("--size", "36"), "multiple of 8"),
        (("--probe_variation", "1"), "--probe"),
        (("--min_photons", "100", "--max_photons", "10"), "photons"),
        (("--masked_fraction", "2"), "--masked_fraction is 2.0"),
        (("--network", "unet"), "unet"),
        (("--probe", "nowhere.npz"), "nowhere.npz"),
        (("--resume",), "no checkpoint"),
        (("--steps", "0"), "--steps is 0"),
    ],
)
def test_bad_input_gives_a_one_line_error(
    words: tuple[str, ...], expected: str, tmp_path: Path, run_main: Command
) -> None:
    done = run_main("pretrain", "--output_dir", tmp_path / "none", *words)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert expected in done.err
    assert not (tmp_path / "none").exists()


def test_ctrl_c_leaves_a_complete_model(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ptycho_torch.pretrain", "--output_dir", tmp_path / "model", "--size", "32", *BRIEF]
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / "model" / "checkpoints" / "last" / "state.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "--resume" in err
    assert "Traceback" not in err
    assert load_model(tmp_path / "model").model.size == 32
