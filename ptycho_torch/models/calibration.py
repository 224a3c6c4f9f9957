"""Selection of the probe and photon scale with which a trained network reconstructs a scan."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.inputs import read_probe
from ptycho_torch.models.saved_model import Model
from ptycho_torch.physics.batch import scale_probe_to_photons

MAX_DOSE_RATIO = 2.0
"""Ratio of the photons per pattern of a scan to the power of the model's probe, and of its inverse, up to which the
object explains the difference."""


class ScanCalibration(NamedTuple):
    """Probe, photon scale and learned corrections for one scan."""

    probe: Tensor
    """Probe (M, N, N) complex64, in √photons."""

    photons_per_unit: float
    """Photons per squared unit of the stored amplitude."""

    probe_source: str
    """Origin of the probe, for the log and the result."""

    position_offsets: Tensor | None = None
    """Offsets (n, 2) in pixels to add to the positions (y, x), if the model learned them on this scan."""

    background: Tensor | None = None
    """Background (N, N) in photons, zero frequency at [0, 0], if the model learned it on this scan."""

    is_scan_probe: bool = False
    """True if the probe is the probe of the scan file, because the model has no probe for this scan."""

    def apply_positions(self, scan: Scan) -> Scan:
        """Return ``scan`` with the learned position offsets added."""
        if self.position_offsets is None:
            return scan
        return replace(scan, positions=scan.positions + self.position_offsets.detach().cpu().double().numpy())

    def attach_background(self, result: Reconstruction) -> Reconstruction:
        """Return ``result`` with the learned background."""
        if self.background is None:
            return result
        return replace(result, background=self.background.detach().cpu().numpy())


def select_calibration(
    bundle: Model, scan: Scan, probe_file: Path | None = None, photons_per_unit: float | None = None
) -> ScanCalibration:
    """Return the probe and photon scale for the reconstruction of ``scan`` by ``bundle``.

    The probe is the first that exists: the probe in ``probe_file``, the probe that the model learned on this scan, the
    only probe of the model, the probe of the scan file. The photon scale, unless given, is that of the training for a
    scan of the training. It belongs to the scan otherwise: its metadata or its lattice of counts determine it, or its
    mean pattern, which then gets the photons of the probe. The only probe of the model gets the power of the mean
    pattern if both differ by more than a factor of :data:`MAX_DOSE_RATIO`, as after another exposure.

    Args:
        bundle: trained model.
        scan: scan to reconstruct.
        probe_file: scan file or reconstruction with a probe.
        photons_per_unit: photons per squared unit of the stored amplitude.

    Raises:
        DataError: the patterns of the scan do not have the N of the model, or the file contains no such probe.
    """
    if scan.size != bundle.model.size:
        size = bundle.model.size
        raise DataError(
            f"{scan.source or 'scan'}: patterns of {scan.size} × {scan.size} pixels; expected {size} × {size}, as in "
            "the training; give a scan of that size, or train on this scan"
        )
    scan_index = bundle.find_scan(scan.digest())
    probe_index = 0 if scan_index is None and len(bundle.scans) == 1 and probe_file is None else scan_index
    if photons_per_unit is None and scan_index is not None:
        photons_per_unit = bundle.scans[scan_index].photons_per_unit
    if photons_per_unit is None:
        assumed = {} if probe_index is None else {"assumed_photons_per_pattern": _compute_power(bundle, probe_index)}
        photons_per_unit = photon_scale(scan, **assumed).photons_per_unit
    learned = (
        (None, None)
        if scan_index is None
        else (bundle.model.get_position_offsets(scan_index), bundle.model.get_background(scan_index))
    )
    if probe_file is not None:
        return ScanCalibration(
            read_scaled_probe(probe_file, scan, photons_per_unit), photons_per_unit, f"of {probe_file.name}", *learned
        )
    if probe_index is None:
        return ScanCalibration(
            scale_probe_to_photons(scan, photons_per_unit), photons_per_unit, "the scan's own", is_scan_probe=True
        )
    probe = bundle.model.probes[probe_index].detach()
    if scan_index is not None:
        return ScanCalibration(probe, photons_per_unit, "the model's, of this very scan", *learned)
    probe_source = f"the model's only one, of {bundle.scans[probe_index].name or 'its scan'}"
    ratio = photon_scale(scan, photons_per_unit).photons_per_pattern / _compute_power(bundle, probe_index)
    if not 1 / MAX_DOSE_RATIO <= ratio <= MAX_DOSE_RATIO:
        probe, probe_source = probe * ratio**0.5, f"{probe_source}, with {ratio:.3g} times its power"
    return ScanCalibration(probe, photons_per_unit, probe_source)


def _compute_power(bundle: Model, probe_index: int) -> float:
    """Return the photons per pattern of a probe of the model."""
    return float(bundle.model.probes[probe_index].detach().abs().square().sum())


def read_scaled_probe(path: Path, scan: Scan, photons_per_unit: float) -> Tensor:
    """Read the probe in ``path`` and scale it for ``scan``: (M, N, N) complex64 in √photons.

    The power of the probe is the mean number of photons per pattern of the scan. A probe that was reconstructed from
    this scan keeps its power.

    Raises:
        DataError: the file contains no finite probe with the N of the scan.
    """
    stored = read_probe(path, scan.size, "probe")
    if stored.scan_digest == scan.digest():
        return torch.from_numpy(stored.modes) * (photons_per_unit / stored.photons_per_unit) ** 0.5
    return scale_probe_to_photons(replace(scan, probe=stored.modes), photons_per_unit)
