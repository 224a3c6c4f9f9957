"""Cut a small deterministic fixture out of a big scan file, with a JSON record of how it was made.

    python -m ptycho_torch.subset --source scan.npz --output fixture.npz --subset_size 64

The fixture is a canonical scan file with the same bytes on any day. Patterns, coordinates and all else that belongs to
a pattern are cut by the same indices, which the file keeps as ``source_index``.
"""

from collections.abc import Iterator
from typing import Any

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import SubsetConfig
from ptycho_torch.io.subset import write_subset


def subset(config: SubsetConfig) -> dict[str, Any]:
    """Write the fixture ``config.output`` and its record; return the record.

    Raises:
        PtychoError: the source cannot be read or breaks the contract, a setting does not fit it, or a file cannot be
            written; then nothing new is left.
    """

    return write_subset(config)


def run(config: SubsetConfig, invocation: Invocation) -> int:
    """Run the command; return the exit code."""
    del invocation
    record = subset(config)
    if not config.quiet:
        print("\n".join(_format_report(record, config)))
    return 0


def _format_report(record: dict[str, Any], config: SubsetConfig) -> Iterator[str]:
    count, size, _ = record["fixture"]["arrays"]["diffraction"]["shape"]
    coverage, groups = record["coverage"], record["groups"]
    fixture, source = (record["overlap"][name] for name in ("fixture", "source"))
    yield f"{config.output}: {count} of {record['source']['patterns']} patterns, {size} × {size} pixels"
    yield (
        f"  coverage  {coverage['y']:.1%} of the range of y, {coverage['x']:.1%} of x; {coverage['positions']:.1%} of "
        "the source's positions lie under a kept probe"
    )
    yield f"  overlap   {_format_fraction(fixture['overlap'])}, in the source {_format_fraction(source['overlap'])}"
    yield f"  groups    {groups['apart']} apart at gridsize {groups['gridsize']}, {groups['with_overlap']} with overlap"
    yield f"  photons   {_format_photons(record['photons'])}"
    broken = [violation["rule"] for violation in record["contract"]["violations"]]
    yield f"  contract  {'kept' if record['contract']['valid'] else 'broken'}{': ' * bool(broken)}{', '.join(broken)}"
    yield f"  sha256    {record['fixture']['sha256']}"
    yield f"  record    {config.metadata_out or config.output.with_suffix('.json')}"


def _format_fraction(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _format_photons(photons: dict[str, Any]) -> str:
    if photons["per_unit"] is None:
        return "nothing says how many; each reader assumes its own"
    return f"{photons['per_pattern']:.7g} a pattern, known from the {photons['origin']}"
