"""The commands by name, and the function behind ``python -m ptycho_torch.NAME``.

A launcher parses the command line before it imports the command, so that ``--help`` and errors need no torch.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from ptycho_torch.cli.runner import run_command


class Command(NamedTuple):
    """Where a command's settings are, and how it may be started."""

    config: str
    """Module and class of its settings, ``module:Class``."""

    summary: str
    """One line for the list of commands."""

    distributed: bool = False
    """Whether ``torchrun`` may start it in several processes."""


COMMANDS = {
    "train": Command("config.train:TrainConfig", "train a network on a scan, without labels", distributed=True),
    "pretrain": Command(
        "config.pretrain:PretrainConfig", "train a network on simulated patterns, for scans that it never saw", True
    ),
    "inference": Command("config.inference:InferenceConfig", "reconstruct a scan with a trained network", True),
    "reconstruct": Command(
        "config.reconstruct:ReconstructConfig", "reconstruct a scan by iterative engines, a network, or a chain of them"
    ),
    "export": Command(
        "config.inference:ExportConfig", "write a trained network as an ONNX file, which runs without torch"
    ),
    "evaluate": Command(
        "config.inference:EvaluateConfig", "measure a reconstruction against the truth or the patterns"
    ),
    "simulate": Command("config.data:SimulateConfig", "make a scan file from a simulated object"),
    "describe": Command("config.data:DescribeConfig", "say what is in a scan file, and what breaks the contract"),
    "convert": Command("config.data:ConvertConfig", "make a canonical scan file from a foreign one"),
    "subset": Command("config.data:SubsetConfig", "cut a small deterministic fixture out of a big scan"),
    "sweep": Command("config.workflow:SweepConfig", "measure what the runtime of training depends on"),
    "demo": Command("config.workflow:DemoConfig", "simulate, train, infer and evaluate in one go"),
}


def make_main(name: str) -> Callable[[Sequence[str] | None], int]:
    """Return the ``main`` of the command ``name``: it takes the words of the command line, and returns an exit code."""
    command = COMMANDS[name]

    def main(argv: Sequence[str] | None = None) -> int:
        words = sys.argv[1:] if argv is None else list(argv)
        return run_command(name, command.config, words, distributed=command.distributed)

    return main


def forward_attributes(name: str) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` that finds names in the module of the command ``name``."""

    def get(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(import_module(f"ptycho_torch.commands.{name}"), attribute)

    return get
