"""Make a canonical scan file from the NPZ file of another program.

    python -m ptycho_torch.convert siemens-star-small.npz.bz2 star.npz --measurement counts --origin corner

Settings say what the file cannot: key names, axis order, counts or amplitudes, where zero frequency lies, the
orientation of the patterns, and the unit, sign and order of the coordinates.
"""

from collections.abc import Sequence
from pathlib import Path

from ptycho_torch.cli import run_verb
from ptycho_torch.core.config import ConvertConfig


def convert(config: ConvertConfig) -> Path:
    """Write the canonical file of ``config.source`` to ``config.destination`` and return the latter.

    Raises:
        PtychoError: the source cannot be read or breaks the contract, a setting is missing, or the destination cannot
            be written; then no file is left.
    """
    from ptycho_torch.data.foreign import convert_file

    convert_file(config)
    return config.destination


def _command(config: ConvertConfig) -> None:
    written = convert(config)
    if not config.quiet:
        print(f"{written}: written; python -m ptycho_torch.describe shows what is in it")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ptycho-torch convert``."""
    return run_verb(ConvertConfig, _command, argv, "ptycho-torch convert")


if __name__ == "__main__":
    raise SystemExit(main())
