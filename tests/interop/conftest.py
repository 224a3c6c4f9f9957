"""Run other programs in their own environment, and write their files once per session."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from peer_cases import WrittenFile
from write_peer_files import ABSENT

HERE = Path(__file__).parent
PYTHON_OF_PEERS = "PTYCHO_TORCH_PEER_PYTHON"
"""Environment variable: the Python with the other programs; `make interop` sets it."""

PATH_OF_PEERS = "PTYCHO_TORCH_PEER_PATH"
"""Environment variable: folders with checkouts of other programs, as in PYTHONPATH; optional."""

FILES_OF_PEERS = "PTYCHO_TORCH_PEER_FILES"
"""Environment variable: a folder with files that `write_peer_files.py` has written before; optional."""

REAL_FILES = "PTYCHO_TORCH_INTEROP"
"""Environment variable: a folder with measured files of public repositories, by their names there."""


def run_peer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `write_peer_files.py` with the Python of the other programs; skip the test where a program is absent."""
    python = os.environ.get(PYTHON_OF_PEERS, str(ROOT / ".venv_peers/bin/python"))
    if not Path(python).exists():
        pytest.skip(f"no Python with the other programs: {PYTHON_OF_PEERS} is unset (make interop)")
    environment = {**os.environ, "PYTHONPATH": os.environ.get(PATH_OF_PEERS, ""), "PYTHONWARNINGS": "ignore"}
    outcome = subprocess.run(
        [python, str(HERE / "write_peer_files.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    if outcome.returncode == ABSENT:
        pytest.skip(f"the program of {arguments[0]} is absent: {outcome.stderr.strip().splitlines()[-1]}")
    return outcome


@pytest.fixture(scope="session")
def peer_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], WrittenFile]:
    """Return the file of a program by its name and side; the first request writes it."""
    folders: dict[str, Path] = {}

    def get(name: str, side: int) -> WrittenFile:
        if FILES_OF_PEERS in os.environ:
            folders[name] = Path(os.environ[FILES_OF_PEERS])
        elif name not in folders:
            folder = tmp_path_factory.mktemp(name)
            outcome = run_peer(name, str(folder))
            assert outcome.returncode == 0, outcome.stderr
            folders[name] = folder
        truth = folders[name] / f"truth_{name}_{side}.npz"
        facts = json.loads(truth.with_suffix(".json").read_text())
        with np.load(truth) as file:
            return WrittenFile(folders[name] / facts["file"], facts, dict(file))

    return get


@pytest.fixture
def real_file() -> Callable[[str], Path]:
    """Return a measured file by its name, or skip the test where the file is absent."""

    def get(name: str) -> Path:
        path = Path(os.environ.get(REAL_FILES, "")) / name
        if REAL_FILES not in os.environ or not path.exists():
            pytest.skip(f"{name} is absent from the folder {REAL_FILES}")
        return path

    return get


@pytest.fixture(scope="session")
def check_peer() -> Callable[[str, Path, int], float]:
    """Let a program read a file and return the relative error of its patterns; see `write_peer_files.py`."""

    def check(name: str, path: Path, side: int) -> float:
        outcome = run_peer(name, str(path), str(side))
        assert outcome.returncode == 0, outcome.stderr[-2000:]
        return float(outcome.stdout.splitlines()[-1])

    return check
