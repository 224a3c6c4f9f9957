"""Describe a scan file: its content, how it is read and why, and the rules of the contract that it breaks.

    python -m ptycho_torch.describe scan.npz
    python -m ptycho_torch.describe scan.npz --json

The exit code is 0 for a file that can be loaded, 1 for a file that breaks a MUST of ``specs/data_contracts.md``, and 2
for a file that cannot be read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import DescribeConfig
from ptycho_torch.config.input import collect_input_settings
from ptycho_torch.core.deferred import call_deferred
from ptycho_torch.core.observer import Observer
from ptycho_torch.data.orientation_search import OrientationSearch
from ptycho_torch.data.profile import Profile
from ptycho_torch.io.profile import profile_scan_file
from ptycho_torch.io.scan import load_scan


def describe(
    path: Path,
    *,
    stats: bool = True,
    **settings: Any,
) -> Profile:
    """Return the profile of the scan file at ``path``.

    Args:
        path: scan file of any supported format.
        stats: read the arrays; otherwise read the headers only of a file of the contract.
        **settings: settings of reading, as of :func:`~ptycho_torch.io.scan.load_scan`.

    Raises:
        DataError: the file cannot be read.
    """
    return profile_scan_file(Path(path), stats=stats, **settings)


def format_profile(profile: Profile) -> str:
    """Return a profile as text, one item per line."""
    parts = [
        _format_arrays(profile.arrays),
        _format_input(profile),
        _format_layout(profile),
        _format_findings(profile),
        _format_contract(profile),
    ]
    blocks = ["\n".join(lines) for lines in parts]
    return profile.file + "\n" + "\n\n".join(block for block in blocks if block)


def _format_input(profile: Profile) -> Iterator[str]:
    """Yield the origin of each quantity of a file of another format, the assumptions, and what is missing."""
    if profile.input is None:
        return
    yield f"  format       {profile.input['format']}"
    mapping = profile.input["mapping"]
    width = max((len(entry["field"]) for entry in mapping), default=0)
    for entry in mapping:
        details = ", ".join(text for text in (entry["unit"], entry["conversion"]) if text)
        content = ": ".join(text for text in (entry["path"], details) if text)
        yield f"    {entry['field']:<{width}}  {content}".rstrip()
    for title in ("assumptions", "missing"):
        for number, text in enumerate(profile.input[title]):
            yield f"  {title if number == 0 else '':<11}  {text}"


def _format_arrays(arrays: dict[str, dict[str, Any]]) -> Iterator[str]:
    width = max((len(key) for key in arrays), default=0)
    for key, array in sorted(arrays.items()):
        shape = " × ".join(map(str, array["shape"])) or "scalar"
        line = f"  {key:<{width}}  {array['dtype']:<10}  {shape:<18}"
        if "mean" in array:
            line += f"  {array['min']:.5g} to {array['max']:.5g}, mean {array['mean']:.5g}"
        if array.get("not_finite"):
            line += f", {array['not_finite']} not finite"
        yield line.rstrip()


def _format_layout(profile: Profile) -> Iterator[str]:
    yield f"  axis order   {profile.axis_order['order'] or 'ambiguous'}: {profile.axis_order['reason']}"
    yield f"  measurement  {profile.measurement['kind'] or 'ambiguous'}: {profile.measurement['reason']}"
    if profile.photons:
        origin = {"metadata": "from the metadata", "lattice": "the counts are whole numbers", "assumed": "assumed"}
        yield (
            f"  photons      {profile.photons['per_pattern']:.7g} per pattern, {profile.photons['per_unit']:.9g} per "
            f"squared unit of amplitude: {origin[profile.photons['origin']]}"
        )
    if profile.geometry:
        yield from _format_geometry(profile.geometry)
    if profile.geometry_m:
        yield f"  geometry     {_format_lengths(profile.geometry_m)}"
    if profile.object:
        place = "on" if profile.object["on_grid"] else "not on"
        yield f"  object       {place} the coordinate grid; the patterns cover {_format_box(profile.object['seen'])}"
        if profile.object["structure"]:
            structure = _format_box(profile.object["structure"])
            yield f"               and the object differs from its corner pixel in {structure}"
        if profile.object["coordinate_factor"] != 1:
            yield f"               it would be with coordinates × {profile.object['coordinate_factor']:g} (see R27)"


def _format_geometry(geometry: dict[str, Any]) -> Iterator[str]:
    count = geometry["modes"]
    modes = "no probe" if count == 0 else "one probe mode" if count == 1 else f"{count} probe modes"
    yield f"  patterns     {geometry['patterns']} of {geometry['size']} × {geometry['size']} pixels, {modes}"
    ranges = ", ".join(f"{axis} {geometry[axis][0]:.2f} to {geometry[axis][1]:.2f}" for axis in ("x", "y"))
    yield f"  coordinates  {ranges} pixels"
    if geometry["step"] is not None:
        yield f"  step         {geometry['step']:.3f} pixels (median distance to the nearest neighbor)"
    diameter = geometry["probe_diameter"]
    if diameter is not None:
        yield f"  probe        {diameter:.1f} pixels in diameter (uniform disk of the same second moment)"
    if geometry["overlap"] is not None:
        yield f"  overlap      {geometry['overlap']:.1%} (1 - step / probe diameter)"


def _format_lengths(geometry: dict[str, Any]) -> str:
    """Return wavelength, distance and pixels in readable units."""
    facts = []
    if "wavelength_m" in geometry:
        facts.append(f"wavelength {geometry['wavelength_m'] * 1e12:.5g} pm ({geometry['radiation']}s)")
    if "distance_m" in geometry:
        facts.append(f"distance {geometry['distance_m']:.5g} m")
    for name, factor, unit in (("detector_pixel", 1e6, "µm"), ("object_pixel", 1e9, "nm")):
        if f"{name}_m" in geometry:
            y, x = (side * factor for side in geometry[f"{name}_m"])
            facts.append(f"{name.replace('_', ' ')} {y:.4g} × {x:.4g} {unit} (y, x)")
    return ", ".join(facts) or "unknown"


def _format_box(box: list[float]) -> str:
    top, bottom, left, right = (f"{edge:.1f}".removesuffix(".0") for edge in box)
    return f"rows {top} to {bottom}, columns {left} to {right}"


def _format_findings(profile: Profile) -> Iterator[str]:
    """Yield each fault of the scan with its evidence and the setting that corrects it."""
    if profile.photons is not None:
        yield "  findings     " + ("faults that end in a wrong image" if profile.findings else "none")
    for finding in profile.findings:
        rule = f" {finding['rule']}" if finding["rule"] else ""
        yield f"    {finding['severity']:<7} {finding['name']}{rule}: {finding['evidence']}"
        yield f"            set {finding['setting']}"


def _format_contract(profile: Profile) -> Iterator[str]:
    broken = [finding for finding in profile.findings if finding["rule"]]
    for finding in broken:
        yield f"  MUST   {finding['rule']:<4} broken by the finding {finding['name']!r}: the file cannot be loaded"
    if not profile.violations and not broken:
        yield "  keeps every rule of the contract"
    for violation in profile.violations:
        yield f"  {violation['level']:<6} {violation['rule']:<4} {violation['message']}"
    if profile.valid and profile.violations:
        yield "  can be loaded: no MUST is broken"


def find_file_orientation(config: DescribeConfig, observer: Observer) -> OrientationSearch:
    """Return the orientation of the detector against the scan positions of ``config.file``."""
    scan = load_scan(config.file, **collect_input_settings(config))
    # Deferred, because the description alone needs no torch.
    search: OrientationSearch = call_deferred(
        "ptycho_torch.engines.orientation:find_orientation", scan, observer=observer
    )
    return search


def run(config: DescribeConfig, invocation: Invocation) -> int:
    """Run the command and return the exit code."""
    profile = describe(config.file, stats=config.stats, **collect_input_settings(config))
    search = find_file_orientation(config, invocation.observer) if config.orientation and profile.valid else None
    if config.json:
        content = profile.as_dict() | ({} if search is None else {"orientation": search.to_dict()})
        print(json.dumps(content, indent=2, sort_keys=True, allow_nan=False))
    else:
        print(format_profile(profile) + ("" if search is None else f"\n\n{search!r}"))
    return 0 if profile.valid else 1
