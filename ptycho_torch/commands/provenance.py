"""The provenance record: the origin of a model or a reconstruction, with the same keys for all commands.

The record contains no clock, and no path except those in ``config`` that were typed, so that the same work gives the
same record on every machine.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ptycho_torch
from ptycho_torch.config.values import to_plain
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan

COMMON_ENTRIES = ("version", "command", "config", "scans", "seed", "precision")
"""Entries that every record contains."""

SETTINGS_WITHOUT_EFFECT = frozenset(
    {"output_dir", "resume", "report", "save_as", "half_scan_frc", "quiet", "debug", "logger", "device", "num_workers"}
)
"""Settings that do not change a result."""


def make_provenance(
    command: str,
    config: Any,
    *,
    scans: Sequence[Scan] = (),
    precision: str | None = None,
    portable: bool = True,
    **details: Any,
) -> dict[str, Any]:
    """Return the provenance record of a command.

    Args:
        command: name of the command.
        config: its settings, a dataclass.
        scans: the scans that it read.
        precision: arithmetic of the network, fp32 or bf16; None: no network.
        portable: reduce paths to file names, and leave out settings without effect on the result, so that equal work
            gives equal bytes wherever its files are.
        details: further entries, such as the epochs of a training; they replace common entries of the same name.

    Returns:
        JSON with :data:`COMMON_ENTRIES` and ``details``; ``scans`` contains name and digest of each scan.
    """
    settings = to_plain(config)
    return {
        "version": ptycho_torch.__version__,
        "command": command,
        "config": _make_portable(config, settings) if portable else settings,
        "scans": [{"name": scan.source.name if scan.source else "scan", "digest": scan.digest()} for scan in scans],
        "seed": settings.get("seed"),
        "precision": precision,
        **details,
    }


def add_provenance(result: Reconstruction, command: str, config: Any, scan: Scan) -> Reconstruction:
    """Return a reconstruction with the provenance record of its command among its metadata.

    Args:
        result: the reconstruction; its own metadata replace entries of the same name.
        command: name of the command.
        config: its settings, a dataclass.
        scan: the scan that it reconstructed.
    """
    return replace(result, metadata=make_provenance(command, config, scans=[scan]) | result.metadata)


def _make_portable(config: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _reduce_paths(getattr(config, name), value)
        for name, value in settings.items()
        if name not in SETTINGS_WITHOUT_EFFECT
    }


def _reduce_paths(value: Any, plain: Any) -> Any:
    """Return ``plain`` with file names in place of the paths that ``value`` contains.

    Text may contain paths too: ``init_probe``, and the settings of a stage, as in ``gradient:support=/data/s.npz``.
    """
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        return re.sub("[^=,]*/", "", value)
    if isinstance(value, tuple):
        return [_reduce_paths(item, part) for item, part in zip(value, plain, strict=True)]
    return plain
