"""The launchers, the list of commands, and the help of each command, which imports neither torch nor NumPy."""

import dataclasses
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ptycho_torch.__main__ import main
from ptycho_torch.cli.commands import COMMANDS
from ptycho_torch.cli.parser import build_parser, required_fields
from ptycho_torch.config.base import GROUPS

Command = Callable[..., Any]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_imports_no_heavy_package(name: str, run_process: Command) -> None:
    done = run_process("-X", "importtime", "-m", f"ptycho_torch.{name}", "--help")
    assert done.code == 0
    assert done.out.startswith(f"usage: ptycho-torch {name}")
    modules = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert not modules & {"torch", "numpy", "scipy", "matplotlib", "skimage", "mlflow", "rich", "yaml"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_describes_every_setting(name: str) -> None:
    command = COMMANDS[name]
    text = build_parser(command.config_type, command.prog, command.description).format_help()
    usage, _, rest = text.partition("\n\n")
    assert rest[0].isupper()
    for field in dataclasses.fields(command.config_type):
        assert field.metadata["group"] in GROUPS
        assert re.search(rf"\b{field.name}\b|\b{field.name.upper()}\b", rest)
    for field in required_fields(command.config_type):
        assert re.search(rf" {field.name.upper()} | --{field.name} ", usage)
        assert f"[--{field.name}" not in usage
    settings = rest[rest.index("\n\n", len(command.description)) :]
    assert len(re.findall(r"\(default:\s|\(required\)", settings)) == len(dataclasses.fields(command.config_type))
    assert re.findall(r"^([A-Z][\w ]+):$", settings, flags=re.MULTILINE)[-1] == "General"


def test_every_command_has_a_launcher() -> None:
    for name in COMMANDS:
        assert callable(import_module(f"ptycho_torch.{name}").main)


def test_launchers_forward_the_names_of_the_command() -> None:
    assert import_module("ptycho_torch.demo").demo is import_module("ptycho_torch.commands.demo").demo


def test_importing_the_package_imports_no_torch(run_process: Command) -> None:
    code = "import sys, ptycho_torch; dir(ptycho_torch); ptycho_torch.load_scan; print('torch' in sys.modules)"
    assert run_process("-c", code).out == "False\n"


def test_describe_and_convert_import_no_torch(tmp_path: Path, scan_file: Path, run_process: Command) -> None:
    code = (
        "import sys; from ptycho_torch.__main__ import main; "
        f"codes = main(['describe', {str(scan_file)!r}]), main(['convert', {str(scan_file)!r}, 'copy.npz']); "
        "print(codes, 'torch' in sys.modules)"
    )
    assert run_process("-c", code, cwd=tmp_path).out.splitlines()[-1] == "(0, 0) False"


def test_the_program_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in COMMANDS)
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
    for words, message in (([], "no command given"), (["paint"], "unknown command paint")):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
