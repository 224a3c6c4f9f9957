"""From nothing to a report: simulate a scan, train on it, infer, stitch and evaluate.

::

    python -m ptycho_torch.demo --output_dir demo_output

Runs the same commands that a person would type, and shows each.
"""

import shlex
from pathlib import Path

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.workflow import DemoConfig
from ptycho_torch.core.errors import PtychoError
from ptycho_torch.core.files import make_output_dir

TRAIN_EPOCHS = 30
"""About twice the recipe: a minute or so more, for a picture worth looking at."""


def demo(config: DemoConfig) -> Path:
    """Run the whole road in ``config.output_dir``; return the report to open.

    Raises:
        PtychoError: a step failed; it has said why.
    """
    from importlib import import_module

    folder = make_output_dir(config.output_dir)
    scan, model, result = folder / "scan.npz", folder / "model", folder / "reconstruction"
    for words in (
        f"simulate {_quote(scan)} --preset run1084 --photons 1e6 --seed {config.seed}",
        f"describe {_quote(scan)}",
        f"train --train_data_file {_quote(scan)} --output_dir {_quote(model)} --seed {config.seed}"
        f" --max_epochs {TRAIN_EPOCHS}",
        f"inference --model_path {_quote(model)} --test_data {_quote(scan)} --output_dir {_quote(result)}",
        f"evaluate {_quote(result / 'reconstruction.npz')} --truth {_quote(scan)} --scan {_quote(scan)}"
        f" --output_dir {_quote(folder / 'evaluation')}",
    ):
        verb, *arguments = shlex.split(words)
        arguments += ["--quiet"] * config.quiet
        print(f"\n$ python -m ptycho_torch.{words}", flush=True)
        code = import_module(f"ptycho_torch.{verb}").main(arguments)
        if code:
            raise PtychoError(f"{verb} ended with exit code {code}")
    return folder / "evaluation" / "report.html"


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def run(config: DemoConfig, invocation: Invocation) -> int:
    """Run the command; return the exit code."""
    del invocation
    report = demo(config)
    print(f"\nThe picture of the object, and how good it is: open {report}")
    return 0
