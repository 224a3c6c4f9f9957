"""Errors of a command: one line on stderr and exit code 2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
ONE_OF_TWO_PROCESSES = {"RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize("name", ["train", "inference", "describe", "convert", "evaluate"])
def test_unknown_flags_are_one_line_and_exit_code_2(name: str, run_main: Command) -> None:
    code, out, err = run_main(name, "--nonsense")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"{name}: ")
    assert f"ptycho-torch {name} --help" in err


def test_invalid_settings_are_named_as_flags(run_main: Command) -> None:
    code, _, err = run_main("train", "--train_data_file", "a.npz", "--output_dir", "b", "--batch_size", "0")
    assert (code, err) == (2, "train: --batch_size is 0; expected a number above 0\n")


def test_debug_prints_the_traceback(run_main: Command) -> None:
    code, _, err = run_main("train", "--debug", "--train_data_file", "none.npz", "--output_dir", "none")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("train: none.npz: there is no such file")


@pytest.mark.parametrize(
    ("missing", "environment"),
    [("torch", {}), ("safetensors", {}), ("yaml", {}), ("accelerate", ONE_OF_TWO_PROCESSES)],
)
def test_a_missing_dependency_is_one_line(
    scan_file: Path, tmp_path: Path, run_process: Command, missing: str, environment: dict[str, str]
) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None; from ptycho_torch.train import main; "
        f"words = ['--train_data_file', {str(scan_file)!r}, '--output_dir', 'out', '--max_epochs', '0', '--quiet']; "
        "raise SystemExit(main(words))"
    )
    done = run_process("-c", code, cwd=tmp_path, **environment)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"{missing} is not installed" in done.err
    assert "pip install" in done.err
