"""Coherent X-ray imaging files (CXI 1.x), as the specification, cdtools, Ptychodus and others write them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import InputSettings
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.export import (
    compute_photons,
    compute_result_positions,
    get_position_numbers,
    make_object_canvas,
    put_result_origin,
    solve_geometry,
    write_hdf5,
)
from ptycho_torch.io.formats.base import ResultWriter, ScanWriter
from ptycho_torch.io.formats.cxi_layout import read_cxi
from ptycho_torch.io.formats.cxi_writer import CxiContent, write_cxi
from ptycho_torch.io.parts import ScanParts

SIGNATURES = ("/cxi_version", "/entry_1/instrument_1", "/entry_1/data_1")
"""Paths of which a CXI file has at least one."""


class CxiWriter(ScanWriter, ResultWriter):
    """A format with the content of CXI files."""

    omitted_parts = ("scan_index",)

    nexus: ClassVar[bool] = False
    """True: add the classes and units of NXptycho."""

    def write_scan(self, path: Path, scan: Scan) -> None:
        content = make_scan_content(path, scan)
        with write_hdf5(path) as writer:
            write_cxi(writer, content, str(path), nexus=self.nexus)

    def write_result(self, path: Path, result: Reconstruction) -> None:
        content = make_result_content(path, result)
        with write_hdf5(path) as writer:
            write_cxi(writer, content, str(path), nexus=self.nexus)
            put_result_origin(writer, result)


class CxiFormat(CxiWriter):
    """CXI files."""

    name = "cxi"
    title = "CXI 1.x (.cxi): cdtools, Ptychodus, CXIDB"
    scan_suffixes = (".cxi",)
    result_suffixes = (".cxi",)

    def matches(self, file: InputFile) -> bool:
        return file.hdf5 is not None and file.hdf5.find(*SIGNATURES) is not None

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        return read_cxi(file.tree, settings, self.name)

    def list_partners(self, path: Path) -> Sequence[Path]:
        pairs = (("product", "diffraction"), ("diffraction", "product"))
        return [path.with_name(path.name.replace(old, new)) for old, new in pairs if old in path.name]


def make_scan_content(path: Path, scan: Scan) -> CxiContent:
    """Return the content of a file of a scan.

    Raises:
        DataError: two or more quantities of the geometry are unknown.
    """
    origin: NDArray[Any] = np.zeros(2)
    if scan.truth is None:
        _, origin = make_object_canvas(scan)
    return CxiContent(
        positions=scan.positions - origin,
        size=scan.size,
        geometry=solve_geometry(scan.geometry, scan.size, str(path)),
        patterns=compute_photons(scan),
        mask=scan.mask,
        probe=scan.probe,
        object=scan.truth,
    )


def make_result_content(path: Path, result: Reconstruction) -> CxiContent:
    """Return the content of a file of a result.

    Raises:
        DataError: two or more quantities of the geometry are unknown.
    """
    size = result.probe.shape[-1]
    return CxiContent(
        positions=compute_result_positions(result),
        position_numbers=get_position_numbers(result),
        size=size,
        geometry=solve_geometry(result.geometry, size, str(path)),
        probe=result.probe,
        object=result.object,
    )
