"""What a training is on: each scan with its photon scale, its groups, and what is kept to validate on."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.config.train import TrainConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.grouping import HoldoutSplit, Indices, draw_groups, hold_out_region
from ptycho_torch.data.photons import PhotonScale, photon_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import load_scan
from ptycho_torch.models.calibration import read_scaled_probe
from ptycho_torch.models.saved_model import ScanRecord
from ptycho_torch.physics.batch import Batch, make_batch, scale_probe_to_photons
from ptycho_torch.training.labels import prepare_labels
from ptycho_torch.training.trainer import PatternGroups


class TrainingScan(NamedTuple):
    """A scan to train on."""

    scan: Scan
    scale: PhotonScale
    probe: Tensor
    """(M, N, N) complex64, in √photons, to start from."""

    data: Batch
    """All of its patterns."""

    training: Indices
    """Those to train on."""

    held_out: Indices
    """Those held out of it for validation; empty where the validation is on a file of its own."""

    holdout_description: str
    """Where those lie."""

    @property
    def scan_record(self) -> ScanRecord:
        """How a bundle knows it."""
        name = self.scan.source.name if self.scan.source else "scan"
        held_out = tuple(int(index) for index in self.held_out)
        return ScanRecord(name, self.scan.digest(), self.scale.photons_per_unit, held_out)


class ValidationSet(NamedTuple):
    """What the validation figure is computed on, and how to say so."""

    patterns: list[PatternGroups]
    description: str


def load_training_scans(config: TrainConfig, device: torch.device) -> list[TrainingScan]:
    """The scans of ``config``, on ``device``.

    Raises:
        PtychoError: a file cannot be read, scans differ in N, or one is named twice.
    """
    if len(config.probe) not in (0, 1, len(config.train_data_file)):
        raise ConfigError(
            f"--probe names {len(config.probe)} files for {len(config.train_data_file)} scans: give one for all, or "
            "one for each"
        )
    sources: list[TrainingScan] = []
    for index, path in enumerate(config.train_data_file):
        scan = load_scan(path, axis_order=config.axis_order, measurement=config.measurement)
        for other in sources:
            check_same_size(scan, other.scan)
            if scan.digest() == other.scan.digest():
                raise ConfigError(f"--train_data_file: {path} and {other.scan.source} hold the same scan; give it once")
        scale = photon_scale(scan, config.photons_per_unit)
        if config.probe:
            probe = read_scaled_probe(config.probe[index % len(config.probe)], scan, scale.photons_per_unit)
        else:
            probe = scale_probe_to_photons(scan, scale.photons_per_unit)
        data = make_batch(scan, scale.photons_per_unit, index)
        if config.supervised:
            data = data._replace(labels=prepare_labels(scan, data, probe))
        if config.test_data_file is None:
            split = hold_out_region(scan.positions, at_least=config.gridsize**2)
        else:
            split = HoldoutSplit(np.arange(len(scan)), np.arange(0), "")
        sources.append(TrainingScan(scan, scale, probe, data.to(device), *split))
    return sources


def make_pattern_groups(
    config: TrainConfig, sources: Sequence[TrainingScan]
) -> tuple[list[PatternGroups], ValidationSet]:
    """Patterns to train on, of each scan, and those to validate on.

    Raises:
        ConfigError: a group is larger than what is left of a scan, or more groups are asked for than there are.
        PtychoError: the validation file cannot be read, or is of another N.
    """
    training, validation_groups = [], []
    for index, source in enumerate(sources):
        rng = np.random.default_rng([config.seed, 0, index] if index else [config.seed, 0])
        groups = draw_groups(source.scan.positions, config.gridsize, source.training, config.n_images, rng)
        digest = f"{source.scan.digest()} at {source.scale.photons_per_unit:.9g} photons"
        if config.probe:
            digest += f", probe {hashlib.sha256(source.probe.numpy().tobytes()).hexdigest()[:16]}"
        if source.data.labels is not None and source.scan.labels is not None:
            digest += f", labels {hashlib.sha256(source.scan.labels.tobytes()).hexdigest()[:16]}"
        training.append(PatternGroups(source.data, groups, source.scan.positions[groups[:, 0]], digest))
        if config.test_data_file is None:
            description = f"region held out of the training scan, {source.holdout_description}"
            validation_groups.append(
                _make_validation_groups(config, source.scan, source.data, source.held_out, description)
            )
    if config.test_data_file is None:
        regions = "; ".join(f"{source.scan_record.name}: {source.holdout_description}" for source in sources)
        return training, ValidationSet(
            validation_groups,
            validation_groups[0].digest
            if len(validation_groups) == 1
            else f"region held out of each training scan, {regions}",
        )
    return training, _load_validation_file(config, sources)


def _load_validation_file(config: TrainConfig, sources: Sequence[TrainingScan]) -> ValidationSet:
    """All patterns of the validation file, which may be a training scan itself."""
    assert config.test_data_file is not None
    test = load_scan(config.test_data_file, axis_order=config.axis_order, measurement=config.measurement)
    same = next((source for source in sources if source.scan.digest() == test.digest()), None)
    if same is not None:
        description = "the training scan itself, so the figure says nothing about patterns not seen"
        return ValidationSet(
            [_make_validation_groups(config, test, same.data, same.training, description)], description
        )
    check_same_size(test, sources[0].scan)
    photons = photon_scale(test, config.photons_per_unit).photons_per_unit
    device = sources[0].data.corners.device
    description = f"the scan {config.test_data_file.name}"
    data = make_batch(test, photons).to(device)._replace(indices=None)  # none of those whose positions are learned
    patterns = _make_validation_groups(config, test, data, np.arange(len(test)), description)
    if len(sources) > 1:  # of several probes none is known to be that of the file
        patterns = replace(patterns, probe=scale_probe_to_photons(test, photons).to(device))
    return ValidationSet([patterns], description)


def _make_validation_groups(
    config: TrainConfig, scan: Scan, data: Batch, allowed: Indices, description: str
) -> PatternGroups:
    groups = draw_groups(scan.positions, config.gridsize, allowed, None, np.random.default_rng(0))
    return PatternGroups(data, groups, scan.positions[groups[:, 0]], description)


def check_same_size(scan: Scan, other: Scan) -> None:
    """Raise DataError unless both scans have patterns of one size."""
    if scan.size != other.size:
        raise DataError(
            f"{scan.source}: patterns of {scan.size} × {scan.size} pixels, where {other.source} has "
            f"{other.size} × {other.size}; give scans of one size"
        )
