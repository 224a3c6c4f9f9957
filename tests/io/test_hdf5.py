"""Safe access to HDF5: links, cycles, sizes, filters, complex numbers and units."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.hdf5 import open_hdf5

VALUES = np.arange(12.0).reshape(3, 4)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Any]:
    """An open file to fill; ``read`` closes it."""
    with h5py.File(tmp_path / "main.h5", "w") as handle:
        handle["values"] = VALUES
        yield handle


def read(handle: Any, path: str) -> Any:
    name = Path(handle.filename)
    handle.close()
    with open_hdf5(name) as tree:
        return tree.read(path)


def write_sibling(handle: Any, name: str) -> None:
    target = Path(handle.filename).parent / name
    target.parent.mkdir(exist_ok=True)
    with h5py.File(target, "w") as other:
        other["data"] = VALUES
        other["inner"] = h5py.SoftLink("/data")


@pytest.mark.parametrize("name", ["sibling.h5", "below/sibling.h5"])
def test_links_to_files_beside_and_below_are_followed(file: Any, name: str) -> None:
    write_sibling(file, name)
    file["link"] = h5py.ExternalLink(name, "/inner")
    file["soft"] = h5py.SoftLink("/link")
    np.testing.assert_array_equal(read(file, "/soft"), VALUES)


@pytest.mark.parametrize("name", ["/etc/hostname", "../main.h5", "below/../../x.h5", "C:\\x.h5", "\\\\host\\x.h5"])
def test_links_out_of_the_folder_are_refused(file: Any, name: str) -> None:
    file["link"] = h5py.ExternalLink(name, "/data")
    with pytest.raises(DataError, match="/link is a link to"):
        read(file, "/link")


def test_a_link_through_a_symbolic_link_out_of_the_folder_is_refused(file: Any, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    with h5py.File(outside / "secret.h5", "w") as other:
        other["data"] = VALUES
    (tmp_path / "alias").symlink_to(outside)
    file["link"] = h5py.ExternalLink("alias/secret.h5", "/data")
    with pytest.raises(DataError, match="outside the folder"):
        read(file, "/link")


def test_a_link_to_a_missing_file_names_the_file(file: Any) -> None:
    file["link"] = h5py.ExternalLink("absent_000001.h5", "/data")
    with pytest.raises(DataError, match=r"/link is a link to absent_000001\.h5, which does not exist"):
        read(file, "/link")


def test_links_in_a_circle_end(file: Any) -> None:
    file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
    file["own"] = h5py.ExternalLink("main.h5", "/own")
    path = Path(file.filename)
    file.close()
    with open_hdf5(path) as tree:
        for place in ("/a", "/own"):
            with pytest.raises(DataError, match=f"{place} is a chain"):
                tree.read(place)


def test_a_group_that_contains_itself_is_walked_once(file: Any) -> None:
    file["group/data"] = VALUES
    file["group/again"] = h5py.SoftLink("/group")
    file["group/root"] = file["/"]
    path = Path(file.filename)
    file.close()
    with open_hdf5(path) as tree:
        assert list(tree.walk_datasets()) == ["/values", "/group/data", "/group/root/values"]


@pytest.mark.parametrize(("name", "reads"), [("sibling.h5", True), ("../sibling.h5", False), ("/tmp/x.h5", False)])
def test_virtual_datasets_take_data_from_the_folder_only(file: Any, name: str, reads: bool) -> None:
    write_sibling(file, "sibling.h5")
    layout = h5py.VirtualLayout(VALUES.shape, VALUES.dtype)
    layout[:] = h5py.VirtualSource(name, "data", VALUES.shape)
    file.create_virtual_dataset("virtual", layout)
    if reads:
        np.testing.assert_array_equal(read(file, "/virtual"), VALUES)
    else:
        with pytest.raises(DataError, match="/virtual is a link to"):
            read(file, "/virtual")


def test_raw_external_storage_is_refused(file: Any, tmp_path: Path) -> None:
    (tmp_path / "raw.bin").write_bytes(bytes(96))
    file.create_dataset("raw", (12,), np.float64, external=[(str(tmp_path / "raw.bin"), 0, 96)])
    with pytest.raises(DataError, match="/raw is stored in another raw file"):
        read(file, "/raw")


def test_a_huge_declared_size_is_refused_before_it_is_allocated(file: Any) -> None:
    file.create_dataset("huge", (10**6, 10**5, 10**5), np.float32, chunks=(1, 64, 64))
    with pytest.raises(DataError, match=r"/huge.*takes"):
        read(file, "/huge")


def test_bitshuffle_is_decoded(file: Any) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    file.create_dataset("packed", data=VALUES, chunks=(3, 4), **hdf5plugin.Bitshuffle())
    np.testing.assert_array_equal(read(file, "/packed"), VALUES)


def test_an_unknown_filter_is_named(file: Any, tmp_path: Path) -> None:
    file.create_dataset("packed", data=VALUES, chunks=(3, 4), compression="gzip")
    file.close()
    path = tmp_path / "main.h5"
    content = path.read_bytes()
    at = content.index(b"deflate") - 8  # filter number, name length, flags and number of values of the message
    assert content[at : at + 2] == b"\x01\x00"
    path.write_bytes(content[:at] + b"\xff\x7d" + content[at + 2 :])
    with open_hdf5(path) as tree, pytest.raises(DataError, match="/packed is compressed with a filter that is missing"):
        tree.read("/packed")


@pytest.mark.parametrize("names", [("r", "i"), ("real", "imag"), ("Re", "Im")])
def test_compounds_of_two_numbers_are_complex(file: Any, names: tuple[str, str]) -> None:
    compound = np.zeros(3, [(names[0], "<f4"), (names[1], "<f4")])
    compound[names[0]], compound[names[1]] = [1, 2, 3], [4, 5, 6]
    file["wave"] = compound
    np.testing.assert_array_equal(read(file, "/wave"), [1 + 4j, 2 + 5j, 3 + 6j])


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (172.0, "um", 172e-6),
        (172.0, "µm", 172e-6),
        (8.0, "keV", 8 * 1.602176634e-16),
        ([2.0, 4.0, np.nan], "mm", 3e-3),
        (np.array([[2.0]], ">f8"), None, 2.0),
    ],
)
def test_quantities_are_in_si_units(file: Any, value: Any, unit: str | None, expected: float) -> None:
    file["quantity"] = value
    if unit:
        file["quantity"].attrs["units"] = unit
    path = Path(file.filename)
    file.close()
    with open_hdf5(path) as tree:
        assert tree.read_quantity("/quantity", "m").value == pytest.approx(expected)


def test_an_unknown_unit_is_named(file: Any) -> None:
    file["quantity"] = 1.0
    file["quantity"].attrs["units"] = "furlong"
    path = Path(file.filename)
    file.close()
    with open_hdf5(path) as tree, pytest.raises(DataError, match="/quantity has the unit 'furlong'"):
        tree.read_quantity("/quantity", "m")


def test_a_missing_dataset_is_refused_with_the_names_of_its_group(file: Any) -> None:
    with pytest.raises(DataError, match=r"there is no /absent \(its group holds values\)"):
        read(file, "/absent")


@pytest.mark.parametrize("value", ["12.5", b"12.5", [12.5], np.array([[12.5]], ">f4")])
def test_a_number_is_read_from_text_arrays_and_any_byte_order(file: Any, value: Any) -> None:
    file["number"] = value
    path = Path(file.filename)
    file.close()
    with open_hdf5(path) as tree:
        assert tree.read_number("/number") == 12.5
