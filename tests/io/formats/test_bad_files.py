"""Damaged and hostile files of every format end in a typed error that names the path inside the file, in seconds."""

import bz2
import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case
from test_all_formats import CASES

from ptycho_torch.core.errors import PtychoError
from ptycho_torch.io.scan import load_scan

TIME_LIMIT_S = 5.0

DATASETS = [
    pytest.param(case, part, id=f"{case.name}-{part}")
    for case in CASES
    for part in ("patterns", "positions")
    if getattr(case, f"{part}_path")
]
"""Cases with the part whose path is known."""


def write_case(case: Case, folder: Path) -> Path:
    return case.write(folder, case.make_truth(case.sizes[0]))


def load_within_limit(path: Path, settings: dict[str, Any]) -> str:
    """Return the message of the error that reading ends in."""
    start = time.perf_counter()
    with pytest.raises(PtychoError) as caught:
        load_scan(path, **settings)
    assert time.perf_counter() - start < TIME_LIMIT_S
    return str(caught.value)


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.97])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_truncated_file_is_refused(case: Case, fraction: float, tmp_path: Path) -> None:
    path = write_case(case, tmp_path)
    if not path.is_file():
        pytest.skip("a folder")
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    assert str(path) in load_within_limit(path, case.get_settings(path))


def remove(group: Any, name: str) -> None:
    del group[name]


def store_five_axes(group: Any, name: str) -> None:
    values = np.asarray(group[name])
    del group[name]
    group[name] = values.reshape(1, 1, 1, 1, -1)


def store_text(group: Any, name: str) -> None:
    del group[name]
    group[name] = "forty-two"


def link_in_a_circle(group: Any, name: str) -> None:
    import h5py

    del group[name]
    group[name] = h5py.SoftLink(f"{group.name.rstrip('/')}/circle")
    group["circle"] = h5py.SoftLink(f"{group.name.rstrip('/')}/{name}")


def link_to_an_absolute_path(group: Any, name: str) -> None:
    import h5py

    del group[name]
    group[name] = h5py.ExternalLink("/etc/hostname", "/data")


def link_to_a_parent_folder(group: Any, name: str) -> None:
    import h5py

    del group[name]
    group[name] = h5py.ExternalLink("../secret.h5", "/data")


def declare_a_huge_size(group: Any, name: str) -> None:
    rank = max(len(group[name].shape), 1)
    del group[name]
    shape = {1: (10**15,), 2: (10**10, 10**5), 3: (10**6, 10**5, 10**5), 4: (10**3, 10**3, 10**5, 10**5)}[rank]
    group.create_dataset(name, shape, np.float32, chunks=(1,) * (rank - 1) + (64,))


Damage = Callable[[Any, str], None]
DAMAGES: dict[str, Damage] = {
    "missing": remove,
    "of five axes": store_five_axes,
    "text": store_text,
    "a link in a circle": link_in_a_circle,
    "a link to an absolute path": link_to_an_absolute_path,
    "a link to a parent folder": link_to_a_parent_folder,
    "of a huge declared size": declare_a_huge_size,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(("case", "part"), DATASETS)
def test_a_damaged_dataset_is_refused_by_its_path(case: Case, part: str, damage: Damage, tmp_path: Path) -> None:
    import h5py

    path = write_case(case, tmp_path)
    file, _, place = getattr(case, f"{part}_path").rpartition(":")
    with h5py.File(path.parent / file if file else path, "a") as handle:
        group, _, name = place.rpartition("/")
        damage(handle[group or "/"], name)
    message = load_within_limit(path, case.get_settings(path))
    assert name in message


def test_a_stack_of_patterns_without_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    np.savez(path, diffraction=np.zeros((2, 3, 8, 0)), xcoords=np.zeros(6), ycoords=np.zeros(6))
    assert str(path) in load_within_limit(path, {"measurement": "counts", "diffraction_key": "diffraction"})


def test_an_array_larger_than_its_member_is_not_allocated(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": (10**5,) * 3})
    path = tmp_path / "scan.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("diffraction.npy", content.getvalue())
    assert "diffraction has the declared shape" in load_within_limit(path, {})


def test_a_dataset_without_stored_values_is_not_allocated(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as handle:
        handle.create_dataset("data", (4096, 512, 512), np.float32, chunks=(1, 512, 512))
        handle["scan"] = np.zeros((4096, 2))
    assert "data: the array of shape (4096, 512, 512)" in load_within_limit(path, {"measurement": "counts"})


def test_a_small_bzip2_file_of_zeros_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptycho_torch.io.arrays.MAX_SPARSE_BYTES", 1 << 20)
    path = tmp_path / "scan.npz.bz2"
    path.write_bytes(bz2.compress(bytes(1 << 22)))
    assert "holds more than" in load_within_limit(path, {"measurement": "counts"})


def test_a_large_limit_of_a_bzip2_file_allocates_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptycho_torch.io.arrays.MAX_SPARSE_BYTES", 1 << 50)
    stream = io.BytesIO()
    np.savez(stream, data=np.ones((2, 8, 8), np.float32))
    path = tmp_path / "scan.npz.bz2"
    path.write_bytes(bz2.compress(stream.getvalue()))
    assert "positions" in load_within_limit(path, {"measurement": "counts"})


def test_an_impossible_length_of_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    np.savez(
        path,
        diffraction=np.ones((2, 8, 8), np.float32),
        xcoords=np.zeros(2),
        ycoords=np.zeros(2),
        metadata=np.array('{"geometry": {"wavelength_m": -1}}'),
    )
    assert str(path) in load_within_limit(path, {"measurement": "counts", "diffraction_key": "diffraction"})
