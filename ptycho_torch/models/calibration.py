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
from ptycho_torch.io.probe_file import read_probe
from ptycho_torch.models.saved_model import Bundle
from ptycho_torch.physics.batch import probe_in_photons


class Light(NamedTuple):
    """What lights a scan."""

    probe: Tensor
    """(M, N, N) complex64, in √photons."""

    photons_per_unit: float
    """Photons for one squared unit of the scan's amplitude."""

    told: str
    """Where the probe comes from."""

    shifts: Tensor | None = None
    """(n, 2) pixels to add to the scan's positions (y, x), where the model learned them on this very scan."""

    background: Tensor | None = None
    """(N, N) photons in every pattern, zero frequency at [0, 0], where the model learned them on this very scan."""

    own: bool = False
    """Whether the probe is the scan's own, because the model has none for it."""

    def placed(self, scan: Scan) -> Scan:
        """``scan`` with the positions that were learned."""
        if self.shifts is None:
            return scan
        return replace(scan, positions=scan.positions + self.shifts.detach().cpu().double().numpy())

    def completed(self, result: Reconstruction) -> Reconstruction:
        """``result`` with the background that was learned."""
        if self.background is None:
            return result
        return replace(result, background=self.background.detach().cpu().numpy())


def light_for(
    bundle: Bundle, scan: Scan, probe_file: Path | None = None, photons_per_unit: float | None = None
) -> Light:
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
    known = bundle.known(scan.digest())
    place = 0 if known is None and len(bundle.scans) == 1 and probe_file is None else known
    if photons_per_unit is None:
        own = place is None
        photons_per_unit = photon_scale(scan).photons_per_unit if own else bundle.scans[place or 0].photons_per_unit
    learned = (None, None) if known is None else (bundle.model.shifts_of(known), bundle.model.background_of(known))
    if probe_file is not None:
        return Light(
            probe_from(probe_file, scan, photons_per_unit), photons_per_unit, f"of {probe_file.name}", *learned
        )
    if place is None:
        return Light(probe_in_photons(scan, photons_per_unit), photons_per_unit, "the scan's own", own=True)
    name = bundle.scans[place].name
    told = "the model's, of this very scan" if known is not None else f"the model's only one, of {name or 'its scan'}"
    return Light(bundle.model.probes[place].detach(), photons_per_unit, told, *learned)


def probe_from(path: Path, scan: Scan, photons_per_unit: float) -> Tensor:
    """The probe in ``path``, (M, N, N) complex64 in √photons, as it lights ``scan``.

    Its power is the mean total of the scan's patterns, as for a scan's own probe; but one that was found from this very
    scan keeps the power that it was found to have.

    Raises:
        DataError: the file holds no finite probe of the scan's N.
    """
    found = read_probe(path, scan.size, "--probe")
    if found.scan_digest == scan.digest():
        return torch.from_numpy(found.modes) * (photons_per_unit / found.photons_per_unit) ** 0.5
    return probe_in_photons(replace(scan, probe=found.modes), photons_per_unit)
