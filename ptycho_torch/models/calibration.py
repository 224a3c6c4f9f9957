"""Which probe lights a scan, and how many photons its unit is: the probe belongs to the scan, not to the network."""

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


class ScanCalibration(NamedTuple):
    """What lights a scan."""

    probe: Tensor
    """(M, N, N) complex64, in √photons."""

    photons_per_unit: float
    """Photons for one squared unit of the scan's amplitude."""

    probe_source: str
    """Where the probe comes from."""

    position_offsets: Tensor | None = None
    """(n, 2) pixels to add to the scan's positions (y, x), where the model learned them on this very scan."""

    background: Tensor | None = None
    """(N, N) photons in every pattern, zero frequency at [0, 0], where the model learned them on this very scan."""

    is_scan_probe: bool = False
    """Whether the probe is the scan's own, because the model has none for it."""

    def apply_positions(self, scan: Scan) -> Scan:
        """``scan`` with the positions that were learned."""
        if self.position_offsets is None:
            return scan
        return replace(scan, positions=scan.positions + self.position_offsets.detach().cpu().double().numpy())

    def attach_background(self, result: Reconstruction) -> Reconstruction:
        """``result`` with the background that was learned."""
        if self.background is None:
            return result
        return replace(result, background=self.background.detach().cpu().numpy())


def select_calibration(
    bundle: Model, scan: Scan, probe_file: Path | None = None, photons_per_unit: float | None = None
) -> ScanCalibration:
    """The probe and the photon scale that ``bundle`` sees ``scan`` by.

    The probe is that of ``probe_file``; else the one that the bundle learned on this very scan; else the bundle's only
    one; else the scan's own. The photon scale is given, else comes from where the probe comes from: of a scan that the
    bundle does not know, and whose probe is not the bundle's, it is the scan's own.

    Raises:
        DataError: the scan's patterns are not of the bundle's N, or the file holds no such probe.
    """
    if scan.size != bundle.model.size:
        size = bundle.model.size
        raise DataError(
            f"{scan.source or 'scan'}: patterns of {scan.size} × {scan.size} pixels, and the model was trained on "
            f"{size} × {size}; give a scan of that size, or train on this one"
        )
    known = bundle.find_scan(scan.digest())
    probe_index = 0 if known is None and len(bundle.scans) == 1 and probe_file is None else known
    if photons_per_unit is None:
        own = probe_index is None
        photons_per_unit = (
            photon_scale(scan).photons_per_unit if own else bundle.scans[probe_index or 0].photons_per_unit
        )
    learned = (
        (None, None)
        if known is None
        else (bundle.model.get_position_offsets(known), bundle.model.get_background(known))
    )
    if probe_file is not None:
        return ScanCalibration(
            read_scaled_probe(probe_file, scan, photons_per_unit), photons_per_unit, f"of {probe_file.name}", *learned
        )
    if probe_index is None:
        return ScanCalibration(
            scale_probe_to_photons(scan, photons_per_unit), photons_per_unit, "the scan's own", is_scan_probe=True
        )
    name = bundle.scans[probe_index].name
    probe_source = (
        "the model's, of this very scan" if known is not None else f"the model's only one, of {name or 'its scan'}"
    )
    return ScanCalibration(bundle.model.probes[probe_index].detach(), photons_per_unit, probe_source, *learned)


def read_scaled_probe(path: Path, scan: Scan, photons_per_unit: float) -> Tensor:
    """The probe in ``path``, (M, N, N) complex64 in √photons, as it lights ``scan``.

    Its power is the mean total of the scan's patterns, as for a scan's own probe; but one that was found from this very
    scan keeps the power that it was found to have.

    Raises:
        DataError: the file holds no finite probe of the scan's N.
    """
    found = read_probe(path, scan.size, "probe")
    if found.scan_digest == scan.digest():
        return torch.from_numpy(found.modes) * (photons_per_unit / found.photons_per_unit) ** 0.5
    return scale_probe_to_photons(replace(scan, probe=found.modes), photons_per_unit)
