"""Convert a scan file of any supported format to another one.

    python -m ptycho_torch.convert scan.cxi scan.npz
    python -m ptycho_torch.convert siemens-star-small.npz.bz2 star.npz --measurement counts --origin corner

The content decides the format of the source, the suffix the format of the destination; docs/formats.md lists all.
Settings give what the file does not record: keys, axis order, counts or amplitudes, the position of zero frequency, the
orientation of the patterns, wavelength and distances, and the unit, sign and order of the coordinates.
"""

import logging
from pathlib import Path

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import ConvertConfig
from ptycho_torch.config.input import collect_input_settings
from ptycho_torch.core.deferred import call_deferred
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.orientation_search import apply_orientation
from ptycho_torch.io.convert import check_destination, convert_file
from ptycho_torch.io.scan import list_written_files, read_input, save_scan

log = logging.getLogger(__name__)


def convert(config: ConvertConfig, observer: Observer | None = None) -> Path:
    """Convert ``config.source`` to the scan file ``config.destination`` and return the path of that file.

    Raises:
        PtychoError: the source cannot be read or breaks the contract, a setting is missing, or the destination cannot
            be written; then no file remains.
    """
    if config.orientation == "auto":
        return _convert_oriented(config, observer)
    convert_file(config.source, config.destination, config.output_format, **collect_input_settings(config))
    return config.destination


def _convert_oriented(config: ConvertConfig, observer: Observer | None) -> Path:
    """Convert the source in the orientation that short reconstructions find."""
    check_destination(config.source, config.destination)
    scan = read_input(config.source, **collect_input_settings(config)).scan
    # Deferred, because the other conversions need no torch.
    result = call_deferred("ptycho_torch.engines.orientation:find_orientation", scan, observer=observer)
    oriented = apply_orientation(scan, result)
    log.info("orientation: %s", result.verdict)
    save_scan(config.destination, oriented, format=config.output_format)
    return config.destination


def run(config: ConvertConfig, invocation: Invocation) -> int:
    """Run the command and return the exit code."""
    path = convert(config, invocation.observer)
    if not config.quiet:
        files = " and ".join(map(str, list_written_files(path, config.output_format)))
        print(f"Wrote {files}. To list its content: python -m ptycho_torch.describe {path}")
    return 0
