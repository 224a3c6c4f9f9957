"""Convert a scan file of any supported format to another one.

    python -m ptycho_torch.convert scan.cxi scan.npz
    python -m ptycho_torch.convert siemens-star-small.npz.bz2 star.npz --measurement counts --origin corner

The content decides the format of the source, the suffix the format of the destination; docs/formats.md lists all.
Settings give what the file does not record: keys, axis order, counts or amplitudes, the position of zero frequency, the
orientation of the patterns, wavelength and distances, and the unit, sign and order of the coordinates.
"""

from pathlib import Path

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import ConvertConfig
from ptycho_torch.config.input import collect_input_settings
from ptycho_torch.io.convert import convert_file


def convert(config: ConvertConfig) -> Path:
    """Convert ``config.source`` to the scan file ``config.destination`` and return the path of that file.

    Raises:
        PtychoError: the source cannot be read or breaks the contract, a setting is missing, or the destination cannot
            be written; then no file remains.
    """
    convert_file(config.source, config.destination, config.output_format, **collect_input_settings(config))
    return config.destination


def run(config: ConvertConfig, invocation: Invocation) -> int:
    """Run the command and return the exit code."""
    del invocation
    path = convert(config)
    if not config.quiet:
        print(f"Wrote {path}. To list its content: python -m ptycho_torch.describe {path}")
    return 0
