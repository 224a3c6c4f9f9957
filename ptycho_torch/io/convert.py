"""Convert a scan file from any supported format to another."""

from pathlib import Path
from typing import Any

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import read_input, save_scan


def convert_file(
    source: str | Path, destination: str | Path, output_format: str | None = None, **settings: Any
) -> Scan:
    """Convert a scan file of any supported format to another format.

    Args:
        source: scan file to read.
        destination: scan file to write.
        output_format: name of the format to write; None: by the suffix of ``destination``.
        **settings: settings of :func:`~ptycho_torch.io.scan.load_scan`.

    Returns:
        The converted scan.

    Raises:
        ConfigError: the destination is the source, or a setting is unknown, missing, or names a key that the file does
            not hold.
        DataError: the source cannot be read or the destination cannot be written.
        ContractError: the converted arrays break the contract.
    """
    source, destination = Path(source), Path(destination)
    check_destination(source, destination)
    scan = read_input(source, **settings).scan
    save_scan(destination, scan, format=output_format)
    return scan


def check_destination(source: Path, destination: Path) -> None:
    """Check that ``destination`` can be written and is not ``source``.

    Raises:
        ConfigError: both are the same file.
        DataError: the folder of the destination does not exist.
    """
    if destination.exists() and source.exists() and destination.samefile(source):
        raise ConfigError(f"{destination}: the destination is the source itself; choose another `destination`")
    if not destination.parent.is_dir():
        raise DataError(
            f"{destination}: there is no folder {destination.parent}; create it or choose another `destination`"
        )
