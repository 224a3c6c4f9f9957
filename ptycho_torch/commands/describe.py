"""Describe a scan file: what it holds, how it is read and why, and where it breaks the contract.

    python -m ptycho_torch.describe scan.npz
    python -m ptycho_torch.describe scan.npz --json

The exit code is 0 for a file that can be loaded, 1 for one that breaks a MUST of ``specs/data_contracts.md`` and is
described nevertheless, 2 for one that cannot be read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.config.data import DescribeConfig
from ptycho_torch.io.profile import Profile, profile


def describe(
    path: Path,
    *,
    stats: bool = True,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
) -> Profile:
    """What the scan file at ``path`` holds; with ``stats=False`` from the array headers alone.

    Raises:
        DataError: the file cannot be read.
    """

    return profile(Path(path), stats=stats, axis_order=axis_order, measurement=measurement)


def text_of(found: Profile) -> str:
    """The findings for people, one a line."""
    return "\n".join([found.file, *_arrays(found.arrays), "", *_findings(found), "", *_contract(found)])


def _arrays(arrays: dict[str, dict[str, Any]]) -> Iterator[str]:
    width = max((len(key) for key in arrays), default=0)
    for key, array in sorted(arrays.items()):
        shape = " × ".join(map(str, array["shape"])) or "scalar"
        line = f"  {key:<{width}}  {array['dtype']:<10}  {shape:<18}"
        if "mean" in array:
            line += f"  {array['min']:.5g} to {array['max']:.5g}, mean {array['mean']:.5g}"
        if array.get("not_finite"):
            line += f", {array['not_finite']} not finite"
        yield line.rstrip()


def _findings(found: Profile) -> Iterator[str]:
    yield f"  axis order   {found.axis_order['order'] or 'open'}: {found.axis_order['reason']}"
    yield f"  measurement  {found.measurement['kind'] or 'open'}: {found.measurement['reason']}"
    if found.photons:
        origin = {"metadata": "the metadata say so", "lattice": "the counts are whole numbers", "assumed": "assumed"}
        yield (
            f"  photons      {found.photons['per_pattern']:.7g} a pattern, {found.photons['per_unit']:.9g} for one "
            f"squared unit of amplitude: {origin[found.photons['origin']]}"
        )
    if found.geometry:
        yield from _geometry(found.geometry)
    if found.object:
        place = "on" if found.object["on_grid"] else "not on"
        yield f"  object       {place} the coordinate grid; the patterns see {_box(found.object['seen'])}"
        if found.object["structure"]:
            yield f"               and it differs from its corner pixel in {_box(found.object['structure'])}"
        if found.object["coordinate_factor"] != 1:
            yield f"               with coordinates × {found.object['coordinate_factor']:g} it would be (see R27)"


def _geometry(geometry: dict[str, Any]) -> Iterator[str]:
    modes = "one probe mode" if geometry["modes"] == 1 else f"{geometry['modes']} probe modes"
    yield f"  patterns     {geometry['patterns']} of {geometry['size']} × {geometry['size']} pixels, {modes}"
    ranges = ", ".join(f"{axis} {geometry[axis][0]:.2f} to {geometry[axis][1]:.2f}" for axis in ("x", "y"))
    yield f"  coordinates  {ranges} pixels"
    if geometry["step"] is not None:
        yield f"  step         {geometry['step']:.3f} pixels (median distance to the nearest neighbour)"
    yield f"  probe        {geometry['probe_diameter']:.1f} pixels across (even disc of the same second moment)"
    if geometry["overlap"] is not None:
        yield f"  overlap      {geometry['overlap']:.1%} (1 - step / probe diameter)"


def _box(box: list[float]) -> str:
    top, bottom, left, right = (f"{edge:.1f}".removesuffix(".0") for edge in box)
    return f"rows {top} to {bottom}, columns {left} to {right}"


def _contract(found: Profile) -> Iterator[str]:
    if not found.violations:
        yield "  keeps every rule of the contract"
    for violation in found.violations:
        yield f"  {violation['level']:<6} {violation['rule']:<4} {violation['message']}"
    if found.valid and found.violations:
        yield "  can be loaded: no MUST is broken"


def run(config: DescribeConfig, invocation: Invocation) -> int:
    """Run the command; return the exit code."""
    del invocation
    found = describe(config.file, stats=config.stats, axis_order=config.axis_order, measurement=config.measurement)
    if config.json:
        print(json.dumps(found.as_dict(), indent=2, sort_keys=True, allow_nan=False))
    else:
        print(text_of(found))
    return 0 if found.valid else 1
