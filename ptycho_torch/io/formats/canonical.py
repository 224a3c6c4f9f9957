"""The package's own scan file and its legacy layout, ``specs/data_contracts.md``."""

from pathlib import Path

from ptycho_torch.config.input import InputSettings
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.formats.base import ScanWriter
from ptycho_torch.io.npz import read_npz_scan, write_npz_scan
from ptycho_torch.io.parts import InputReport, ScanParts

CANONICAL_KEYS = {"diffraction", "diff3d", "xcoords", "ycoords", "probeGuess"}
"""Keys of the contract; a file with any of them is judged by the contract."""


class CanonicalFormat(ScanWriter):
    """NPZ files that keep the data contract."""

    name = "npz"
    title = "the package's own scan file (NPZ), and the legacy layout of the Run1084 files"
    scan_suffixes = (".npz",)

    def matches(self, file: InputFile) -> bool:
        return not CANONICAL_KEYS.isdisjoint(file.npz_headers)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        scan = read_npz_scan(
            file.path,
            axis_order=settings.axis_order,
            measurement=settings.measurement,
            photons_per_unit=settings.photons_per_unit,
        )
        report = InputReport("npz")
        report.add("patterns", "diffraction", "amplitude")
        report.add("positions", "ycoords, xcoords", "pixel")
        return ScanParts(
            patterns=scan.amplitudes,
            measurement="amplitude",
            photons_per_unit=scan.photons_per_unit,
            positions=scan.positions,
            position_unit="pixel",
            nominal_positions=scan.nominal_positions,
            scan_index=scan.scan_index,
            source_index=scan.source_index,
            probe=scan.probe,
            object=scan.truth,
            labels=scan.labels,
            mask=scan.mask,
            geometry=scan.geometry or Geometry(),
            metadata=scan.metadata,
            report=report,
        )

    def write_scan(self, path: Path, scan: Scan) -> None:
        write_npz_scan(path, scan)
