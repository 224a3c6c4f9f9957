"""The rules of ``specs/data_contracts.md``: one implementation for loading, describing, converting and checking.

Rules apply to a mapping from key to array. An :class:`~ptycho_torch.data.layout.ArrayHeader` may replace an array; then
rules about values are skipped. The rules are in :mod:`~ptycho_torch.data.required_rules` (MUST) and
:mod:`~ptycho_torch.data.recommended_rules` (SHOULD); axis order and measurement are resolved in
:mod:`~ptycho_torch.data.layout`.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from ptycho_torch.config.base import AxisOrder, Measurement
from ptycho_torch.core.errors import ContractError
from ptycho_torch.data import recommended_rules, required_rules
from ptycho_torch.data.layout import Arrays, compute_stack_size, find_diffraction_key, find_layout
from ptycho_torch.data.measured_quantity import resolve_measurement


class Violation(NamedTuple):
    """A broken rule. A file that breaks a MUST cannot be loaded; a broken SHOULD is reported by ``describe``."""

    rule: str
    level: Literal["MUST", "SHOULD"]
    message: str


def find_violations(
    arrays: Arrays,
    axis_order: AxisOrder | None = None,
    measurement: Measurement | None = None,
    *,
    recommendations: bool = True,
) -> list[Violation]:
    """Return every rule that ``arrays`` break, MUST before SHOULD, in the order of the rules.

    Args:
        arrays: arrays or headers by key.
        axis_order: axis order of the diffraction; overrides the metadata and the shape.
        measurement: quantity in the diffraction array; overrides the metadata.
        recommendations: check the SHOULD rules too. Without them, arrays are those of a scan in memory, for which the
            reader has already made the conversions that a file permits.
    """
    plain = {key: array for key, array in arrays.items() if not array.dtype.hasobject}
    layout = find_layout(plain, axis_order, measurement)
    if recommendations:
        layout = resolve_measurement(plain, layout)
    broken = [
        *_label("MUST", required_rules.check_object_arrays(arrays)),
        *_label("MUST", required_rules.check_missing_keys(arrays)),
        *_label("MUST", required_rules.check_metadata(plain)),
    ]
    key = find_diffraction_key(plain)
    if key is not None:
        size, count = compute_stack_size(plain[key], layout)
        checked = required_rules.check_arrays(key, plain, layout, count, size, in_memory=not recommendations)
        broken += _label("MUST", checked)
        if recommendations:
            broken += _label("SHOULD", recommended_rules.check_recommendations(key, plain, layout, size))
    if recommendations:
        broken += _label("SHOULD", recommended_rules.check_unread_object_arrays(arrays))
    return sorted(broken, key=lambda violation: (violation.level, int(violation.rule[1:])))


def _label(level: Literal["MUST", "SHOULD"], broken: Iterator[tuple[str, str]]) -> Iterator[Violation]:
    return (Violation(rule, level, message) for rule, message in broken)


def raise_for_violations(violations: list[Violation], name: str) -> None:
    """Raise :class:`ContractError` for the first broken MUST.

    Args:
        violations: broken rules.
        name: file or scan, for the error.

    Raises:
        ContractError: a MUST is broken.
    """
    for violation in violations:
        if violation.level == "MUST":
            raise ContractError(violation.rule, f"{name}: {violation.message}")
