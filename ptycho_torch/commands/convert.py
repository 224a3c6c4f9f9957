"""Make a canonical scan file from the NPZ file of another program.

    python -m ptycho_torch.convert siemens-star-small.npz.bz2 star.npz --measurement counts --origin corner

Settings say what the file cannot: key names, axis order, counts or amplitudes, where zero frequency lies, the
orientation of the patterns, and the unit, sign and order of the coordinates.
"""

from pathlib import Path

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import ConvertConfig
from ptycho_torch.io.generic import convert_file


def convert(config: ConvertConfig) -> Path:
    """Write the canonical file of ``config.source`` to ``config.destination`` and return the latter.

    Raises:
        PtychoError: the source cannot be read or breaks the contract, a setting is missing, or the destination cannot
            be written; then no file is left.
    """

    convert_file(config)
    return config.destination


def run(config: ConvertConfig, invocation: Invocation) -> int:
    """Run the command; return the exit code."""
    del invocation
    written = convert(config)
    if not config.quiet:
        print(f"{written}: written; python -m ptycho_torch.describe shows what is in it")
    return 0
