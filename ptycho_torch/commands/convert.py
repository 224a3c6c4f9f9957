"""Convert the NPZ file of another program to a canonical scan file.

    python -m ptycho_torch.convert siemens-star-small.npz.bz2 star.npz --measurement counts --origin corner

Settings give what the file does not record: keys, axis order, counts or amplitudes, the position of zero frequency, the
orientation of the patterns, and the unit, sign and order of the coordinates.
"""

from dataclasses import fields
from pathlib import Path

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import ConvertConfig
from ptycho_torch.io.generic import GenericLayout, convert_file


def convert(config: ConvertConfig) -> Path:
    """Convert ``config.source`` to the canonical scan file ``config.destination`` and return the path of that file.

    Raises:
        PtychoError: the source cannot be read or breaks the contract, a setting is missing, or the destination cannot
            be written; then no file remains.
    """
    settings = {field.name: getattr(config, field.name) for field in fields(GenericLayout)}
    convert_file(config.source, config.destination, **settings)
    return config.destination


def run(config: ConvertConfig, invocation: Invocation) -> int:
    """Run the command and return the exit code."""
    del invocation
    path = convert(config)
    if not config.quiet:
        print(f"Wrote {path}. To list its content: python -m ptycho_torch.describe {path}")
    return 0
