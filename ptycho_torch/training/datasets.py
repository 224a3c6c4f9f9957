"""Measured scans as training data: probe, photon scale, groups of patterns, and the validation set."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.canvas_size import check_canvas_size
from ptycho_torch.data.findings import locate_outlier_frames
from ptycho_torch.data.grouping import HoldoutSplit, Indices, draw_groups, hold_out_region
from ptycho_torch.data.outlier_frames import describe_excluded
from ptycho_torch.data.photons import PhotonScale, photon_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.models.probe_estimation import make_gaussian_probe
from ptycho_torch.models.saved_model import ScanRecord
from ptycho_torch.physics.batch import Batch, make_batch, scale_probe_to_photons
from ptycho_torch.training.batches import PatternGroups
from ptycho_torch.training.targets import prepare_labels

log = logging.getLogger(__name__)

SAME_SCAN_DIGEST = "the training scan itself, so the figure says nothing about patterns not seen"
"""Digest of a validation on a training scan; stored in checkpoints, and therefore fixed."""


class TrainingScan(NamedTuple):
    """A scan to train on."""

    scan: Scan
    scale: PhotonScale
    probe: Tensor
    """(M, N, N) complex64, in √photons: the initial probe."""

    data: Batch
    """All patterns of the scan."""

    training: Indices
    """Indices of the patterns to train on."""

    held_out: Indices
    """Indices of the patterns held out for validation; empty if the validation has a scan of its own."""

    holdout_description: str
    """Region of the held-out patterns."""

    excluded: Indices
    """Indices of the patterns that do not fit to the others; they are in neither of the two sets."""

    has_given_probe: bool = False
    """Whether the probe was given, and is not that of the scan."""

    @property
    def has_estimated_probe(self) -> bool:
        """Whether neither the scan nor the user gave the probe."""
        return self.scan.probe is None and not self.has_given_probe

    @property
    def scan_record(self) -> ScanRecord:
        """The record of this scan in a saved model."""
        held_out = tuple(int(index) for index in self.held_out)
        return ScanRecord(_get_name(self.scan), self.scan.digest(), self.scale.photons_per_unit, held_out)


class ValidationSet(NamedTuple):
    """The patterns of the validation loss."""

    patterns: list[PatternGroups]
    description: str


def make_training_scan(
    scan: Scan,
    index: int = 0,
    *,
    scale: PhotonScale,
    probe: Tensor | None = None,
    supervised: bool = False,
    min_held_out: int = 1,
    device: torch.device | str = "cpu",
) -> TrainingScan:
    """Prepare a scan for training.

    Args:
        scan: the patterns.
        index: index of the scan among those of the training.
        scale: its photon scale.
        probe: (M, N, N) complex64, in √photons; None: the probe of the scan, or one estimated from its patterns.
        supervised: use the labels of the scan.
        min_held_out: smallest number of patterns to hold out for validation; 0 holds out none.
        device: device of the patterns.

    Raises:
        DataError: ``supervised``, and the scan has no valid labels; or its object does not fit into the memory.
    """
    check_canvas_size(scan.positions, scan.size)
    excluded = find_excluded_patterns(scan)
    kept = np.setdiff1d(np.arange(len(scan)), excluded)
    has_given_probe = probe is not None
    if probe is None:
        typical = scan.select(kept) if len(excluded) else scan
        is_known = scan.probe is not None
        probe = (scale_probe_to_photons if is_known else estimate_training_probe)(typical, scale.photons_per_unit)
    data = make_batch(scan, scale.photons_per_unit, index)
    if supervised:
        data = data._replace(labels=prepare_labels(scan, data, probe))
    if min_held_out:
        split = hold_out_region(scan.positions[kept], at_least=min_held_out)
    else:
        split = HoldoutSplit(np.arange(len(kept)), np.arange(0), "")
    training, held_out, on_device = kept[split.training], kept[split.validation], data.to(torch.device(device))
    return TrainingScan(scan, scale, probe, on_device, training, held_out, split.region, excluded, has_given_probe)


def find_excluded_patterns(scan: Scan) -> Indices:
    """Return the indices of patterns that do not fit to those at the nearest positions, and log a list of them."""
    indices = locate_outlier_frames(scan).indices
    if len(indices):
        excluded = np.isin(np.arange(len(scan)), indices)
        log.warning("%s: %s", scan.source or "the scan", describe_excluded(excluded))
    return indices


def estimate_training_probe(scan: Scan, photons_per_unit: float) -> Tensor:
    """Estimate the probe of a scan without one, as a Gaussian, (1, N, N) complex64 in √photons."""
    log.warning(
        "%s: no probe; a Gaussian with the width and curvature of the patterns is the initial probe, and the training "
        "updates it; set `probe` or `teacher` for a better one",
        scan.source or "the scan",
    )
    modes = make_gaussian_probe(scan, None, np.random.default_rng(0))
    return scale_probe_to_photons(replace(scan, probe=modes), photons_per_unit)


def make_pattern_groups(
    scans: Sequence[TrainingScan],
    *,
    gridsize: int = 1,
    groups_per_scan: int | None = None,
    seed: int = 0,
    validation: Scan | None = None,
    photons_per_unit: float | None = None,
) -> tuple[list[PatternGroups], ValidationSet]:
    """Draw the groups to train on, of each scan, and the validation set.

    Args:
        scans: the training scans.
        gridsize: g; a group is a position and its g² − 1 nearest neighbors.
        groups_per_scan: groups of each scan; None: all.
        seed: seed of the draw.
        validation: scan of the validation loss; None: the held-out patterns of each training scan.
        photons_per_unit: photon scale of the validation scan; None: from the scan.

    Raises:
        ConfigError: a group is larger than the patterns of a scan, or a scan has too few groups.
        DataError: the validation scan has patterns of another size.
    """
    training, held_out = [], []
    for index, source in enumerate(scans):
        rng = np.random.default_rng([seed, 0, index] if index else [seed, 0])
        groups = draw_groups(source.scan.positions, gridsize, source.training, groups_per_scan, rng)
        training.append(
            PatternGroups(source.data, groups, source.scan.positions[groups[:, 0]], _make_training_digest(source))
        )
        if validation is None:
            description = f"region held out of the training scan, {source.holdout_description}"
            held_out.append(_make_validation_groups(source.scan, gridsize, source.data, source.held_out, description))
    if validation is not None:
        return training, _make_validation_set(validation, scans, gridsize, photons_per_unit)
    description = held_out[0].digest
    if len(held_out) > 1:
        regions = "; ".join(f"{_get_name(source.scan)}: {source.holdout_description}" for source in scans)
        description = f"region held out of each training scan, {regions}"
    return training, ValidationSet(held_out, description)


def _make_training_digest(source: TrainingScan) -> str:
    """Return the text that identifies the patterns, the photon scale, a given probe and the labels of a scan."""
    digest = f"{source.scan.digest()} at {source.scale.photons_per_unit:.9g} photons"
    if source.has_given_probe:
        digest += f", probe {hashlib.sha256(source.probe.numpy().tobytes()).hexdigest()[:16]}"
    if source.data.labels is not None and source.scan.labels is not None:
        digest += f", labels {hashlib.sha256(source.scan.labels.tobytes()).hexdigest()[:16]}"
    return digest


def _make_validation_set(
    validation: Scan, scans: Sequence[TrainingScan], gridsize: int, photons_per_unit: float | None
) -> ValidationSet:
    """Return all patterns of the validation scan, which may be one of the training scans."""
    same = next((source for source in scans if source.scan.digest() == validation.digest()), None)
    if same is not None:
        patterns = _make_validation_groups(validation, gridsize, same.data, same.training, SAME_SCAN_DIGEST)
        return ValidationSet([patterns], "the training scan itself; the loss does not measure generalization")
    check_same_size(validation, scans[0].scan)
    photons = photon_scale(validation, photons_per_unit).photons_per_unit
    device = scans[0].data.corners.device
    description = f"the scan {_get_name(validation)}"
    # Without indices: the position offsets of the model belong to the training scans.
    data = make_batch(validation, photons).to(device)._replace(indices=None)
    patterns = _make_validation_groups(validation, gridsize, data, np.arange(len(validation)), description)
    if len(scans) > 1:  # the model has several probes, and none belongs to the validation scan
        patterns = replace(patterns, probe=scale_probe_to_photons(validation, photons).to(device))
    return ValidationSet([patterns], description)


def _make_validation_groups(
    scan: Scan, gridsize: int, data: Batch, allowed: Indices, description: str
) -> PatternGroups:
    groups = draw_groups(scan.positions, gridsize, allowed, None, np.random.default_rng(0))
    return PatternGroups(data, groups, scan.positions[groups[:, 0]], description)


def check_distinct_scans(scans: Sequence[Scan]) -> None:
    """Raise unless all scans have patterns of one size and no scan occurs twice.

    Raises:
        DataError: two scans have patterns of different sizes.
        ConfigError: two scans are equal.
    """
    for index, scan in enumerate(scans):
        for other in scans[:index]:
            check_same_size(scan, other)
            if scan.digest() == other.digest():
                raise ConfigError(
                    f"{scan.source or 'scan'} and {other.source or 'scan'} hold the same scan; expected different "
                    "scans; give each once"
                )


def check_same_size(scan: Scan, other: Scan) -> None:
    """Raise :class:`DataError` unless both scans have patterns of one size."""
    if scan.size != other.size:
        raise DataError(
            f"{scan.source or 'scan'}: patterns of {scan.size} × {scan.size} pixels, and {other.source or 'the other'} "
            f"has {other.size} × {other.size}; expected one size; give scans of one size"
        )


def _get_name(scan: Scan) -> str:
    return scan.source.name if scan.source else "scan"
