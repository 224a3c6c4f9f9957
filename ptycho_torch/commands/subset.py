"""Write a small deterministic subset of a large scan file, with a JSON record of its origin.

    python -m ptycho_torch.subset --source scan.npz --output fixture.npz --subset_size 64

The subset is a canonical scan file; the same source and settings give the same bytes. Patterns, coordinates and all
other arrays with one entry per pattern are indexed alike; the file keeps the indices as ``source_index``.
"""

from collections.abc import Iterator
from typing import Any

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import SubsetConfig
from ptycho_torch.config.input import collect_input_settings
from ptycho_torch.io.subset import write_subset


def subset(config: SubsetConfig) -> dict[str, Any]:
    """Write the subset ``config.output`` and its record; return the record.

    Raises:
        PtychoError: the source cannot be read or breaks the contract, a setting does not fit it, or a file cannot be
            written; then no new file remains.
    """
    return write_subset(
        config.source,
        config.output,
        metadata_out=config.metadata_out,
        subset_size=config.subset_size,
        strategy=config.strategy,
        seed=config.seed,
        crop=config.crop,
        bin=config.bin,
        **collect_input_settings(config),
    )


def run(config: SubsetConfig, invocation: Invocation) -> int:
    """Run the command and return the exit code."""
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
        "the source's positions lie under a selected probe"
    )
    yield f"  overlap   {_format_fraction(fixture['overlap'])}, in the source {_format_fraction(source['overlap'])}"
    disjoint, overlapping = groups["apart"], groups["with_overlap"]
    yield f"  groups    {disjoint} disjoint at gridsize {groups['gridsize']}, {overlapping} overlapping"
    yield f"  photons   {_format_photons(record['photons'])}"
    broken_rules = [violation["rule"] for violation in record["contract"]["violations"]]
    verdict = "kept" if record["contract"]["valid"] else "broken"
    yield f"  contract  {verdict}{': ' * bool(broken_rules)}{', '.join(broken_rules)}"
    yield f"  sha256    {record['fixture']['sha256']}"
    yield f"  record    {config.metadata_out or config.output.with_suffix('.json')}"


def _format_fraction(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _format_photons(photons: dict[str, Any]) -> str:
    if photons["per_unit"] is None:
        return "unknown; each reader assumes a scale"
    return f"{photons['per_pattern']:.7g} per pattern, from the {photons['origin']}"
