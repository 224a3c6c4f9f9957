"""Simulate a scan, train a network on it, reconstruct the scan and evaluate the result.

::

    python -m ptycho_torch.demo --output_dir demo_output

Prints each command before it runs it.
"""

import shlex
from importlib import import_module
from pathlib import Path

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.workflow import DemoConfig
from ptycho_torch.core.errors import PtychoError
from ptycho_torch.core.files import make_output_dir

TRAIN_EPOCHS = 30
"""About twice the default, which takes a minute more and gives a sharper image."""


def demo(config: DemoConfig) -> Path:
    """Run the commands from simulation to evaluation in ``config.output_dir``, and return the path of the report.

    Raises:
        PtychoError: a command failed, after it printed the reason.
    """
    folder = make_output_dir(config.output_dir)
    for words in _list_commands(folder, config.seed):
        print(f"\n$ python -m ptycho_torch.{shlex.join(words)}", flush=True)
        command, *arguments = [*words, "--quiet"] if config.quiet else words
        code = import_module(f"ptycho_torch.{command}").main(arguments)
        if code:
            raise PtychoError(f"{command} ended with exit code {code}; expected 0; its message is above")
    return folder / "evaluation" / "report.html"


def _list_commands(folder: Path, seed: int) -> list[list[str]]:
    """Return the words of each command line, from the name of the command on."""
    scan, model, result, evaluation = (
        str(folder / name) for name in ("scan.npz", "model", "reconstruction", "evaluation")
    )
    training = ["--seed", str(seed), "--max_epochs", str(TRAIN_EPOCHS)]
    reconstruction = str(Path(result) / "reconstruction.npz")
    return [
        ["simulate", scan, "--preset", "run1084", "--photons", "1e6", "--seed", str(seed)],
        ["describe", scan],
        ["train", "--train_data_file", scan, "--output_dir", model, *training],
        ["inference", "--model_path", model, "--test_data", scan, "--output_dir", result],
        ["evaluate", reconstruction, "--truth", scan, "--scan", scan, "--output_dir", evaluation],
    ]


def run(config: DemoConfig, invocation: Invocation) -> int:
    """Run the commands, and print the path of the report; return the exit code."""
    del invocation
    print(f"\nThe report with the object and its scores: {demo(config)}")
    return 0
