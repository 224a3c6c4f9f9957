"""Completion scripts of the three shells, and their syntax where the shell is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ptycho_torch.__main__ import main
from ptycho_torch.cli.commands import COMMANDS
from ptycho_torch.cli.completion import SHELLS, format_completion


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_contain_commands_and_flags(shell: str, tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    script = format_completion(shell)
    for name in (*COMMANDS, "update_positions", "no_report", "print_config", "mlflow"):
        assert name in script
    (tmp_path / "script").write_text(script)
    if shutil.which(shell):
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_bash_completes_a_flag(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    (tmp_path / "script").write_text(format_completion("bash"))
    code = (
        f"source {tmp_path / 'script'}; COMP_WORDS=(ptycho-torch train --update_pos); COMP_CWORD=2; "
        'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; '
        '_shtab_ptycho_torch ptycho-torch --update_pos train; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "--update_positions\n"


@pytest.mark.parametrize("words", [["completion"], ["completion", "ksh"]])
def test_other_shells_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "expected one of bash, zsh, fish" in err
